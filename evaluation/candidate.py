"""A model under evaluation, ours or a teacher, behind one face."""

from dataclasses import dataclass
from pathlib import Path

import torch

from tutelage.data.tokenizer import Tokenizer
from tutelage.errors import UserError
from tutelage.evaluation.fidelity import Scorer, decoder_scorer
from tutelage.student.cache import CausalLM
from tutelage.student.weights import load_student
from tutelage.teacher.registry import load_teacher

TEACHER = "teacher:"


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


def load_candidate(which: str, device: str) -> Candidate:
    """A teacher by `teacher:NAME`, else the student at a path, in bf16. Raises UserError where there is none."""
    if which.startswith(TEACHER):
        teacher = load_teacher(which.removeprefix(TEACHER), device)
        model = teacher.generator()
        size = teacher.spec.n_parameters
        return Candidate(
            which, model, teacher.signal, teacher.tokenizer, teacher.prompt_style, size, _bytes(model, 2 * size)
        )
    path = Path(which)
    if not path.exists():
        raise UserError(f"--model {which}: no such directory (a teacher is written teacher:NAME)")
    student = load_student(path, dtype=torch.bfloat16, device=device)
    model = student.model
    name, size = path.name or which, model.config.n_parameters
    return Candidate(name, model, decoder_scorer(model), student.tokenizer, "completion", size, _bytes(model, 2 * size))


def _bytes(model: CausalLM, otherwise: int) -> int:
    if not isinstance(model, torch.nn.Module):
        return otherwise
    return sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
