"""Generation with any transformers model, one row at a time: their caches cannot keep rows of other lengths apart.

Shapes: B rows, T tokens, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class RowCache:
    """A transformers cache per row."""

    rows: list[Any]

    def select(self, rows: Tensor) -> None:
        """Keeps these rows `(B',)` alone."""
        self.rows = [self.rows[row] for row in rows.tolist()]


@dataclass(frozen=True)
class RowwiseLM:
    """A `CausalLM` around a transformers model, for the first `vocab_size` of its scores."""

    model: Any
    vocab_size: int
    context: int | None = None

    def new_cache(self, batch: int, max_len: int) -> RowCache:
        """Empty caches, which grow as they must."""
        from transformers import DynamicCache

        return RowCache([DynamicCache() for _ in range(batch)])

    @torch.no_grad()
    def step(self, tokens: Tensor, cache: RowCache, counts: Tensor | None = None) -> Tensor:
        """See `CausalLM.step`."""
        lengths = [tokens.shape[1]] * len(tokens) if counts is None else counts.tolist()
        rows = [
            self.model(input_ids=row[None, :length], past_key_values=past, use_cache=True).logits
            for row, length, past in zip(tokens, lengths, cache.rows, strict=True)
        ]
        logits = torch.cat([row if counts is None else row[:, -1:] for row in rows])
        return logits[..., : self.vocab_size]
