"""Student directories: config.json, model.safetensors, tokenizer files."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from tutelage.data.tokenizer import Tokenizer, check_fingerprint
from tutelage.errors import UserError
from tutelage.runs import FORMAT, STUDENT, checkpoint, is_student
from tutelage.student.config import StudentConfig
from tutelage.student.decoder import Decoder
from tutelage.student.generate import generate


@dataclass(frozen=True)
class Student:
    """A loaded student: the decoder and the tokenizer it was trained with."""

    model: Decoder
    tokenizer: Tokenizer

    def complete(self, prompt: str, *, max_new_tokens: int = 64, temperature: float = 0.0, seed: int = 0) -> str:
        """The text that follows `prompt`; greedy at temperature 0."""
        [ids] = generate(
            self.model,
            [self.tokenizer.encode_prompt(prompt)],
            max_new_tokens=max_new_tokens,
            end_ids=self.tokenizer.end_ids,
            temperature=temperature,
            seed=seed,
            device=self.model.head.device,
        )
        return self.tokenizer.decode(ids)


def save_student(
    model: Decoder, tokenizer: Tokenizer, directory: Path, weights: Mapping[str, Tensor] | None = None
) -> None:
    """Writes a directory that `load_student` reads; `weights` are the model's, where it does not hold them whole.

    A vocabulary that is padded otherwise than ours, as that of a model from elsewhere may be, is padded as ours.
    """
    directory.mkdir(parents=True, exist_ok=True)
    record = {"format": FORMAT, "tokenizer_fingerprint": tokenizer.fingerprint, **asdict(model.config)}
    (directory / "config.json").write_text(json.dumps(record, indent=2))
    state = {name: tensor.detach().contiguous() for name, tensor in (weights or model.state_dict()).items()}
    for name in state.keys() & {"embed_tokens.weight", "lm_head.weight"}:
        missing = model.config.padded_vocab_size - len(state[name])
        state[name] = F.pad(state[name], (0, 0, 0, missing)).contiguous()  # or cut, where rows are too many
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(directory)


def load_student(path: str | Path, *, dtype: torch.dtype | None = None, device: str = "cpu") -> Student:
    """The student in a student directory, or the newest whole one of a run directory, ready for inference.

    Raises UserError where there is none, where a weight is missing or has another shape, or where the tokenizer
    is not the one the student was trained with.
    """
    directory = find_student(Path(path))
    with _whole_student(directory):
        config, fingerprint = read_config(directory)
        with torch.device("meta"):
            model = Decoder(config)
        model.load_state_dict(load_file(directory / "model.safetensors", device=device), assign=True)
    tokenizer = Tokenizer.saved(directory)
    check_fingerprint(fingerprint, tokenizer.fingerprint, str(directory))
    return Student(model.to(dtype).eval().requires_grad_(False), tokenizer)


def read_config(directory: Path) -> tuple[StudentConfig, str]:
    """The shape of the student in its directory, and its tokenizer's fingerprint. Raises UserError."""
    with _whole_student(directory):
        record = json.loads((directory / "config.json").read_text())
        fingerprint: str = record.pop("tokenizer_fingerprint")
        record.pop("format")
        return StudentConfig(**record), fingerprint


@contextmanager
def _whole_student(directory: Path) -> Iterator[None]:
    """Turns whatever is raised inside into a UserError that names the directory."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # a broken file breaks in many ways, and every one of them is bad input
        reason = " ".join(str(error).split())
        raise UserError(f"{directory} does not hold a whole student ({type(error).__name__}: {reason})") from error


def find_student(path: Path) -> Path:
    """The student directory at `path`, in its `student/`, or in the checkpoint that a run's name means."""
    for directory in (path, path / STUDENT):
        if is_student(directory):
            return directory
    newest = checkpoint(str(path))
    if newest is None:
        raise UserError(f"no student at {path}: expected a run, a checkpoint or a student directory")
    return newest / STUDENT
