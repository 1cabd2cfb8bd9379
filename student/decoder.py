"""The student: a decoder that returns hidden states, and logits only where someone generates.

Shapes: B rows, T tokens, D width, V vocabulary, L cached tokens.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tutelage.errors import UserError
from tutelage.kernels.attention import documents, prepare
from tutelage.student.cache import KVCache
from tutelage.student.config import StudentConfig
from tutelage.student.layers import Block, make_norm, rope_table, sinusoids


class StudentOutput(NamedTuple):
    """`hidden (B, T, D)` after the final norm, and the residual stream after each tapped layer, `(B, T, D)` each."""

    hidden: Tensor
    taps: tuple[Tensor, ...] = ()


class Decoder(nn.Module):
    """A causal decoder of the given shape, randomly initialised."""

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        table = torch.empty(config.padded_vocab_size, config.d_model)
        self.embed_tokens = nn.Embedding(config.padded_vocab_size, config.d_model, _weight=table)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.norm = make_norm(config, config.d_model)
        self.lm_head = (
            None if config.tie_embeddings else nn.Linear(config.d_model, config.padded_vocab_size, bias=False)
        )
        if not table.is_meta:  # a skeleton to load into; drawing on meta would import half of torch besides
            self.initialise()

    def initialise(self) -> None:
        """Normal(0, 0.02); matrices that write to the residual stream shrink by 1/√(2·layers), as GPT-2's do."""
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1:
                continue  # norms start at one, their biases and those of linears below
            writes = name.endswith(("o_proj.weight", "down_proj.weight", "c_proj.weight"))
            nn.init.normal_(parameter, std=0.02 / (2 * self.config.n_layers) ** 0.5 if writes else 0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    @property
    def context(self) -> int:
        """See `CausalLM.context`."""
        return self.config.max_seq_len

    @property
    def head(self) -> Tensor:
        """The output matrix `(≥V, D)`; rows from `config.vocab_size` on are padding."""
        return (self.embed_tokens if self.lm_head is None else self.lm_head).weight

    def forward(
        self,
        tokens: Tensor,
        *,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
        cache: KVCache | None = None,
        taps: Sequence[int] = (),
    ) -> StudentOutput:
        """Hidden states of `tokens (B, T)`.

        `segments (B, T)` keeps the documents of a packed row apart; `positions (B, T)` default to 0, 1, … (or to
        what follows the cache). `taps` are numbers of layers whose output is returned too, in this order: 0 the first,
        −1 the last. Raises UserError for a layer that is not there, and for segments over a cache, which has none.
        """
        B, T = tokens.shape
        config = self.config
        layers = [self._layer(tap) for tap in taps]
        if segments is not None and cache is not None:
            raise UserError("a cache holds one document per row: give segments or a cache, not both")
        if positions is None:
            positions = torch.arange(T, device=tokens.device).expand(B, T) if cache is None else cache.positions(T)
        x = self.embed_tokens(tokens)  # (B, T, D)
        sight = None if cache is None else cache.visible(T)
        if segments is not None:
            sight = prepare(documents(segments), x, config.head_size)
        rope = None
        if config.position == "rope":
            rope = rope_table(positions, config.head_size, config.rope_theta)
        else:
            x = x + sinusoids(positions, config.d_model).to(x.dtype)
        x = F.dropout(x, config.dropout, self.training)
        tapped = {}
        for layer, block in enumerate(self.layers):
            # over a cache it is not compiled: each step would be, as the cache has grown
            run: Callable[..., Tensor] = block if cache is None else block._call_impl
            if self.gradient_checkpointing and self.training:
                x = checkpoint(run, x, rope, sight, cache, use_reentrant=False)
            else:
                x = run(x, rope, sight, cache)
            if layer in layers:
                tapped[layer] = x
        return StudentOutput(self.norm(x), tuple(tapped[layer] for layer in layers))

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Compiles each layer in place by `torch.compile`, for what comes without a cache; parameters keep their names.

        Before a wrapper for several processes, which then finds compiled layers. A new shape compiles again.
        """
        for block in self.layers:
            block.compile(dynamic=False, backend=backend)

    def _layer(self, tap: int) -> int:
        """The layer's number from 0 on."""
        n = len(self.layers)
        if not -n <= tap < n:
            raise UserError(f"there is no layer {tap} to tap: the model has {n}, 0 to {n - 1} or −1 from the end")
        return tap % n

    def logits(self, hidden: Tensor) -> Tensor:
        """`hidden (…, D)` → scores of the true vocabulary `(…, V)`; for inference, never for training."""
        return F.linear(hidden, self.head)[..., : self.config.vocab_size]

    def new_cache(self, batch: int, max_len: int) -> KVCache:
        """An empty cache in the embedding's dtype and on its device."""
        c, weight = self.config, self.embed_tokens.weight
        return KVCache(c.n_layers, batch, max_len, c.n_kv_heads, c.head_size, weight.dtype, str(weight.device))

    @torch.no_grad()
    def step(self, tokens: Tensor, cache: KVCache, counts: Tensor | None = None) -> Tensor:
        """See `CausalLM.step`."""
        hidden = self(tokens, cache=cache).hidden
        cache.advance(tokens.shape[1] if counts is None else counts)
        if counts is not None:
            hidden = hidden[torch.arange(len(counts), device=counts.device), counts - 1][:, None]
        return self.logits(hidden)
