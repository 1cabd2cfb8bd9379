"""Student directories (config.json, model.safetensors, tokenizer files), and weights that come from a teacher."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tutelage.data.tokenizer import Tokenizer, check_fingerprint
from tutelage.errors import UserError
from tutelage.runs import STUDENT, checkpoint
from tutelage.student.config import Init, StudentConfig
from tutelage.student.decoder import Decoder
from tutelage.student.generate import generate

FORMAT = "tutelage"


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
    """Writes a directory that `load_student` reads; `weights` are the model's, where it does not hold them whole."""
    directory.mkdir(parents=True, exist_ok=True)
    record = {"format": FORMAT, "tokenizer_fingerprint": tokenizer.fingerprint, **asdict(model.config)}
    (directory / "config.json").write_text(json.dumps(record, indent=2))
    state = {name: tensor.detach().contiguous() for name, tensor in (weights or model.state_dict()).items()}
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(directory)


def load_student(path: str | Path, *, dtype: torch.dtype | None = None, device: str = "cpu") -> Student:
    """The student in a student directory, or the newest whole one of a run directory, ready for inference.

    Raises UserError where there is none, where a weight is missing or has another shape, or where the tokenizer
    is not the one the student was trained with.
    """
    directory = find_student(Path(path))
    try:
        record = json.loads((directory / "config.json").read_text())
        fingerprint = record.pop("tokenizer_fingerprint")
        record.pop("format")
        config = StudentConfig(**record)
        with torch.device("meta"):
            model = Decoder(config)
        model.load_state_dict(load_file(directory / "model.safetensors", device=device), assign=True)
    except UserError:
        raise
    except Exception as error:  # a broken file breaks in many ways, and every one of them is bad input
        reason = " ".join(str(error).split())
        raise UserError(f"{directory} does not hold a whole student ({type(error).__name__}: {reason})") from error
    tokenizer = Tokenizer.saved(directory)
    check_fingerprint(fingerprint, tokenizer.fingerprint, str(directory))
    return Student(model.to(dtype).eval().requires_grad_(False), tokenizer)


def find_student(path: Path) -> Path:
    """The student directory at `path`, in its `student/`, or in the checkpoint that a run's name means."""
    for directory in (path, path / STUDENT):
        if is_student(directory):
            return directory
    newest = checkpoint(str(path))
    if newest is None:
        raise UserError(f"no student at {path}: expected a run, a checkpoint or a student directory")
    return newest / STUDENT


def is_student(directory: Path) -> bool:
    """Whether the directory holds a student of ours (and not, say, a transformers checkpoint)."""
    try:
        record = json.loads((directory / "config.json").read_text())
        return isinstance(record, dict) and record.get("format") == FORMAT
    except (OSError, ValueError):
        return False


def initialise(student: Decoder, teacher: Decoder | None, init: Init) -> None:
    """Copies the teacher's embeddings, or also its uniformly spaced layers, first to first and last to last.

    Raises UserError where the teacher is no decoder of a kind we know, or where shapes differ.
    """
    if init == "random":
        return
    if teacher is None:
        raise UserError(f"--student.init {init} needs a teacher of Llama or StarCoder2 arithmetic: use random")
    _copy(student.embed_tokens, teacher.embed_tokens, "embed_tokens", init)
    if student.lm_head is not None:
        source = teacher.embed_tokens if teacher.lm_head is None else teacher.lm_head
        _copy(student.lm_head, source, "lm_head", init)
    if init == "embeddings":
        return
    if student.config.position != teacher.config.position or student.config.rope_theta != teacher.config.rope_theta:
        raise UserError(
            f"--student.init layers: positions differ: student {student.config.position} with base"
            f" {student.config.rope_theta:g}, teacher {teacher.config.position} with base"
            f" {teacher.config.rope_theta:g}: pass --student.rope_theta {teacher.config.rope_theta:g}"
        )
    if student.config.head_size != teacher.config.head_size:
        raise UserError(
            f"--student.init layers: heads of {student.config.head_size} in the student and"
            f" {teacher.config.head_size} in the teacher: pass --student.n_heads {teacher.config.n_heads}"
        )
    _copy(student.norm, teacher.norm, "norm", init)
    for layer, source_layer in enumerate(spaced_layers(len(teacher.layers), len(student.layers))):
        _copy(student.layers[layer], teacher.layers[source_layer], f"layers.{layer}", init)


