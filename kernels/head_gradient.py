"""∂head: summed over chunks in the layout of its fastest matmul, and handed over scaled, in that of the head.

Shapes: C tokens of a chunk, V vocabulary, D student width.
"""

from functools import cache

import torch
from torch import Tensor

from tutelage.kernels import native

STRIP = 8192
"""Columns that are multiplied and added at a time on a CPU, so that a product stays in cache until it is added."""


class HeadGradient:
    """∂head, the sum of sᵀ·x over chunks, `(D, ≥V)` on a CPU and `(≥V, D)` elsewhere: as its matmul is fastest."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        """That of the sum."""
        self.sum: Tensor | None = None

    def add(self, x: Tensor, s: Tensor) -> None:
        """Of one chunk: `x (C, D)`, `s (C, ≥V)`."""
        if s.device.type == "cpu":
            left, right = x.t().contiguous(), s
        else:
            left, right = s.t(), x
        fresh = self.sum is None
        if self.sum is None:
            self.sum = left.new_empty(len(left), right.shape[1], dtype=self.dtype)
        strip = STRIP if s.device.type == "cpu" and self.dtype != s.dtype else right.shape[1]
        for total, columns in zip(torch.split(self.sum, strip, 1), torch.split(right, strip, 1), strict=True):
            _add(total, left, columns, fresh)

    def total(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """The sum in this dtype, for the head's `weight (≥V, D)`; it is then no longer here."""
        found, self.sum = self.sum, None
        return self.like(weight, dtype).zero_() if found is None else found.to(dtype)

    @staticmethod
    def like(weight: Tensor, dtype: torch.dtype) -> Tensor:
        """An uninitialised ∂head."""
        return weight.new_empty(weight.shape[::-1] if weight.device.type == "cpu" else weight.shape, dtype=dtype)


def kept_dtype(dtype: torch.dtype, accum_dtype: torch.dtype, head: torch.dtype) -> torch.dtype:
    """What ∂head is kept in until it is scaled, for matmuls in `dtype`.

    A sum in fp32 is rounded once, when it is scaled, and before that only for a head that is no wider than the matmuls.
    In fp16 the sum of many tokens overflows where their mean does not.
    """
    return accum_dtype if dtype == torch.float16 or torch.promote_types(dtype, head) != dtype else dtype


def _add(total: Tensor, left: Tensor, right: Tensor, fresh: bool) -> None:
    """total += left @ right, or total = left @ right."""
    if total.dtype == left.dtype:
        torch.addmm(total, left, right, beta=0 if fresh else 1, out=total)
    elif adds_wide(left.device, left.dtype):
        torch.addmm(total, left, right, beta=0 if fresh else 1, out_dtype=total.dtype, out=total)
    else:
        if left.dtype == torch.float16:  # or one chunk's product would overflow
            left, right = left.to(total.dtype), right.to(total.dtype)
        product = left @ right
        total.copy_(product) if fresh else total.add_(product)


@cache
def adds_wide(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether products of this dtype can be added to an fp32 sum without being rounded: on CUDA, tried once."""
    if device.type == "cpu":
        return False
    factor = torch.zeros(16, 16, dtype=dtype, device=device)
    total = factor.float()
    try:
        torch.addmm(total, factor, factor, out_dtype=torch.float32, out=total)
    except (RuntimeError, TypeError):
        return False
    return True


def scaled(d_head: Tensor, scale: Tensor, dtype: torch.dtype, impl: str) -> Tensor:
    """`scale · ∂head (V, D)` in `dtype`, of what `HeadGradient.total` gave; that stays as it is."""
    if d_head.device.type == "cpu":
        transposed: Tensor = _scaled_transpose(d_head, scale, dtype, impl)
        return transposed
    if torch.promote_types(d_head.dtype, dtype) != d_head.dtype:
        return d_head.to(dtype).mul_(scale)
    return torch.mul(d_head, scale, out=torch.empty_like(d_head, dtype=dtype))  # no fp32 copy in between


@torch.library.custom_op("tutelage::scaled_transpose", mutates_args=())
def _scaled_transpose(source: Tensor, scale: Tensor, dtype: torch.dtype, impl: str) -> Tensor:
    """`scale · source.T (V, D)` for `source (D, V)` on a CPU, in tiles or strips that stay in cache."""
    if impl == "compile" and native.takes(source.dtype, dtype) and not isinstance(native.library(), str):
        return native.scaled_transpose(source, scale.item(), dtype)
    target = source.new_empty(source.shape[::-1], dtype=dtype)
    for strip, turned in zip(torch.split(source, 64), torch.split(target, 64, dim=1), strict=True):
        turned.copy_(strip.t().to(torch.promote_types(source.dtype, dtype)) * scale)
    return target


@_scaled_transpose.register_fake
def _(source: Tensor, scale: Tensor, dtype: torch.dtype, impl: str) -> Tensor:
    return source.new_empty(source.shape[::-1], dtype=dtype)
