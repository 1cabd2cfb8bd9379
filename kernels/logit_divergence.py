"""The same loss of logits that already exist, as a loss outside of a decoder has them.

Shapes: N tokens, V vocabulary, k tokens of a sparse teacher.
"""

from typing import Any

import torch
from torch import Tensor

from tutelage.kernels import checks
from tutelage.kernels.dispatch import Impl, pick
from tutelage.kernels.divergences import KINDS
from tutelage.kernels.launch import only_once
from tutelage.kernels.linear_divergence import LossSums, counted, knobs_of, row_work, totals_of
from tutelage.kernels.rows import ChunkTeacher, TopK, Work, has_native, take, triton_needs


def logit_divergence(
    logits: Tensor,
    teacher: Tensor | TopK | None,
    targets: Tensor,
    *,
    kind: str = "forward_kl",
    mix: Tensor | float | None = None,
    temperature: Tensor | float = 1.0,
    kd_weight: Tensor | float = 1.0,
    ce_weight: Tensor | float = 0.0,
    check_values: bool | None = None,
    impl: Impl = "auto",
) -> LossSums:
    """As `linear_divergence`, of student `logits (N, V)` and the teacher's logits `(N, V)` or top k.

    One copy of the logits becomes their gradient; the teacher's are only read.
    """
    checks.logits(logits, targets)
    checks.options(kind, mix, temperature, sparse=isinstance(teacher, TopK))
    if isinstance(teacher, TopK):
        checks.sparse(logits, teacher.ids, teacher.log_probs, logits.shape[1])
    elif teacher is not None:
        checks.teacher_logits(logits, teacher)
    knobs = knobs_of(
        kd_weight, ce_weight, temperature, KINDS[kind].mix if mix is None else mix, logits.device, logits.dtype
    )
    dtypes = [x.dtype for x in (logits, teacher) if isinstance(x, Tensor)]
    native = has_native(kind, teacher, knobs.requires_grad, *dtypes)
    impl = pick("logit_divergence", impl, logits, triton_needs(teacher), native)
    total, parts, *_ = torch.ops.tutelage.logit_divergence(
        logits, targets, knobs,
        teacher if isinstance(teacher, Tensor) else None,
        *(teacher if isinstance(teacher, TopK) else (None, None)),
        kind,
        not isinstance(temperature, float | int) or temperature != 1,
        torch.is_grad_enabled() and (logits.requires_grad or knobs.requires_grad),
        knobs.requires_grad,
        logits.device.type == "cpu" if check_values is None else check_values, impl,
    )  # fmt: skip
    return LossSums(total, *parts.unbind())


@torch.library.custom_op("tutelage::logit_divergence", mutates_args=())
def _logit_divergence(
    logits: Tensor,
    targets: Tensor,
    knobs: Tensor,
    t_logits: Tensor | None,
    t_ids: Tensor | None,
    t_log_probs: Tensor | None,
    kind: str,
    tempered: bool,
    with_grad: bool,
    by_temperature: bool,
    check_values: bool,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(total, parts, ∂logits, ∂knobs); the last two are empty without gradient."""
    work = Work(kind, logits.shape[1], tempered, with_grad, by_temperature, masked=True)
    checks.target_values(targets, work.vocab_size, None)
    picked = counted(targets, None)
    teacher: ChunkTeacher = t_logits if t_ids is None or t_log_probs is None else TopK(t_ids, t_log_probs)
    if check_values and isinstance(teacher, TopK):
        checks.sparse_values(teacher.ids, teacher.log_probs, picked, logits.shape[1])
    elif check_values and isinstance(teacher, Tensor):
        checks.no_nan(teacher, picked)
    whole = len(picked) == len(logits)
    s = logits.clone(memory_format=torch.contiguous_format) if whole else logits[picked]
    sums = row_work(impl)(s, teacher if whole else take(teacher, picked), targets[picked], knobs, work)
    total, parts, d_knobs = totals_of(sums, knobs, len(picked), with_grad)
    if not with_grad:
        return total, parts, logits.new_empty(0), d_knobs
    d_logits = s if whole else torch.zeros_like(logits).index_copy_(0, picked, s)
    return total, parts, d_logits, d_knobs


@_logit_divergence.register_fake
def _(logits: Tensor, targets: Tensor, knobs: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    with_grad = rest[5]
    d_logits = torch.empty_like(logits, memory_format=torch.contiguous_format) if with_grad else logits.new_empty(0)
    return knobs.new_empty(()), knobs.new_empty(3), d_logits, knobs.new_empty(4 if with_grad else 0)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, parts, *gradients = output
    ctx.save_for_backward(*gradients)
    ctx.mark_non_differentiable(parts, *gradients)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_total: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    needs_logits, _, needs_knobs, *rest = ctx.needs_input_grad
    d_logits, d_knobs = ctx.saved_tensors
    if grad_total is None:
        return (None,) * len(ctx.needs_input_grad)
    return (
        *only_once(
            d_logits * grad_total.to(d_logits.dtype) if needs_logits else None,
            None,
            d_knobs * grad_total if needs_knobs else None,
        ),
        *(None for _ in rest),
    )


_logit_divergence.register_autograd(_backward, setup_context=_keep)
