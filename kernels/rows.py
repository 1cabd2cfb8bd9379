"""The row work of the loss: from a chunk's logits to its sums, with the gradient written over the student's logits.

On CPUs a few rows at a time, in fp32, so that every sweep after the first finds them in cache.

Shapes: C rows of a chunk, R rows of a slice, V vocabulary, k tokens that a sparse teacher names.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from tutelage.kernels import native
from tutelage.kernels.dispatch import Needs, compiled
from tutelage.kernels.divergences import between


class Knobs(NamedTuple):
    """The numbers that may change from step to step; one tensor of them on the device, so that nothing recompiles."""

    kd_weight: Tensor
    ce_weight: Tensor
    temperature: Tensor
    mix: Tensor


class Work(NamedTuple):
    """What is to be done; the same for every row."""

    kind: str
    vocab_size: int
    tempered: bool
    """The temperature may differ from 1, so the cross-entropy needs a softmax of its own."""
    with_grad: bool
    by_temperature: bool
    """∂D/∂τ is wanted, for a temperature that is learned."""
    masked: bool
    """Logits may be −inf."""


FLOOR = -3e4
"""What stands for a masked token's −inf: e^x is 0 from here on too, and 0·x is not NaN. It fits fp16."""


class TopK(NamedTuple):
    """A sparse teacher: `ids (C, k)` and `log_probs (C, k)` at the loss's temperature; the rest is one bucket."""

    ids: Tensor
    log_probs: Tensor


ChunkTeacher = Tensor | TopK | None
"""The teacher of a chunk: its logits `(C, V)`, its top k, or nobody."""


def take(teacher: ChunkTeacher, rows: Tensor | slice) -> ChunkTeacher:
    """The teacher's side of these rows alone."""
    if isinstance(teacher, TopK):
        return TopK(teacher.ids[rows], teacher.log_probs[rows])
    return None if teacher is None else teacher[rows]


def eager(s: Tensor, teacher: ChunkTeacher, targets: Tensor, knobs: Tensor, work: Work, rows: int = 0) -> Tensor:
    """Sums over a chunk `(3,)`: divergence, cross-entropy and ∂D/∂τ; `s (C, ≥V)` becomes ∂total/∂s if so wanted."""
    on_cpu = s.device.type == "cpu"
    sweep = _sweep_in_place if on_cpu and plain(work.kind, teacher, work.by_temperature) else _sweep
    return sweep(s, teacher, targets, knobs, work, rows or (8 if on_cpu else 256))


def compile(s: Tensor, teacher: ChunkTeacher, targets: Tensor, knobs: Tensor, work: Work, rows: int = 0) -> Tensor:
    """As `eager`, by our C++ where it does this work, else with the work on a slice compiled to one or two passes.

    Off the CPU a slice is the chunk: what is compiled holds little of it at a time.
    """
    dtypes = [x.dtype for x in (s, teacher) if isinstance(x, Tensor)]
    if (
        s.device.type == "cpu"
        and has_native(work.kind, teacher, work.by_temperature, *dtypes)
        and not isinstance(teacher, TopK)
        and not isinstance(native.library(), str)
    ):
        kd_weight, ce_weight, temperature, _ = knobs.tolist()
        weights = (kd_weight, ce_weight, temperature, FLOOR if work.masked else -math.inf)
        found = native.sweep(s, teacher, targets, work.vocab_size, weights, work.with_grad)
        return torch.stack((*found.sum(0), found.new_zeros(()))).to(knobs.dtype)
    rows = rows or (16 if s.device.type == "cpu" else max(1, len(s)))
    return _sweep(s, teacher, targets, knobs, work, rows, compile=True)


def plain(kind: str, teacher: object, by_temperature: bool) -> bool:
    """Whether this is the forward KL of whole logits, or the cross-entropy alone: a CPU has fast paths for them."""
    return not by_temperature and (teacher is None or (kind == "forward_kl" and not isinstance(teacher, TopK)))


def has_native(kind: str, teacher: object, by_temperature: bool, *dtypes: torch.dtype) -> bool:
    """Whether `native.cpp` does this work on logits of these dtypes."""
    return plain(kind, teacher, by_temperature) and native.takes(*dtypes)


def triton_needs(teacher: object) -> Needs:
    """What `dispatch.pick` asks the Triton kernel."""
    return "triton_rows", teacher.ids.shape[1] if isinstance(teacher, TopK) else 0


def _sweep(
    s: Tensor, teacher: ChunkTeacher, targets: Tensor, knobs: Tensor, work: Work, rows: int, compile: bool = False
) -> Tensor:
    sums = torch.zeros(3, dtype=knobs.dtype, device=s.device)
    for start in range(0, len(s), rows):
        part = slice(start, start + rows)
        out = s[part, : work.vocab_size]
        mine = take(teacher, part)
        of = compiled(_slice) if compile and len(out) == rows else _slice  # a shorter last slice is not worth another
        found, grad = of(out, mine, targets[part], knobs, work)
        sums += found
        if work.with_grad:
            out.copy_(grad)
    return sums


