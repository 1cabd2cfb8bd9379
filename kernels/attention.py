"""Causal grouped-query attention that keeps packed documents apart and rotates what it is given.

Triton where it is chosen (`triton_attention`, `triton_decode`), else PyTorch's fused op or, for training on CPUs, three
plain operations.

Shapes: B rows, T queries, L keys, H query heads, K key/value heads, G = H / K, Dh head width.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.kernels.dispatch import Impl, compiled, pick

Rope = tuple[Tensor, Tensor]
"""cos and sin of each token's angles, each `(B or 1, 1, T, Dh)` in fp32 with equal halves."""
EXPLICIT_LIMIT = 512
"""Longest row for which the explicit form is used on a CPU: its scores are held, and up to here it is faster."""
WIDEST = 128
"""Head size up to which there is a Triton kernel; wider ones take PyTorch's."""


@dataclass
class Sight:
    """What each query may see: of its row's keys those from `first` to `last`, both `(B, T)` and included."""

    first: Tensor
    last: Tensor
    keys: int
    """How many keys there are, L."""
    _mask: Tensor | None = None

    @property
    def mask(self) -> Tensor:
        """The same as booleans `(B, 1, T, L)`, True where seen; made once for all layers."""
        if self._mask is None:  # torch.compile follows this, and not a cached_property
            key = torch.arange(self.keys, device=self.last.device)
            self._mask = ((self.first[..., None] <= key) & (key <= self.last[..., None]))[:, None]
        return self._mask


def documents(segments: Tensor) -> Sight:
    """Causal within each document of a packed row; a document is a run of equal numbers in `segments (B, T)`."""
    place = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
    starts = torch.ones_like(segments, dtype=torch.bool)
    starts[:, 1:] = segments[:, 1:] != segments[:, :-1]
    return Sight(torch.where(starts, place, 0).cummax(1).values, place, segments.shape[1])


def so_far(positions: Tensor, keys: int) -> Sight:
    """Everything up to the query's own slot of a cache, `positions (B, T)`."""
    return Sight(torch.zeros_like(positions), positions, keys)


def attention(
    q: Tensor, k: Tensor, v: Tensor, sight: Sight | None = None, rope: Rope | None = None, impl: Impl = "auto"
) -> Tensor:
    """softmax(q kᵀ / √Dh) v over what is seen, for `q (B, H, T, Dh)`, `k, v (B, K, T, Dh)` → `(B, H, T, Dh)`.

    Without a `sight` it is plain causal. q and k are rotated by `rope`. Raises ValueError where K does not divide H.
    """
    impl = _pick(q, k, impl)
    if impl == "triton":
        from tutelage.kernels.triton_attention import causal_attention

        return causal_attention(q, k, v, None if sight is None else sight.first, rope)
    if rope is not None:
        q, k = rotate(q, *rope), rotate(k, *rope)
    mask = None if sight is None else sight.mask
    trains = torch.is_grad_enabled() and q.requires_grad
    if trains and (impl == "compile" or (q.device.type == "cpu" and q.shape[2] <= EXPLICIT_LIMIT)):
        return (compiled(_explicit) if impl == "compile" else _explicit)(q, k, v, mask)
    return _fused(q, k, v, mask)


def cached_attention(
    q: Tensor, k: Tensor, v: Tensor, sight: Sight, rope: Rope | None = None, impl: Impl = "auto"
) -> Tensor:
    """The same for new tokens `q (B, H, T, Dh)` over a cache `k, v (B, K, L, Dh)`; for inference.

    The keys in the cache are rotated already, so `rope` rotates q alone.
    """
    if _pick(q, k, impl) == "triton":
        from tutelage.kernels.triton_decode import decode_attention

        return decode_attention(q, k, v, sight.last, rope)
    return _fused(q if rope is None else rotate(q, *rope), k, v, sight.mask)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates each pair (i, i + Dh/2) of `x (B, H, T, Dh)` by its angle, in the dtype of `x` as Llama does."""
    first, second = x.chunk(2, -1)
    return x * cos.to(x.dtype) + torch.cat((-second, first), -1) * sin.to(x.dtype)


def _pick(q: Tensor, k: Tensor, impl: Impl) -> Impl:
    if q.shape[1] % k.shape[1]:
        raise ValueError(f"{k.shape[1]} key/value heads do not divide {q.shape[1]} query heads")
    return pick("attention", impl, q, able=q.shape[-1] <= WIDEST and q.dtype != torch.float64)


def _fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    gqa = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=gqa)


def _explicit(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """The same by three plain operations: on CPUs the backward pass of the fused one takes twice as long.

    The queries of a group are stacked, so that keys and values are never repeated.
    """
    B, H, T, Dh = q.shape
    K, L = k.shape[1:3]
    if mask is None:
        mask = torch.ones(T, L, dtype=torch.bool, device=q.device).tril()[None, None]
    hidden = torch.zeros((), dtype=q.dtype, device=q.device).masked_fill(~mask, torch.finfo(q.dtype).min / 2)
    scores = q.reshape(B, K, -1, Dh) @ (k * Dh**-0.5).transpose(-1, -2)  # (B, K, G·T, L)
    weights = torch.softmax(scores.view(B, K, H // K, T, L) + hidden[:, :, None], -1)
    return (weights.view(B, K, -1, L) @ v).view(B, H, T, Dh)
