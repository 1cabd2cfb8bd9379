"""What the loss refuses, with the shapes seen, before any work: what a matmul would fail on or, worse, accept.

Shapes: N tokens, V vocabulary, D student width, E teacher width, k tokens of a sparse teacher.
"""

import torch
from torch import Tensor

from tutelage.kernels.divergences import KINDS
from tutelage.kernels.reference import IGNORE


def options(kind: str, mix: Tensor | float | None, temperature: Tensor | float, sparse: bool) -> None:
    """The choice of a divergence and its numbers."""
    if kind not in KINDS:
        raise ValueError(f"unknown divergence '{kind}': choose one of {', '.join(KINDS)}")
    if isinstance(mix, Tensor) and mix.requires_grad:
        raise ValueError("mix has no derivative: detach it")
    if mix is not None and not isinstance(mix, Tensor) and not 0 <= mix <= 1:
        raise ValueError(f"mix must lie from 0 to 1, got {mix}")
    if not isinstance(temperature, Tensor) and not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if sparse and isinstance(temperature, Tensor) and temperature.requires_grad:
        raise ValueError("a temperature cannot be learned from top-k log-probabilities, which hold for one temperature")


def accumulation(asked: torch.dtype, *possible: torch.dtype) -> None:
    """The dtype that ∂head is summed in; in fp16 a sum of many tokens overflows."""
    possible = tuple(dict.fromkeys(x for x in possible if x != torch.float16))
    if asked not in possible:
        raise ValueError(f"accum_dtype must be {' or '.join(map(str, possible))}, got {asked}")


def sizes(hidden: Tensor, head: Tensor, targets: Tensor, vocab_size: int) -> None:
    """`hidden (N, D)`, `head (≥V, D)`, `targets (N,)`."""
    seen = _seen(hidden=hidden, head=head, targets=targets)
    if hidden.ndim != 2 or head.ndim != 2 or hidden.shape[1] != head.shape[1]:
        raise ValueError(f"hidden (N, D) and head (V, D) must share D: {seen}")
    if targets.shape != hidden.shape[:1]:
        raise ValueError(f"targets must be (N,) for hidden (N, D): {seen}")
    if not 0 < vocab_size <= len(head):
        raise ValueError(f"vocab_size {vocab_size} does not fit the head: {seen}")


def logits(student: Tensor, targets: Tensor) -> None:
    """`student (N, V)`, `targets (N,)`."""
    if student.ndim != 2 or not student.shape[1] or targets.shape != student.shape[:1]:
        raise ValueError(f"logits must be (N, V) and targets (N,): {_seen(logits=student, targets=targets)}")


def teacher_logits(student: Tensor, teacher: Tensor) -> None:
    """Both `(N, V)`."""
    if student.shape != teacher.shape:
        raise ValueError(f"logits and the teacher's must both be (N, V): {_seen(logits=student, teacher=teacher)}")


def dense(student: Tensor, t_hidden: Tensor, t_head: Tensor, t_bias: Tensor | None, vocab_size: int) -> None:
    """`student (N, …)`, `t_hidden (N, E)`, `t_head (≥V, E)`, `t_bias (≥V,)`."""
    seen = _seen(hidden=student, t_hidden=t_hidden, t_head=t_head)
    shapes_fit = t_hidden.ndim == t_head.ndim == 2 and t_hidden.shape[1] == t_head.shape[1]
    if not shapes_fit or len(t_hidden) != len(student):
        raise ValueError(f"t_hidden must be (N, E) and t_head (V, E): {seen}")
    if len(t_head) < vocab_size:
        raise ValueError(f"the teacher scores fewer tokens than the vocabulary of {vocab_size}: {seen}")
    if t_bias is not None and (t_bias.ndim != 1 or len(t_bias) < vocab_size):
        raise ValueError(f"t_bias {tuple(t_bias.shape)} must be (V,) for a vocabulary of {vocab_size}: {seen}")


def sparse(student: Tensor, ids: Tensor, log_probs: Tensor, vocab_size: int) -> None:
    """`student (N, …)`, `ids (N, k)` and `log_probs (N, k)` with k from 1 to V."""
    seen = _seen(student=student, ids=ids, log_probs=log_probs)
    if ids.ndim != 2 or ids.shape != log_probs.shape or len(ids) != len(student):
        raise ValueError(f"top-k ids and log_probs must both be (N, k): {seen}")
    if not 0 < ids.shape[1] <= vocab_size:
        raise ValueError(f"k must be from 1 to the vocabulary of {vocab_size}: {seen}")


def target_values(targets: Tensor, vocab_size: int, count: int | None) -> None:
    """Targets `(N,)` of the vocabulary or IGNORE, and as many of them as `count` says.

    A GPU is not waited for: there a device-side assertion ends the process. On a CPU ValueError is raised for the
    count, and for a target by what would read it.
    """
    named = targets != IGNORE
    if targets.is_cuda:
        inside = ((targets >= 0) & (targets < vocab_size)) | ~named
        torch._assert_async(inside.all(), f"targets leave the vocabulary of {vocab_size}")
        if count is not None:
            torch._assert_async(named.sum() == count, f"targets that count are not {count}")
    elif count is not None and targets.device.type == "cpu" and int(named.sum()) != count:
        raise ValueError(f"count says that {count} targets count, and {int(named.sum())} do")


def dense_values(t: Tensor, picked: Tensor, name: str) -> None:
    """Finite numbers in the rows `picked` of `t (N, …)`."""
    _no_row(~t[picked].isfinite().all(-1), picked, f"{name} has values that are not finite")


def no_nan(t: Tensor, picked: Tensor) -> None:
    """No NaN or +inf in the rows `picked` of the logits `t (N, V)`; −inf masks a token."""
    top = t.amax(-1)[picked]  # NaN wins; one pass, and nothing of the size of t is made
    _no_row(top.isnan() | (top == torch.inf), picked, "the teacher's logits hold NaN or inf")


def sparse_values(ids: Tensor, log_probs: Tensor, picked: Tensor, vocab_size: int) -> None:
    """Ids of the vocabulary, none twice, the likeliest first, with log-probabilities that sum to one at most."""
    ids, log_probs = ids[picked], log_probs[picked].float()
    _no_row(~log_probs.isfinite().all(-1), picked, "top-k log_probs has values that are not finite")
    _no_row(((ids < 0) | (ids >= vocab_size)).any(-1), picked, f"top-k ids leave the vocabulary of {vocab_size}")
    in_order = ids.sort(-1).values
    _no_row((in_order[:, 1:] == in_order[:, :-1]).any(-1), picked, "top-k ids repeat")
    _no_row((log_probs[:, 1:] > log_probs[:, :-1]).any(-1), picked, "top-k is unsorted: give the likeliest first")
    _no_row(log_probs.exp().sum(-1) > 1.01, picked, "top-k probabilities sum to more than one")


def _no_row(bad: Tensor, picked: Tensor, fault: str) -> None:
    found = picked[bad].tolist()
    if found:
        raise ValueError(f"{fault}, in row {found[0]} of the batch" + f" and {len(found) - 1} more" * (len(found) > 1))


def _seen(**tensors: Tensor) -> str:
    return ", ".join(f"{name} {tuple(value.shape)}" for name, value in tensors.items())