def _slice(s: Tensor, teacher: ChunkTeacher, targets: Tensor, knobs: Tensor, work: Work) -> tuple[Tensor, Tensor]:
    """Sums `(3,)` and ∂total/∂s `(R, V)` of a slice, by the definitions: ∂(τ²D)/∂s = τ·slope, ∂CE/∂s = q₁ − onehot."""
    kd_weight, ce_weight, temperature, mix = knobs.unbind()
    z, target = _floored(s.to(knobs.dtype), work), targets[:, None]
    log_q1 = torch.log_softmax(z, -1)
    log_q = torch.log_softmax(z / temperature, -1) if work.tempered else log_q1
    cross_entropy = -log_q1.gather(1, target).sum()
    divergence = by_temperature = torch.zeros_like(cross_entropy)
    grad = ce_weight * log_q1.exp()
    if isinstance(teacher, TopK):
        value, slope = _of_buckets(teacher, log_q, mix, work)
        divergence, grad = value.sum(), grad + kd_weight * temperature * slope
    elif teacher is not None:
        t = _floored(teacher.to(knobs.dtype), work)
        log_p = torch.log_softmax(t / temperature if work.tempered else t, -1)
        value, slope, by_teacher = between(work.kind, log_p, log_q, mix)
        divergence, grad = value.sum(), grad + kd_weight * temperature * slope
        if work.by_temperature:  # both logits are z/τ, and the constants of log-probabilities drop out
            by_temperature = -((slope * log_q).sum() + (by_teacher * log_p).sum()) / temperature
    # no scatter_add here: a compiled one would need a pass of its own
    onehot = torch.arange(work.vocab_size, device=s.device) == target
    grad = torch.where(onehot, grad - ce_weight, grad).to(s.dtype)
    return torch.stack((divergence, cross_entropy, by_temperature)), grad


def _of_buckets(teacher: TopK, log_q: Tensor, mix: Tensor, work: Work) -> tuple[Tensor, Tensor]:
    """Value `(R, 1)` and slope `(R, V)` of the divergence over k tokens and one bucket for all the others.

    A bucket's derivative is its tokens' in the share of their probability, so g = q·(slope / q) off the top k.
    """
    ids, log_k = teacher.ids, teacher.log_probs.to(log_q.dtype)
    rest = log_q.scatter(1, ids, -torch.inf).exp()  # (R, V): what is off the top k, summed without cancellation
    q_rest, p_rest = (_remainder(x) for x in (rest.sum(-1, keepdim=True), 1 - log_k.exp().sum(-1, keepdim=True)))
    log_p = torch.cat((log_k, p_rest.log()), -1)  # (R, k + 1)
    log_q = torch.cat((log_q.gather(1, ids), q_rest.log()), -1)
    value, slope, _ = between(work.kind, log_p, log_q, mix)
    return value, (rest * (slope[:, -1:] / q_rest)).scatter(1, ids, slope[:, :-1])


def _remainder(mass: Tensor) -> Tensor:
    """A bucket's probability, never less than the rounding of what it is the remainder of."""
    return mass.clamp(min=torch.finfo(mass.dtype).eps)


def _sweep_in_place(s: Tensor, teacher: ChunkTeacher, targets: Tensor, knobs: Tensor, work: Work, rows: int) -> Tensor:
    """As `_sweep` on a CPU, for the forward KL or no teacher: in place, in three buffers that stay in cache.

    ∂(τ²·KL)/∂z = τ(Q_τ − P_τ). At τ = 1 one softmax of the student serves both terms.
    """
    kd, ce, tau, _ = knobs.tolist()
    tempered = teacher is not None and tau != 1
    divergence = torch.zeros((), dtype=knobs.dtype, device=s.device)
    cross_entropy = torch.zeros_like(divergence)
    size = (4 if tempered else 3, min(rows, len(s)), work.vocab_size)
    buffers = torch.empty(size, dtype=knobs.dtype, device=s.device)

    for start in range(0, len(s), rows):
        out = s[start : start + rows, : work.vocab_size]  # (R, V)
        z, p, gap, *spare = (buffer[: len(out)] for buffer in buffers)
        target = targets[start : start + len(out), None]  # (R, 1)
        at_target = _centre(_floored_in_place(z.copy_(out), work)).gather(1, target)
        if not isinstance(teacher, Tensor):
            log_z = _softmax(z, ce)
        else:
            p.copy_(teacher[start : start + len(out)])
            torch.sub(_centre(_floored_in_place(p, work)), z, out=gap)
            q = z
            if tempered:
                q = torch.div(z, tau, out=spare[0])
                p.div_(tau)
            log_z = _softmax(z, ce if tempered else ce + kd)
            log_q = _softmax(q, kd * tau) if tempered else log_z
            log_p = _softmax(p, 1.0)
            divergence += torch.dot(p.view(-1), gap.view(-1)) / tau + (log_q - log_p).sum()
            if work.with_grad:
                z.sub_(p, alpha=kd * tau)
                if tempered:
                    z.add_(q)
        cross_entropy += (log_z - at_target).sum()
        if work.with_grad:
            out.copy_(z.scatter_add_(1, target, z.new_full(target.shape, -ce)))
    return torch.stack((divergence, cross_entropy, torch.zeros_like(divergence)))


def _floored(z: Tensor, work: Work) -> Tensor:
    return z.clamp(min=FLOOR) if work.masked else z


def _floored_in_place(z: Tensor, work: Work) -> Tensor:
    return z.clamp_(min=FLOOR) if work.masked else z


def _centre(z: Tensor) -> Tensor:
    """Shifts each row of `z (R, V)`, in place, so that its largest entry is 0 and nothing cancels later."""
    return z.sub_(z.amax(-1, keepdim=True))


def _softmax(z: Tensor, weight: float) -> Tensor:
    """Turns centred `z (R, V)` into weight·softmax(z), in place; returns log Σ exp(z) `(R, 1)`.

    Plain sweeps: on CPUs `exp_`, `sum` and `mul_` together are faster than `torch.softmax`.
    """
    total = z.exp_().sum(-1, keepdim=True)
    z.mul_(weight / total)
    return total.log()