def spaced_layers(n_teacher: int, n_student: int) -> list[int]:
    """Teacher layers for the student's, uniformly over depth, first to first and last to last."""
    if n_student == 1:
        return [n_teacher - 1]
    return [round(i * (n_teacher - 1) / (n_student - 1)) for i in range(n_student)]


def _copy(target: nn.Module, source: nn.Module, name: str, init: Init) -> None:
    ours, theirs = dict(target.named_parameters()), dict(source.named_parameters())
    if ours.keys() != theirs.keys():
        differ = ", ".join(sorted(ours.keys() ^ theirs.keys()))
        raise UserError(f"--student.init {init}: {name} of teacher and student differ in {differ}: use random")
    for key, parameter in ours.items():
        if not theirs[key].is_floating_point():
            reason = f"the teacher's {name}.{key} is packed in 4 bits"
            raise UserError(f"--student.init {init}: {reason}: use embeddings or random")
        source_rows = theirs[key].data
        if name in ("embed_tokens", "lm_head") and parameter.shape[1:] == source_rows.shape[1:]:
            rows = min(len(parameter), len(source_rows))  # either may be padded; padding is never scored
            parameter.data[:rows].copy_(source_rows[:rows])
            continue
        if parameter.shape != theirs[key].shape:
            raise UserError(
                f"--student.init {init}: {name}.{key} is {tuple(parameter.shape)} in the student and"
                f" {tuple(theirs[key].shape)} in the teacher: choose the teacher's widths or --student.init random"
            )
        parameter.data.copy_(theirs[key].data)


def config_from_huggingface(config: Mapping[str, Any]) -> StudentConfig | None:
    """Our configuration of a transformers `config.to_dict()` of Llama or StarCoder2 arithmetic, else None."""
    kind = config.get("model_type")
    rope = config.get("rope_parameters") or {"rope_theta": config.get("rope_theta", 10_000.0)}
    if kind not in ("llama", "starcoder2") or rope.get("rope_type", "default") != "default":
        return None
    if kind == "llama" and config.get("hidden_act", "silu") != "silu":
        return None
    if kind == "starcoder2" and config.get("hidden_act", "gelu_pytorch_tanh") != "gelu_pytorch_tanh":
        return None
    starcoder = kind == "starcoder2"
    bias = bool(config.get("use_bias", True)) if starcoder else False
    attention_bias = bias or bool(config.get("attention_bias", False))
    if not starcoder and (attention_bias or config.get("mlp_bias", False)):
        return None  # Llama with biases in odd places is nobody's checkpoint of interest
    return StudentConfig(
        vocab_size=config["vocab_size"],
        n_layers=config["num_hidden_layers"],
        n_heads=config["num_attention_heads"],
        n_kv_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
        d_model=config["hidden_size"],
        d_ff=config["intermediate_size"],
        d_head=config.get("head_dim"),
        max_seq_len=min(config["max_position_embeddings"], config.get("sliding_window") or 10**9),
        norm="layernorm" if starcoder else "rmsnorm",
        mlp="gelu" if starcoder else "swiglu",
        bias=bias,
        qkv_bias=bias,
        rope_theta=float(rope["rope_theta"]),
        norm_eps=config["norm_epsilon" if starcoder else "rms_norm_eps"],
        tie_embeddings=bool(config.get("tie_word_embeddings", False)),
    )


def from_huggingface(model: nn.Module, config: Mapping[str, Any]) -> Decoder | None:
    """A `Decoder` that shares the modules (so also 4-bit ones) of a transformers model, or None if unknown.

    Generation through it has our per-row cache, which rewinds; nothing is copied.
    """
    ours = config_from_huggingface(config)
    if ours is None:
        return None
    with torch.device("meta"):
        decoder = Decoder(ours)
    for name, module in list(decoder.named_modules()):
        if not list(module.children()) and list(module.parameters()):
            parent, _, leaf = name.rpartition(".")
            theirs = name if name == "lm_head" else f"model.{name}"
            setattr(decoder.get_submodule(parent), leaf, model.get_submodule(theirs))
    return decoder.eval()
