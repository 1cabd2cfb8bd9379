"""The text part of a transformers model: tokens in, hidden states out, with documents that never see each other.

Shapes: B rows, T tokens, E width, V vocabulary, n documents of length L.
"""

import inspect
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.data.batch import Batch
from tutelage.errors import UserError
from tutelage.kernels.reference import teacher_logits
from tutelage.teacher import text_config

States = tuple[Tensor, tuple[Tensor, ...]]
"""Hidden states `(B, T, E)` that the head scores, and the residual stream after the layers asked for."""


class TextModel:
    """What turns tokens into hidden states and those into scores, without eyes and ears if the model has any.

    `packs_up_to` is the longest row in which documents stand side by side, kept apart by positions that begin again:
    transformers then draws the borders into whatever mask each layer has. In longer rows, and everywhere at 0, each
    document is run by itself. None is no limit.
    """

    def __init__(self, model: Any, vocab_size: int) -> None:
        self.config: Any = model.config.get_text_config(decoder=True)
        self.module: Any = _decoder(model)
        self.layers = layers(self.module)
        self.context = text_config.context(self.config)
        self.vocab_size = vocab_size
        self.scale, self.cap = text_config.scale_and_cap(self.config)
        self._head = model.get_output_embeddings()
        takes = inspect.signature(self.module.forward).parameters
        self.takes_positions = "position_ids" in takes
        self.packs_up_to = text_config.packs_up_to(self.config) if self.takes_positions else 0
        self.cache_name = next((name for name in ("past_key_values", "cache_params") if name in takes), None)
        """What it calls the cache of transformers, if it takes one."""
        overrides = "prepare_inputs_for_generation" in vars(type(model))
        self.starts_again_at = text_config.long_rope(self.config) if overrides else None
        """Length beyond which its makers let generation begin with a new cache, as Phi-3's do."""
        self.sharded = False

    @property
    def head(self) -> Tensor:
        """The output matrix `(≥V, E)`: the one that the model multiplies by, whatever its configuration says."""
        weight: Tensor = self._head.weight
        return weight

    @property
    def bias(self) -> Tensor | None:
        """What is added to the scores `(≥V,)`, by the few models that do."""
        return getattr(self._head, "bias", None)

    def logits(self, hidden: Tensor) -> Tensor:
        """`hidden (…, E)` → scores `(…, V)`."""
        return teacher_logits(hidden, self.head, self.bias, self.scale, self.cap)[..., : self.vocab_size]

    def __call__(self, batch: Batch, taps: Sequence[int] = ()) -> States:
        """States of a batch. Raises UserError for a layer that is not there."""
        if self.packs_up_to is None or batch.tokens.shape[1] <= self.packs_up_to:
            return self.packed(batch, taps)
        return self.by_document(batch, taps)

    def packed(self, batch: Batch, taps: Sequence[int] = ()) -> States:
        """All documents of a row in one call."""
        return self.run(batch.tokens, taps, position_ids=batch.positions)

    def by_document(self, batch: Batch, taps: Sequence[int] = ()) -> States:
        """Each document by itself, those of equal length in one call.

        Raises UserError where the module is cut up over processes, which would gather weights at other times each.
        """
        if self.sharded:
            way = f" or pass --packing.seq_len {self.packs_up_to} or less" if self.packs_up_to else ""
            raise UserError(
                f"rows of {batch.tokens.shape[1]} tokens are run document by document, which no teacher that is cut up"
                f" can: leave out --fsdp{way}"
            )
        places = defaultdict(list)
        for row, start, length in _documents(batch.segments):
            places[length].append((row, start))
        whole: list[Tensor] = []
        for length, found in places.items():
            rows, starts = torch.tensor(found, device=batch.tokens.device)[:, :, None].unbind(1)  # (n, 1) each
            at = rows, starts + torch.arange(length, device=rows.device)  # (n, L)
            hidden, tapped = self.run(batch.tokens[at], taps)
            parts = (hidden, *tapped)
            whole = whole or [part.new_empty((*batch.tokens.shape, part.shape[-1])) for part in parts]
            for states, part in zip(whole, parts, strict=True):
                states[at] = part
        return whole[0], tuple(whole[1:])

    @torch.no_grad()
    def run(self, tokens: Tensor, taps: Sequence[int] = (), **options: Any) -> States:
        """States of `tokens (B, T)`, each row one text, unless `options` of the module say otherwise."""
        numbers = [self._layer(tap) for tap in taps]
        self.forget_lengths()
        with _tapped(self.layers, numbers) as found:
            out = self.module(input_ids=tokens, **{"use_cache": False, **options})
        # some keep their residual stream in fp32
        return out.last_hidden_state.to(self.head.dtype), tuple(found[number] for number in numbers)

    def forget_lengths(self) -> None:
        """Dynamic frequencies stay those of the longest text so far, until a short one comes: here it is."""
        if text_config.remembers_length(self.config):
            short = torch.zeros((1, 1), dtype=torch.long, device=self.head.device)
            self.module(input_ids=short, use_cache=False)

    def _layer(self, tap: int) -> int:
        n = len(self.layers)
        if not -n <= tap < n:
            raise UserError(f"there is no layer {tap} to tap: the teacher has {n}, 0 to {n - 1} or −1 from the end")
        return tap % n


def layers(module: nn.Module) -> list[nn.Module]:
    """The longest list of modules that is not inside another (experts are lists inside layers)."""
    lists = {name: child for name, child in module.named_modules() if isinstance(child, nn.ModuleList)}
    outer = [lists[name] for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    return [*max(outer, key=len, default=nn.ModuleList())]


def _decoder(model: Any) -> Any:
    """What `get_decoder` finds, or the model inside where it finds the whole again (Llama-4)."""
    found = model.get_decoder()
    if found is not model:
        return found
    inside = [child for child in model.children() if hasattr(child, "get_input_embeddings")]
    if not inside:
        raise UserError(f"{type(model).__name__} has no decoder inside that could be run without its head")
    return inside[0]


def _documents(segments: Tensor) -> Iterator[tuple[int, int, int]]:
    """Row, start and length of each run of one number in `segments (B, T)`."""
    T = segments.shape[1]
    begins = torch.ones_like(segments, dtype=torch.bool)
    begins[:, 1:] = segments[:, 1:] != segments[:, :-1]
    rows, starts = (indices.tolist() for indices in begins.nonzero(as_tuple=True))
    for (row, start), (after, end) in zip(
        zip(rows, starts, strict=True), [*zip(rows[1:], starts[1:], strict=True), (len(segments), 0)], strict=True
    ):
        yield row, start, (end if after == row else T) - start


@contextmanager
def _tapped(modules: Sequence[nn.Module], numbers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Fills a dictionary with what these layers put out while the context is open; some put out more than states."""
    found: dict[int, Tensor] = {}

    def keep(number: int, module: nn.Module, args: Any, output: Any) -> None:
        found[number] = output[0] if isinstance(output, tuple | list) else output

    handles = [modules[number].register_forward_hook(partial(keep, number)) for number in sorted({*numbers})]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
