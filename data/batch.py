"""`Batch`: the rows that teacher, student and every loss see, with targets shifted once, here.

Shapes: B rows, T tokens per row.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property

import torch
from torch import Tensor

from tutelage.kernels.reference import IGNORE

__all__ = ["IGNORE", "Batch", "concatenate"]


@dataclass(frozen=True)
class Batch:
    """Packed rows. `targets[b, t]` is the token after `tokens[b, t]` in its document, or `IGNORE`."""

    tokens: Tensor
    """(B, T) int64: token ids."""

    targets: Tensor
    """(B, T) int64: next token ids, already shifted, or `IGNORE`."""

    segments: Tensor
    """(B, T) int64: index of the document within its row; attention must not cross a change of it."""

    positions: Tensor
    """(B, T) int64: distance from the start of the segment, in tokens."""

    keys: Tensor
    """(B,) int64: a hash of each row's tokens and segments, the same in every run; on the host wherever the rest is."""

    @cached_property
    def count(self) -> int:
        """The number of targets that are trained."""
        return int((self.targets != IGNORE).sum())

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on `device`, counted before it leaves: to ask afterwards would be to wait for the device."""
        moved = replace(self._map(lambda tensor: tensor.to(device, non_blocking=True)), keys=self.keys)
        vars(moved)["count"] = self.count
        return moved

    def take(self, rows: Tensor) -> "Batch":
        """The rows with these indices `(N,)`, in this order."""
        return self._map(lambda tensor: tensor[rows.to(tensor.device)])

    def split(self, n: int) -> "list[Batch]":
        """Up to `n` micro-batches along B, in order, sizes differing by one at most, none empty."""
        parts = [getattr(self, field.name).tensor_split(min(n, len(self.tokens))) for field in fields(self)]
        return [Batch(*tensors) for tensors in zip(*parts, strict=True)]

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        return Batch(*(change(getattr(self, field.name)) for field in fields(self)))


def concatenate(batches: list[Batch]) -> Batch:
    """One batch with the rows of all `batches`, which share T, in order."""
    return Batch(*(torch.cat([getattr(b, field.name) for b in batches]) for field in fields(Batch)))
