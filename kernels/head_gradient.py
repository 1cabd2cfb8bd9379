"""∂head: summed over chunks in the layout of its fastest matmul, and handed over scaled, in that of the head.

Shapes: C tokens of a chunk, V vocabulary, D student width.
"""

import torch
from torch import Tensor

from tutelage.kernels import native

STRIP = 8192
"""Columns that are summed at a time on a CPU."""


class HeadGradient:
    """∂head, the sum of sᵀ·x over chunks, `(D, ≥V)` on a CPU and `(≥V, D)` elsewhere: as its matmul is fastest.

    Where the sum has a better dtype than the products, a CPU adds them in strips of columns: a product stays in cache
    until it is added, and a strip of the sum is gone before the next one is rounded.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.sums: list[Tensor] = []

    def add(self, x: Tensor, s: Tensor) -> None:
        """Of one chunk: `x (C, D)`, `s (C, ≥V)`."""
        if s.device.type != "cpu":
            self._add(0, s.t(), x)
            return
        left = x.t().contiguous()
        for strip, columns in enumerate(torch.split(s, STRIP if self.dtype != s.dtype else s.shape[1], dim=1)):
            self._add(strip, left, columns)

    def _add(self, strip: int, left: Tensor, right: Tensor) -> None:
        if strip == len(self.sums):
            self.sums.append((left @ right).to(self.dtype))
        elif self.dtype == left.dtype:
            self.sums[strip].addmm_(left, right)
        elif left.device.type == "cpu":
            self.sums[strip].add_(left @ right)
        else:
            torch.addmm(self.sums[strip], left, right, out_dtype=self.dtype, out=self.sums[strip])

    def total(self, weight: Tensor) -> Tensor:
        """The sum in the dtype of the head's `weight (≥V, D)`; it is then no longer here."""
        if len(self.sums) == 1:
            return self.sums.pop().to(weight.dtype)
        whole = self.like(weight)
        if not self.sums:
            return whole.zero_()
        for columns in torch.split(whole, STRIP, dim=1):
            columns.copy_(self.sums.pop(0))
        return whole

    @staticmethod
    def like(weight: Tensor) -> Tensor:
        """An uninitialised ∂head."""
        return weight.new_empty(weight.shape[::-1] if weight.device.type == "cpu" else weight.shape)


def scaled(d_head: Tensor, scale: Tensor, dtype: torch.dtype, impl: str) -> Tensor:
    """`scale · ∂head (V, D)` in `dtype`, of what `HeadGradient.total` gave; that stays as it is."""
    if d_head.device.type == "cpu":
        transposed: Tensor = _scaled_transpose(d_head, scale, dtype, impl)
        return transposed
    return torch.mul(d_head, scale, out=torch.empty_like(d_head, dtype=dtype))  # no fp32 copy in between


@torch.library.custom_op("tutelage::scaled_transpose", mutates_args=())
def _scaled_transpose(source: Tensor, scale: Tensor, dtype: torch.dtype, impl: str) -> Tensor:
    """`scale · source.T (V, D)` for `source (D, V)` on a CPU, in tiles or strips that stay in cache."""
    if impl == "compile" and native.takes(source.dtype, dtype) and not isinstance(native.library(), str):
        return native.scaled_transpose(source, scale.item(), dtype)
    target = source.new_empty(source.shape[::-1], dtype=dtype)
    for strip, turned in zip(torch.split(source, 64), torch.split(target, 64, dim=1), strict=True):
        turned.copy_(strip.t()).mul_(scale)
    return target


@_scaled_transpose.register_fake
def _(source: Tensor, scale: Tensor, dtype: torch.dtype, impl: str) -> Tensor:
    return source.new_empty(source.shape[::-1], dtype=dtype)
