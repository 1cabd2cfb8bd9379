"""Head matmul + softmax + divergence, without ever holding the logits of the whole batch.

Large chunks feed the matmuls, small slices the row work: a chunk's logits live in two preallocated buffers in
the compute dtype, and the softmax arithmetic sweeps a few rows at a time in fp32, so that it stays in cache.
The gradient is made in the forward pass, from the same logits that gave the value, and written over them.

Shapes: N tokens, C tokens of a chunk, R rows of a slice, V vocabulary, D student width, E teacher width.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tutelage.kernels.divergences import KINDS, Rows
from tutelage.kernels.reference import IGNORE


@dataclass(frozen=True)
class LinearDivergence:
    """Sums over the rows that count, 0-dim fp32; only `total` carries a gradient."""

    total: Tensor
    divergence: Tensor
    cross_entropy: Tensor
    count: Tensor


@dataclass(frozen=True)
class _Plan:
    """What is the same for every row."""

    kind: str
    mix: float
    temperature: float
    kd_weight: float
    ce_weight: float
    t_scale: float
    t_cap: float | None
    vocab_size: int
    compute_dtype: torch.dtype
    chunk_size: int
    slice_rows: int
    with_grad: bool


def linear_divergence(
    hidden: Tensor,
    head: Tensor,
    t_hidden: Tensor | None,
    t_head: Tensor | None,
    targets: Tensor,
    *,
    kind: str = "forward_kl",
    mix: float | None = None,
    temperature: float = 1.0,
    kd_weight: float = 1.0,
    ce_weight: float = 0.0,
    t_bias: Tensor | None = None,
    t_scale: float = 1.0,
    t_cap: float | None = None,
    vocab_size: int | None = None,
    compute_dtype: torch.dtype | None = None,
    chunk_size: int = 2048,
    slice_rows: int = 8,
) -> LinearDivergence:
    """`total = kd_weight·τ²·D(teacher, student) + ce_weight·CE`, and its parts, in nats summed over rows.

    `hidden (N, D)`, `head (≥V, D)`, `t_hidden (N, E)`, `t_head (≥V, E)`, `targets (N,)`. `kind` names D of
    `kernels/divergences.py`, KL(teacher‖student) for forward_kl, and `mix` its λ or β. Rows whose target is IGNORE
    count for nothing. Head rows from `vocab_size` on are padding: never scored, gradient zero.
    The teacher's logits are `cap(t_scale·(t_hidden @ t_head.T + t_bias))`; without a teacher (None) the divergence
    is 0. Matmuls run in `compute_dtype` (default: the autocast dtype, else that of `hidden`), statistics in fp32
    (fp64 for fp64). Raises ValueError, naming shapes, before any work. arXiv:1503.02531.
    """
    vocab_size = head.shape[0] if vocab_size is None else vocab_size
    _check(hidden, head, t_hidden, t_head, targets, kind, mix, temperature, vocab_size, t_bias)
    plan = _Plan(
        kind=kind,
        mix=KINDS[kind].mix if mix is None else float(mix),
        temperature=float(temperature),
        kd_weight=float(kd_weight),
        ce_weight=float(ce_weight),
        t_scale=t_scale,
        t_cap=t_cap,
        vocab_size=vocab_size,
        compute_dtype=compute_dtype or _default_dtype(hidden),
        chunk_size=chunk_size,
        slice_rows=slice_rows,
        # Inside a custom Function grad mode is off, so the decision is made here and handed in.
        with_grad=torch.is_grad_enabled() and (hidden.requires_grad or head.requires_grad),
    )
    with torch.autocast(hidden.device.type, enabled=False):  # the dtypes of the plan are meant
        sums = _Fused.apply(hidden, head, t_hidden, t_head, t_bias, targets, plan)  # type: ignore[no-untyped-call]
    return LinearDivergence(*sums)


class _Fused(torch.autograd.Function):
    """The forward pass makes value and gradients; the backward pass only scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        t_hidden: Tensor | None,
        t_head: Tensor | None,
        t_bias: Tensor | None,
        targets: Tensor,
        plan: _Plan,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        sums, d_hidden, d_head = _sweep(hidden, head, t_hidden, t_head, t_bias, targets, plan)
        ctx.save_for_backward(d_hidden, d_head)
        ctx.head_dtype = head.dtype
        ctx.mark_non_differentiable(*sums[1:])
        return sums

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_head = ctx.saved_tensors  # (N, D), (D, ≥V)
        needs_hidden, needs_head = ctx.needs_input_grad[:2]
        return (
            d_hidden * grad_total if needs_hidden else None,
            _scaled_transpose(d_head, grad_total, ctx.head_dtype) if needs_head else None,
            *(None,) * 5,
        )


