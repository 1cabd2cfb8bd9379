"""Keys and values of the tokens seen so far, one length per row, so that rows can advance and rewind alone.

Shapes: B rows, T new tokens, L capacity, K key/value heads, Dh head width.
"""

from typing import Any, Protocol

import torch
from torch import Tensor

from tutelage.kernels.attention import Sight, so_far


class KVCache:
    """Preallocated keys and values of every layer; `length (B,)` counts the tokens each row holds."""

    def __init__(
        self,
        n_layers: int,
        batch: int,
        max_len: int,
        n_kv_heads: int,
        d_head: int,
        dtype: torch.dtype,
        device: str,
    ) -> None:
        shape = (n_layers, batch, n_kv_heads, max_len, d_head)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.length = torch.zeros(batch, dtype=torch.long, device=device)
        self.max_len = max_len
        self._used = 0  # the longest row, known on the host

    def positions(self, T: int) -> Tensor:
        """Positions `(B, T)` of the next T tokens. Raises ValueError when they do not fit."""
        if self._used + T > self.max_len:
            raise ValueError(f"{self._used} + {T} tokens exceed the cache of {self.max_len}")
        return self.length[:, None] + torch.arange(T, device=self.length.device)

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Writes `k, v (B, K, T, Dh)` after each row's tokens; returns all keys and values `(B, K, ≤L, Dh)`.

        The rows advance only on `advance`, so that every layer writes to the same place.
        """
        T = k.shape[2]
        where = self.positions(T)  # (B, T)
        rows = torch.arange(len(where), device=where.device)[:, None]
        # Advanced indices around a slice put the indexed axes first: (B, T, K, Dh).
        self.keys[layer][rows, :, where] = k.transpose(1, 2).to(self.keys.dtype)
        self.values[layer][rows, :, where] = v.transpose(1, 2).to(self.values.dtype)
        end = self._used + T
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def visible(self, T: int) -> Sight:
        """Which stored keys each of the next T tokens may see: its row's past and itself."""
        return so_far(self.positions(T), self._used + T)

    def advance(self, counts: Tensor | int) -> None:
        """Counts the tokens just written: the same for all rows, or `(B,)` where the rest was padding."""
        self.length += counts
        self._used = int(self.length.max())

    def rewind(self, counts: Tensor | int) -> None:
        """Forgets the last tokens, per row `(B,)` or of all rows. Raises ValueError below zero."""
        if (self.length < counts).any():
            raise ValueError(f"cannot rewind {counts} tokens of rows that hold {self.length.tolist()}")
        self.advance(-counts)

    def select(self, rows: Tensor) -> None:
        """Keeps these rows `(B',)` alone: finished sequences stop costing time."""
        self.keys, self.values, self.length = self.keys[:, rows], self.values[:, rows], self.length[rows]
        self._used = int(self.length.max())


class CausalLM(Protocol):
    """What generation needs of a model; student and teacher both are one. The cache is the model's own affair,
    but for `select(rows)`; that of a `Decoder` also rewinds."""

    @property
    def context(self) -> int | None:
        """Longest text it can take in, in tokens; None where there is no such limit."""

    def new_cache(self, batch: int, max_len: int) -> Any:
        """An empty cache for this model."""

    def step(self, tokens: Tensor, cache: Any, counts: Tensor | None = None) -> Tensor:
        """Logits `(B, T, V)` of `tokens (B, T)`, which are appended to the cache.

        With `counts (B,)` the rows are right-padded: only their first tokens count, and the logits `(B, 1, V)`
        are those of each row's last counted token.
        """
