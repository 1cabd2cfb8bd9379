"""Head matmul + softmax + divergence, without ever holding the logits of the whole batch.

Large chunks feed the matmuls, and row work sweeps a chunk's logits where they lie (`rows.py` on CPUs, `triton_rows.py`
on GPUs): two preallocated buffers in the compute dtype, statistics in fp32. The gradient is made in the forward pass,
from the same logits that gave the value, and written over them.

Shapes: N tokens, C tokens of a chunk, V vocabulary, D student width, E teacher width, k tokens of a sparse teacher.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tutelage.kernels import checks, rows
from tutelage.kernels.dispatch import Impl, pick
from tutelage.kernels.divergences import KINDS
from tutelage.kernels.head_gradient import HeadGradient, kept_dtype, scaled
from tutelage.kernels.launch import matmul_dtype, only_once
from tutelage.kernels.reference import IGNORE
from tutelage.kernels.rows import ChunkTeacher, Knobs, TopK, Work

CHUNK = {"cpu": 2048, "cuda": 1024}
"""Most tokens whose student logits are held at a time, where nobody says; and never more than half of all."""
ALIGNED = 64
"""Entries that a row of logits in a buffer begins at a multiple of: matmuls into odd rows are slow on a GPU."""
T_BLOCKS = {"cpu": 4}
"""Parts of a chunk whose teacher logits are made and used up one after the other; a GPU makes them at once."""
_kept = threading.local()


class DenseTeacher(NamedTuple):
    """Logits `cap·tanh(x / cap)` of `x = scale·(hidden @ head.T + bias)`.

    `hidden (N, E)`, `head (≥V, E)`, `bias (≥V,)`.
    """

    hidden: Tensor
    head: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    cap: float | None = None


@dataclass(frozen=True)
class Plan:
    """How it is computed, which changes roundings, time and memory."""

    compute_dtype: torch.dtype
    chunk_size: int
    accum_dtype: torch.dtype
    count: int | None
    check_values: bool
    rounded: bool
    impl: str


@dataclass(frozen=True)
class LossSums:
    """Sums over the rows that count, in nats, 0-dim fp32 (fp64 for fp64); only `total` carries a gradient."""

    total: Tensor
    divergence: Tensor
    cross_entropy: Tensor
    count: Tensor


def linear_divergence(
    hidden: Tensor,
    head: Tensor,
    teacher: DenseTeacher | TopK | None,
    targets: Tensor,
    *,
    kind: str = "forward_kl",
    mix: Tensor | float | None = None,
    temperature: Tensor | float = 1.0,
    kd_weight: Tensor | float = 1.0,
    ce_weight: Tensor | float = 0.0,
    vocab_size: int | None = None,
    compute_dtype: torch.dtype | None = None,
    chunk_size: int | None = None,
    accum_dtype: torch.dtype | None = None,
    count: int | None = None,
    check_values: bool | None = None,
    round_head_gradient: bool = False,
    impl: Impl = "auto",
) -> LossSums:
    """`total = kd_weight·τ²·D(teacher, student) + ce_weight·CE`, and its parts, in nats summed over rows.

    `hidden (N, D)`, `head (≥V, D)`, `targets (N,)`; the teacher is dense, sparse (`TopK`, log-probabilities at the
    temperature, the rest of the vocabulary one bucket) or None, and then the divergence is 0. `kind` names D of
    `divergences.py`, `mix` is its λ or β. Rows whose target is IGNORE count for nothing and reach no matmul; who knows
    how many others there are passes `count`, or a GPU is waited for once. Head rows from `vocab_size` on are padding:
    never scored, gradient zero. A temperature that requires a gradient gets it. Matmuls run in `compute_dtype`
    (default: the autocast dtype, else that of `hidden`), statistics in fp32 (fp64 for fp64). ∂head is summed over
    chunks in fp32 too, unless `accum_dtype` asks for the compute dtype, which is leaner. Raises ValueError, naming
    shapes, before any work; values (a teacher's NaN, ids) are looked at on CPUs, and on GPUs only where `check_values`.
    """
    vocab_size = head.shape[0] if vocab_size is None else vocab_size
    checks.sizes(hidden, head, targets, vocab_size)
    checks.options(kind, mix, temperature, sparse=isinstance(teacher, TopK))
    dtype = compute_dtype or matmul_dtype(hidden)
    dense = teacher if isinstance(teacher, DenseTeacher) else None
    top = teacher if isinstance(teacher, TopK) else None
    if dense is not None:
        checks.dense(hidden, dense.hidden, dense.head, dense.bias, vocab_size)
    if top is not None:
        checks.sparse(hidden, top.ids, top.log_probs, vocab_size)
    checks.accumulation(accum_dtype or statistics_dtype(dtype), dtype, statistics_dtype(dtype))
    knobs = knobs_of(kd_weight, ce_weight, temperature, KINDS[kind].mix if mix is None else mix, hidden.device, dtype)
    native = rows.has_native(kind, teacher, knobs.requires_grad, dtype)
    impl = pick("linear_divergence", impl, hidden, rows.triton_needs(teacher), native)
    total, parts, *_ = torch.ops.tutelage.linear_divergence(
        hidden, head, targets, knobs,
        *((None, None, None, 1.0, None) if dense is None else dense),
        *((None, None) if top is None else top),
        kind, vocab_size, dtype,
        chunk_size or max(1, min(CHUNK.get(hidden.device.type, 1024), -(-len(hidden) // 2))),
        accum_dtype or statistics_dtype(dtype),
        not isinstance(temperature, float | int) or temperature != 1,
        # Inside a custom op grad mode is off, so the decision is made here and handed in.
        torch.is_grad_enabled() and (hidden.requires_grad or head.requires_grad or knobs.requires_grad),
        knobs.requires_grad, count,
        hidden.device.type == "cpu" if check_values is None else check_values, round_head_gradient, impl,
    )  # fmt: skip
    return LossSums(total, *parts.unbind())


@torch.library.custom_op("tutelage::linear_divergence", mutates_args=())
def _linear_divergence(
    hidden: Tensor,
    head: Tensor,
    targets: Tensor,
    knobs: Tensor,
    t_hidden: Tensor | None,
    t_head: Tensor | None,
    t_bias: Tensor | None,
    t_scale: float,
    t_cap: float | None,
    t_ids: Tensor | None,
    t_log_probs: Tensor | None,
    kind: str,
    vocab_size: int,
    dtype: torch.dtype,
    chunk_size: int,
    accum_dtype: torch.dtype,
    tempered: bool,
    with_grad: bool,
    by_temperature: bool,
    count: int | None,
    check_values: bool,
    rounded: bool,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(total, parts, ∂hidden, ∂head in the layout of its matmul, ∂knobs); the last three are empty without gradient."""
    dense = None if t_hidden is None or t_head is None else DenseTeacher(t_hidden, t_head, t_bias, t_scale, t_cap)
    top = None if t_ids is None or t_log_probs is None else TopK(t_ids, t_log_probs)
    work = Work(kind, vocab_size, tempered, with_grad, by_temperature, masked=t_bias is not None)
    plan = Plan(dtype, chunk_size, accum_dtype, count, check_values, rounded, impl)
    with torch.autocast(hidden.device.type, enabled=False):  # the dtypes given are meant
        return sweep(hidden, head, dense or top, targets, knobs, work, plan)


def sweep(
    hidden: Tensor,
    head: Tensor,
    teacher: DenseTeacher | TopK | None,
    targets: Tensor,
    knobs: Tensor,
    work: Work,
    plan: Plan,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The whole computation, chunk by chunk; see `_linear_divergence`."""
    dtype = plan.compute_dtype
    checks.target_values(targets, work.vocab_size, plan.count)
    picked = counted(targets, plan.count)  # ignored rows never reach a matmul
    if plan.check_values:
        _check_values(teacher, picked, work.vocab_size)
    weight = head.to(dtype)
    if isinstance(teacher, DenseTeacher):
        teacher = teacher._replace(head=teacher.head[: work.vocab_size].to(dtype))
    chunk = max(1, -(-len(picked) // max(1, -(-len(picked) // plan.chunk_size))))  # equal ones, none over the limit
    block = -(-chunk // T_BLOCKS.get(hidden.device.type, 1))
    logits = workspace("student", chunk, len(weight), weight)
    t_logits = workspace("teacher", block if isinstance(teacher, DenseTeacher) else 0, work.vocab_size, weight)
    sums = torch.zeros(3, dtype=knobs.dtype, device=hidden.device)
    d_hidden = hidden.new_empty(hidden.shape if work.with_grad else 0)
    if len(picked) < len(hidden):
        d_hidden.zero_()
    kept = dtype if plan.rounded else kept_dtype(dtype, plan.accum_dtype, head.dtype)
    d_head = HeadGradient(plan.accum_dtype if chunk < len(picked) else kept)

    for start in range(0, len(picked), chunk):
        mine = picked[start : start + chunk]
        x = hidden[mine].to(dtype)  # (C, D)
        s = torch.mm(x, weight.t(), out=logits[: len(mine)])  # (C, ≥V)
        for s_block, of_block in zip(torch.split(s, block), torch.split(mine, block), strict=True):
            asked = _of_block(teacher, of_block, t_logits)
            sums += row_work(plan.impl)(s_block, asked, targets[of_block], knobs, work)
        if work.with_grad:  # s now holds the gradient
            s[:, work.vocab_size :] = 0
            d_hidden[mine] = torch.mm(s, weight).to(hidden.dtype)
            d_head.add(x, s)

    total, parts, d_knobs = totals_of(sums, knobs, len(picked), work.with_grad)
    return total, parts, d_hidden, d_head.total(weight, kept) if work.with_grad else weight.new_empty(0), d_knobs


def _check_values(teacher: DenseTeacher | TopK | None, picked: Tensor, vocab_size: int) -> None:
    if isinstance(teacher, DenseTeacher):
        checks.dense_values(teacher.hidden, picked, "t_hidden")
    if isinstance(teacher, TopK):
        checks.sparse_values(teacher.ids, teacher.log_probs, picked, vocab_size)


def workspace(name: str, rows: int, width: int, like: Tensor) -> Tensor:
    """An uninitialised `(rows, width)` for use inside one call, whose rows begin at multiples of `ALIGNED`.

    On a CPU its memory is kept for this thread's next call: fresh pages cost as much time as the matmul that fills
    them. A GPU's allocator does the same by itself.
    """
    stride = -(-width // ALIGNED) * ALIGNED
    if like.device.type != "cpu":
        return like.new_empty(rows, stride)[:, :width]
    kept, key = _kept.__dict__, f"{name} {like.dtype}"
    if key not in kept or kept[key].numel() < rows * stride:
        with torch.inference_mode(False):  # or no later call could write to it
            kept[key] = like.new_empty(rows * stride)
    found: Tensor = kept[key][: rows * stride].view(rows, stride)[:, :width]
    return found


def forget_workspace() -> None:
    """Gives back what this thread keeps between calls."""
    _kept.__dict__.clear()


def _of_block(teacher: DenseTeacher | TopK | None, mine: Tensor, buffer: Tensor) -> ChunkTeacher:
    """The teacher's side of the rows with these indices `(C,)`; logits `(C, V)` go into the buffer."""
    if not isinstance(teacher, DenseTeacher):
        return rows.take(teacher, mine)
    t = torch.mm(teacher.hidden[mine].to(buffer.dtype), teacher.head.t(), out=buffer[: len(mine)])
    if teacher.bias is not None:
        t.add_(teacher.bias[: t.shape[1]])
    if teacher.scale != 1:
        t.mul_(teacher.scale)
    return t if teacher.cap is None else t.div_(teacher.cap).tanh_().mul_(teacher.cap)


def totals_of(sums: Tensor, knobs: Tensor, count: int, with_grad: bool) -> tuple[Tensor, Tensor, Tensor]:
    """total, (divergence, cross-entropy, count), and ∂total by each knob but the mix, which is nobody's to learn."""
    divergence, cross_entropy, by_temperature = sums.unbind()
    k = Knobs(*knobs.unbind())
    total = k.kd_weight * k.temperature**2 * divergence + k.ce_weight * cross_entropy
    parts = torch.stack((divergence, cross_entropy, torch.full_like(total, count)))
    if not with_grad:
        return total, parts, knobs.new_empty(0)
    slope = k.kd_weight * k.temperature * (2 * divergence + k.temperature * by_temperature)
    d_knobs = torch.stack((k.temperature**2 * divergence, cross_entropy, slope, torch.zeros_like(slope)))
    return total, parts, d_knobs


@_linear_divergence.register_fake
def _(
    hidden: Tensor, head: Tensor, targets: Tensor, knobs: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dtype, accum_dtype, with_grad, rounded = rest[9], rest[11], rest[13], rest[-2]
    weight = head.to(dtype)
    kept = dtype if rounded else kept_dtype(dtype, accum_dtype, head.dtype)
    gradients = (
        (hidden.new_empty(hidden.shape), HeadGradient.like(weight, kept), knobs.new_empty(4))
        if with_grad
        else (hidden.new_empty(0), weight.new_empty(0), knobs.new_empty(0))
    )
    return knobs.new_empty(()), knobs.new_empty(3), *gradients


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, parts, *gradients = output
    ctx.save_for_backward(*gradients)
    ctx.dtype, ctx.impl = inputs[1].dtype, inputs[-1]
    ctx.mark_non_differentiable(parts, *gradients)
    ctx.set_materialize_grads(False)  # or a dense zero (V, D) would be made for an output that nobody uses


def _backward(ctx: Any, grad_total: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    """The forward pass made the gradients; they are scaled here, and what was saved stays as it is."""
    needs_hidden, needs_head, _, needs_knobs = ctx.needs_input_grad[:4]
    if grad_total is None:
        return (None,) * len(ctx.needs_input_grad)
    d_hidden, d_head, d_knobs = ctx.saved_tensors
    return (
        *only_once(
            d_hidden * grad_total.to(d_hidden.dtype) if needs_hidden else None,
            scaled(d_head, grad_total, ctx.dtype, ctx.impl) if needs_head else None,
            None,
            d_knobs * grad_total if needs_knobs else None,
        ),
        *(None,) * (len(ctx.needs_input_grad) - 4),
    )


_linear_divergence.register_autograd(_backward, setup_context=_keep)


def row_work(impl: str) -> Callable[[Tensor, ChunkTeacher, Tensor, Tensor, Work], Tensor]:
    """The row work of an implementation, see `rows.eager`."""
    if impl == "triton":  # a user without a GPU may not have it
        from tutelage.kernels import triton_rows

        return triton_rows.rows
    return rows.compile if impl == "compile" else rows.eager


def counted(targets: Tensor, count: int | None) -> Tensor:
    """Indices of the rows that count, in order."""
    if count is None:
        return (targets != IGNORE).nonzero().squeeze(1)
    return (targets == IGNORE).to(torch.int8).argsort(stable=True)[:count]


def knobs_of(
    kd_weight: Tensor | float, ce_weight: Tensor | float, temperature: Tensor | float, mix: Tensor | float,
    device: torch.device, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """`Knobs` as one tensor `(4,)`; filled on the device, as a copy to it would wait for it."""
    stat = statistics_dtype(dtype)
    knobs = (kd_weight, ce_weight, temperature, mix)  # in the order of `Knobs`
    return torch.stack(
        [x.to(device, stat) if isinstance(x, Tensor) else torch.full((), x, dtype=stat, device=device) for x in knobs]
    )


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """That of maxima, sums and losses: fp32, or better."""
    return torch.promote_types(dtype, torch.float32)