def _sweep(
    hidden: Tensor,
    head: Tensor,
    t_hidden: Tensor | None,
    t_head: Tensor | None,
    t_bias: Tensor | None,
    targets: Tensor,
    plan: _Plan,
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], Tensor | None, Tensor | None]:
    """(total, divergence, cross-entropy, count), d_hidden `(N, D)` and d_head transposed, `(D, ≥V)`, chunk by chunk."""
    dtype, stat = plan.compute_dtype, torch.promote_types(plan.compute_dtype, torch.float32)
    rows = (targets != IGNORE).nonzero().squeeze(1)  # ignored rows never reach a matmul
    weight = head.to(dtype)
    t_weight = None if t_head is None else t_head[: plan.vocab_size].to(dtype)
    chunk = max(1, -(-len(rows) // max(1, -(-len(rows) // plan.chunk_size))))  # equal ones, none over the limit
    logits = weight.new_empty(chunk, len(weight))
    t_logits = None if t_weight is None else weight.new_empty(chunk, plan.vocab_size)
    d_hidden = torch.zeros_like(hidden) if plan.with_grad else None
    d_head: Tensor | None = None
    divergence = torch.zeros((), dtype=stat, device=hidden.device)
    cross_entropy = torch.zeros_like(divergence)

    for start in range(0, len(rows), chunk):
        picked = rows[start : start + chunk]
        x = hidden[picked].to(dtype)  # (C, D)
        s = torch.mm(x, weight.t(), out=logits[: len(picked)])  # (C, V)
        t = None
        if t_hidden is not None and t_weight is not None and t_logits is not None:
            t = torch.mm(t_hidden[picked].to(dtype), t_weight.t(), out=t_logits[: len(picked)])
            t = _shape_teacher(t, t_bias, plan)
        if t is None or plan.kind == "forward_kl":
            value, ce = _rows(s, t, targets[picked], plan, stat)
        else:
            value, ce = _rows_of_any_kind(s, t, targets[picked], plan, stat)
        divergence += value
        cross_entropy += ce
        if d_hidden is not None:  # s now holds the gradient
            d_hidden[picked] = torch.mm(s, weight).to(hidden.dtype)
            share = torch.mm(x.t().contiguous(), s)  # (D, ≥V): on CPUs a third faster than (≥V, D)
            # several chunks are summed in fp32
            d_head = share if chunk == len(rows) else share.to(stat) if d_head is None else d_head.add_(share)

    total = plan.kd_weight * plan.temperature**2 * divergence + plan.ce_weight * cross_entropy
    count = torch.tensor(len(rows), dtype=stat, device=hidden.device)
    if plan.with_grad and d_head is None:
        d_head = head.new_zeros(head.shape[::-1])
    return (total, divergence, cross_entropy, count), d_hidden, d_head


def _rows(s: Tensor, t: Tensor | None, targets: Tensor, plan: _Plan, stat: torch.dtype) -> tuple[Tensor, Tensor]:
    """KL and CE summed over a chunk `(C, V)`; where a gradient is wanted, writes ∂total/∂logits over `s`.

    ∂(τ²·KL)/∂z = τ(Q_τ − P_τ) and ∂CE/∂z = Q₁ − onehot. At τ = 1 one softmax of the student serves both. Every
    operation is in place: three buffers of a few rows stay in cache.
    """
    V, tau, kd, ce = plan.vocab_size, plan.temperature, plan.kd_weight, plan.ce_weight
    tempered = t is not None and tau != 1
    divergence = torch.zeros((), dtype=stat, device=s.device)
    cross_entropy = torch.zeros_like(divergence)
    buffers = torch.empty(4 if tempered else 3, min(plan.slice_rows, len(s)), V, dtype=stat, device=s.device)

    for start in range(0, len(s), plan.slice_rows):
        out = s[start : start + plan.slice_rows, :V]  # (R, V)
        z, p, gap, *spare = (buffer[: len(out)] for buffer in buffers)
        target = targets[start : start + len(out), None]  # (R, 1)
        at_target = _centre(z.copy_(out)).gather(1, target)
        if t is None:
            log_z = _softmax(z, ce)
        else:
            torch.sub(_centre(p.copy_(t[start : start + len(out)])), z, out=gap)
            q = z
            if tempered:
                q = torch.div(z, tau, out=spare[0])
                p.div_(tau)
            log_z = _softmax(z, ce if tempered else ce + kd)
            log_q = _softmax(q, kd * tau) if tempered else log_z
            log_p = _softmax(p, 1.0)
            divergence += torch.dot(p.view(-1), gap.view(-1)) / tau + (log_q - log_p).sum()
            if plan.with_grad:
                z.sub_(p, alpha=kd * tau)
                if tempered:
                    z.add_(q)
        cross_entropy += (log_z - at_target).sum()
        if plan.with_grad:
            out.copy_(z.scatter_add_(1, target, z.new_full(target.shape, -ce)))
    if plan.with_grad:
        s[:, V:] = 0
    return divergence, cross_entropy


def _rows_of_any_kind(s: Tensor, t: Tensor, targets: Tensor, plan: _Plan, stat: torch.dtype) -> tuple[Tensor, Tensor]:
    """As `_rows`, for any divergence of `KINDS`; plainly, so with more passes."""
    V, tau = plan.vocab_size, plan.temperature
    divergence = torch.zeros((), dtype=stat, device=s.device)
    cross_entropy = torch.zeros_like(divergence)
    for start in range(0, len(s), plan.slice_rows):
        out = s[start : start + plan.slice_rows, :V]  # (R, V)
        target = targets[start : start + len(out), None]  # (R, 1)
        z = out.to(stat)
        log_p, log_q = (torch.log_softmax(x / tau, -1) for x in (t[start : start + len(out)].to(stat), z))
        log_q1 = log_q if tau == 1 else torch.log_softmax(z, -1)
        value, slope = KINDS[plan.kind].of(Rows(log_p, log_q, log_p.exp(), log_q.exp()), plan.mix)
        divergence += value.sum()
        cross_entropy -= log_q1.gather(1, target).sum()
        if plan.with_grad:
            grad = slope.mul_(plan.kd_weight * tau).add_(log_q1.exp(), alpha=plan.ce_weight)
            out.copy_(grad.scatter_add_(1, target, grad.new_full(target.shape, -plan.ce_weight)))
    if plan.with_grad:
        s[:, V:] = 0
    return divergence, cross_entropy


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


def _scaled_transpose(source: Tensor, scale: Tensor, dtype: torch.dtype, width: int = 64) -> Tensor:
    """`scale · source.T (V, D)` for `source (D, V)`, in strips that stay in cache."""
    target = torch.empty(source.shape[::-1], dtype=dtype, device=source.device)
    for start in range(0, len(source), width):
        target[:, start : start + width].copy_(source[start : start + width].t()).mul_(scale)
    return target


def _shape_teacher(t: Tensor, bias: Tensor | None, plan: _Plan) -> Tensor:
    """The head's bias, scale and cap, in place on `t (C, V)`."""
    if bias is not None:
        t.add_(bias[: plan.vocab_size])
    if plan.t_scale != 1:
        t.mul_(plan.t_scale)
    if bias is not None:  # −inf masks a token; a floor that stays finite over τ keeps its 0·(t − s) from being NaN
        t.clamp_(min=torch.finfo(t.dtype).min / 4 * min(1.0, plan.temperature))
    return t if plan.t_cap is None else t.div_(plan.t_cap).tanh_().mul_(plan.t_cap)


def _default_dtype(hidden: Tensor) -> torch.dtype:
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


def _check(
    hidden: Tensor,
    head: Tensor,
    t_hidden: Tensor | None,
    t_head: Tensor | None,
    targets: Tensor,
    kind: str,
    mix: float | None,
    temperature: float,
    vocab_size: int,
    t_bias: Tensor | None,
) -> None:
    """ValueError, with shapes, for anything a matmul would fail on or, worse, accept."""
    shapes = {"hidden": hidden, "head": head, "t_hidden": t_hidden, "t_head": t_head, "targets": targets}
    seen = ", ".join(f"{name} {tuple(value.shape)}" for name, value in shapes.items() if value is not None)
    if kind not in KINDS:
        raise ValueError(f"unknown divergence '{kind}': choose one of {', '.join(KINDS)}")
    if mix is not None and not 0 <= mix <= 1:
        raise ValueError(f"mix must lie from 0 to 1, got {mix}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if hidden.ndim != 2 or head.ndim != 2 or hidden.shape[1] != head.shape[1]:
        raise ValueError(f"hidden (N, D) and head (V, D) must share D: {seen}")
    if targets.shape != hidden.shape[:1]:
        raise ValueError(f"targets must be (N,) for hidden (N, D): {seen}")
    if (t_hidden is None) != (t_head is None):
        raise ValueError(f"t_hidden and t_head go together: {seen}")
    if t_hidden is not None and t_head is not None:
        if t_hidden.shape[:1] != hidden.shape[:1] or t_hidden.shape[1:] != t_head.shape[1:]:
            raise ValueError(f"t_hidden must be (N, E) and t_head (V, E): {seen}")
        if len(t_head) < vocab_size:
            raise ValueError(f"the teacher scores fewer tokens than the vocabulary of {vocab_size}: {seen}")
    if t_bias is not None and (t_bias.ndim != 1 or len(t_bias) < vocab_size):
        raise ValueError(f"t_bias {tuple(t_bias.shape)} must be (V,) for a vocabulary of {vocab_size}: {seen}")
    if not 0 < vocab_size <= len(head):
        raise ValueError(f"vocab_size {vocab_size} does not fit the head: {seen}")
