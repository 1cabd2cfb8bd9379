"""Generation with any transformers model, one row at a time: their caches cannot keep rows of other lengths apart.

Shapes: B rows, T tokens, L tokens of one text, E teacher width, V vocabulary.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tutelage.student.cache import KVCache
from tutelage.student.decoder import Decoder
from tutelage.teacher.text_model import TextModel


@dataclass
class Row:
    """A text so far, `ids (L,)`, and what transformers remembers of it."""

    ids: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    past: Any = None


@dataclass
class RowCache:
    """The texts of a batch."""

    rows: list[Row]

    def select(self, rows: Tensor) -> None:
        """Keeps these rows `(B',)` alone."""
        self.rows = [self.rows[row] for row in rows.tolist()]


@dataclass(frozen=True)
class RowwiseLM:
    """A `CausalLM` around a transformers model.

    Without `cached` each token costs the whole text again: for models that remember in ways of their own.
    """

    text: TextModel
    cached: bool = True

    @property
    def context(self) -> int | None:
        """See `CausalLM.context`."""
        return self.text.context

    def new_cache(self, batch: int, max_len: int) -> RowCache:
        """Empty caches, which grow as they must."""
        return RowCache([Row() for _ in range(batch)])

    @torch.no_grad()
    def step(self, tokens: Tensor, cache: RowCache, counts: Tensor | None = None) -> Tensor:
        """See `CausalLM.step`."""
        lengths = [tokens.shape[1]] * len(tokens) if counts is None else counts.tolist()
        rows = [self._advance(row, new[:length]) for row, new, length in zip(cache.rows, tokens, lengths, strict=True)]
        return self.text.logits(torch.cat([row if counts is None else row[:, -1:] for row in rows]))

    def _advance(self, row: Row, new: Tensor) -> Tensor:
        """States `(1, T, E)` of the text's next tokens `new (T,)`."""
        seen = len(row.ids)
        row.ids = torch.cat((row.ids.to(new.device), new))
        if not self.cached:
            return self.text.run(row.ids[None])[0][:, seen:]
        again = self.text.starts_again_at
        if seen == 0 or (again is not None and seen <= again < len(row.ids)):
            row.past = self._new_past()
            return self._extend(row, 0, len(row.ids))[:, seen:]
        return torch.cat([self._extend(row, at, at + 1) for at in range(seen, len(row.ids))], 1)

    def _extend(self, row: Row, start: int, end: int) -> Tensor:
        """States of its tokens from `start` to `end`, which join what is remembered."""
        options: dict[str, Any] = {str(self.text.cache_name): row.past, "use_cache": True}
        if self.text.takes_positions:  # not all count what they remember
            options["position_ids"] = torch.arange(start, end, device=row.ids.device)[None]
        return self.text.run(row.ids[None, start:end], **options)[0]

    def _new_past(self) -> Any:
        from transformers import DynamicCache

        return DynamicCache(config=self.text.config)


@dataclass(frozen=True)
class WindowedLM:
    """A decoder whose layers all see everything, for texts that fit the model's window; the model for longer ones."""

    decoder: Decoder
    model: RowwiseLM

    @property
    def context(self) -> int | None:
        """See `CausalLM.context`."""
        return self.model.context

    def new_cache(self, batch: int, max_len: int) -> KVCache | RowCache:
        """The cache of whichever is exact for texts of this length."""
        chosen = self.decoder if max_len <= self.decoder.context else self.model
        return chosen.new_cache(batch, max_len)

    def step(self, tokens: Tensor, cache: KVCache | RowCache, counts: Tensor | None = None) -> Tensor:
        """See `CausalLM.step`."""
        if isinstance(cache, RowCache):
            return self.model.step(tokens, cache, counts)
        return self.decoder.step(tokens, cache, counts)
