"""Root-mean-square normalisation in few passes over memory.

Shapes: N tokens (any leading shape), D width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.kernels.launch import only_once


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`weight · x / √(mean(x²) + eps)` for `x (…, D)`, `weight (D,)`, statistics in fp32. arXiv:1910.07467.

    The normalised rows are rounded to the dtype of `x` before the weight, as Llama does.
    """
    if x.device.type == "cpu" and not torch.compiler.is_compiling():  # a compiler fuses the composite itself
        out: Tensor = _RMSNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
        return out
    return weight * F.rms_norm(x.float(), weight.shape, eps=eps).to(x.dtype)


class _RMSNorm(torch.autograd.Function):
    """For CPUs, where each pass over memory costs and the composite makes many, forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        stat = torch.promote_types(x.dtype, torch.float32)
        square = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=stat).square_()
        scale = square.div_(x.shape[-1]).add_(eps).rsqrt_()  # (N, 1)
        ctx.save_for_backward(x, weight, scale)
        out: Tensor = (x * scale).to(x.dtype) * weight
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        rows = (grad * x).reshape(-1, x.shape[-1]).to(scale.dtype)  # (N, D)
        d_weight = scale.view(1, -1) @ rows  # (1, D)
        along = (rows @ weight.to(rows.dtype)).view_as(scale)  # Σ_d grad·weight·x
        d_x = (grad * weight * scale).addcmul_(x, along * scale**3, value=-1 / x.shape[-1])
        return only_once(d_x.to(x.dtype), d_weight[0].to(weight.dtype), None)
