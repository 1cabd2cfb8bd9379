"""A model under evaluation, ours or a teacher, behind one face."""

import hashlib
import re
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from tutelage.data.tokenizer import Tokenizer
from tutelage.evaluation.config import TEACHER
from tutelage.student.cache import CausalLM
from tutelage.student.weights import find_student, load_student
from tutelage.teacher.entry import is_foreign
from tutelage.teacher.registry import directory, entry, load_teacher
from tutelage.teacher.signal import generator_of, prompt_style_of, tokenizer_of
from tutelage.training.fidelity import Scorer, decoder_scorer
from tutelage.training.precision import DTYPES, Name

COMMIT = re.compile(r"(@[0-9a-f]{12})[0-9a-f]{28}$")
"""At the end of a name; tables show a part of it."""


@dataclass(frozen=True)
class Candidate:
    """What measuring a model takes."""

    name: str
    generator: CausalLM
    scorer: Scorer
    tokenizer: Tokenizer
    prompt_style: str
    n_parameters: int
    n_bytes: int  # of its weights in memory
    disk_bytes: int = 0  # of its weights on disk; 0 where they lie in nobody's directory
    identity: str = ""  # another for other weights
    dtype: str = "bf16"  # and how the weights are quantised, where they are


def load_candidate(which: str, device: str, precision: Name = "bf16", quantisation: str | None = None) -> Candidate:
    """A teacher by `teacher:NAME`, or the model in a directory, ours or of transformers, or in a .gguf file.

    Its arithmetic is "bf16" or "fp32", its weights packed as `load_teacher` says.
    Raises UserError where there is none, or where it lacks something: a tokenizer, say.
    """
    if which.startswith(TEACHER) or is_foreign(Path(which)):
        return _teacher(which, device, precision, quantisation)
    path = Path(which)
    student = load_student(path, dtype=DTYPES[precision], device=device)
    model = student.model
    disk, identity = _on_disk(find_student(path))
    return Candidate(
        path.name or which, model, decoder_scorer(model, precision), student.tokenizer, "completion",
        model.config.n_parameters, _bytes(model, 0), disk, identity, precision,
    )  # fmt: skip


def _teacher(which: str, device: str, precision: Name, quantisation: str | None) -> Candidate:
    name = which.removeprefix(TEACHER)
    teacher = load_teacher(name, device, dtype=DTYPES[precision], quantisation=quantisation)
    folder = directory(name, entry(name))
    disk, identity = _on_disk(folder) if folder else (0, "")
    model, tokenizer, size = generator_of(teacher), tokenizer_of(teacher), teacher.spec.n_parameters
    assert model is not None, "a teacher that is loaded by name generates"
    assert tokenizer is not None, "and has a vocabulary"
    shown = COMMIT.sub(r"\1", which) if which.startswith(TEACHER) else Path(which).name
    return Candidate(
        shown, model, teacher.signal, tokenizer, prompt_style_of(teacher), size, _bytes(model, 2 * size), disk,
        f"{asdict(teacher.spec)} {identity}", ", ".join(filter(None, (teacher.spec.quantisation, precision))),
    )  # fmt: skip


def _on_disk(directory: Path) -> tuple[int, str]:
    """Bytes of the weights in a directory, and a digest of their sizes and times."""
    stats = [(file.name, file.stat()) for file in sorted(directory.glob("*.safetensors"))]
    told = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    return sum(size for _, size, _ in told), hashlib.sha256(repr(told).encode()).hexdigest()


def _bytes(model: CausalLM, otherwise: int) -> int:
    if not isinstance(model, torch.nn.Module):
        return otherwise
    return sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
