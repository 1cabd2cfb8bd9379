"""Causal grouped-query attention that keeps packed documents apart and rotates what it is given.

PyTorch's fused op, its variable-length one for packed documents on a GPU, three plain operations for training on CPUs,
or Triton where it is asked for (`triton_attention`, `triton_decode`).

Shapes: B rows, T queries, L keys, H query heads, K key/value heads, G = H / K, Dh head width.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.kernels.dispatch import Impl, compiled, pick
from tutelage.kernels.launch import matmul_dtype

Rope = tuple[Tensor, Tensor]
"""cos and sin of each token's angles, each `(B or 1, 1, T, Dh)` in fp32 with equal halves."""
EXPLICIT_LIMIT = 512
"""Longest row for which the explicit form is used on a CPU: its scores are held, and up to here it is faster."""


@dataclass
class Sight:
    """What each query may see: of its row's keys those from `first` to `last`, int32 `(B, T)` and included.

    Without `first` it is all from the row's start, without `last` all up to the query itself: packed documents have the
    one, a cache the other. The mask and the offsets are made when they are first asked for, see `prepare`.
    """

    first: Tensor | None
    last: Tensor | None
    keys: int
    """How many keys there are, L."""
    _mask: Tensor | None = None
    _offsets: Tensor | None = None

    @property
    def mask(self) -> Tensor:
        """The same as booleans `(B, 1, T, L)`, True where seen."""
        if self._mask is None:  # torch.compile follows this, and not a cached_property
            bound = self.last if self.first is None else self.first
            assert bound is not None
            key = torch.arange(self.keys, dtype=bound.dtype, device=bound.device)
            seen = key <= (key[:, None] if self.last is None else self.last[..., None])
            self._mask = (seen if self.first is None else seen & (self.first[..., None] <= key))[:, None]
        return self._mask

    @property
    def offsets(self) -> Tensor:
        """Of packed documents: where each begins, see `packed_attention.offsets`."""
        if self._offsets is None:
            from tutelage.kernels import packed_attention

            assert self.first is not None
            place = torch.arange(self.keys, dtype=self.first.dtype, device=self.first.device)
            self._offsets = packed_attention.offsets(self.first == place)
        return self._offsets


def documents(segments: Tensor) -> Sight:
    """Causal within each document of a packed row; a document is a run of equal numbers in `segments (B, T)`."""
    place = torch.arange(segments.shape[1], dtype=torch.int32, device=segments.device).expand_as(segments)
    starts = torch.ones_like(segments, dtype=torch.bool)
    starts[:, 1:] = segments[:, 1:] != segments[:, :-1]
    return Sight(torch.where(starts, place, 0).cummax(1).values, None, segments.shape[1])


def so_far(positions: Tensor, keys: int) -> Sight:
    """Everything up to the query's own slot of a cache, `positions (B, T)`."""
    return Sight(None, positions.to(torch.int32), keys)


def prepare(sight: Sight, x: Tensor, head_size: int) -> Sight:
    """Makes now what the attention of every layer will ask of `sight`, for the stream `x`: once, and in no layer."""
    form = _form(pick("attention", "auto", x), sight, x.device, matmul_dtype(x), head_size)
    if form == "packed":
        sight.offsets  # noqa: B018
    elif form == "mask":
        sight.mask  # noqa: B018
    return sight


def attention(
    q: Tensor, k: Tensor, v: Tensor, sight: Sight | None = None, rope: Rope | None = None, impl: Impl = "auto"
) -> Tensor:
    """softmax(q kᵀ / √Dh) v over what is seen, for `q (B, H, T, Dh)`, `k, v (B, K, T, Dh)` → `(B, H, T, Dh)`.

    Without a `sight` it is plain causal. q and k are rotated by `rope`. Raises ValueError where K does not divide H,
    and for a `last` in a Triton kernel that is causal.
    """
    _check_groups(q, k)
    impl = pick("attention", impl, q, ("triton_attention", q.dtype, q.shape[-1]))
    form = _form(impl, sight, q.device, q.dtype, q.shape[-1])
    if form == "triton":
        from tutelage.kernels.triton_attention import causal_attention

        if sight is not None and sight.last is not None:
            raise ValueError("the Triton kernel for training is causal and takes no other end: choose impl 'eager'")
        return causal_attention(q, k, v, None if sight is None else sight.first, rope)
    if rope is not None:
        q, k = rotate(q, *rope), rotate(k, *rope)
    if form == "packed" and sight is not None:
        from tutelage.kernels.packed_attention import packed_attention

        return packed_attention(q, k, v, sight.offsets)
    mask = None if sight is None else sight.mask
    trains = torch.is_grad_enabled() and q.requires_grad
    if trains and q.device.type == "cpu" and (impl == "compile" or q.shape[2] <= EXPLICIT_LIMIT):
        return (compiled(_explicit) if impl == "compile" else _explicit)(q, k, v, mask)
    return _fused(q, k, v, mask)


def cached_attention(
    q: Tensor, k: Tensor, v: Tensor, sight: Sight, rope: Rope | None = None, impl: Impl = "auto"
) -> Tensor:
    """The same for new tokens `q (B, H, T, Dh)` over a cache `k, v (B, K, L, Dh)`; for inference.

    The keys in the cache are rotated already, so `rope` rotates q alone.
    """
    _check_groups(q, k)
    if pick("cached_attention", impl, q, ("triton_decode", q.dtype, q.shape[-1])) == "triton":
        from tutelage.kernels.triton_decode import decode_attention

        if sight.first is not None or sight.last is None:
            raise ValueError("the Triton kernel for a cache sees it from its start: choose impl 'eager'")
        return decode_attention(q, k, v, sight.last, rope)
    q = q if rope is None else rotate(q, *rope)
    return (_fused if q.device.type == "cpu" else _stacked)(q, k, v, sight.mask)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates each pair (i, i + Dh/2) of `x (B, H, T, Dh)` by its angle, in the dtype of `x` as Llama does."""
    first, second = x.chunk(2, -1)
    return x * cos.to(x.dtype) + torch.cat((-second, first), -1) * sin.to(x.dtype)


def _check_groups(q: Tensor, k: Tensor) -> None:
    if q.shape[1] % k.shape[1]:
        raise ValueError(f"{k.shape[1]} key/value heads do not divide {q.shape[1]} query heads")


def _form(
    impl: Impl, sight: Sight | None, device: torch.device, dtype: torch.dtype, head_size: int
) -> Literal["triton", "plain", "packed", "mask"]:
    """How it is computed."""
    if impl == "triton":
        return "triton"
    if sight is None:
        return "plain"
    if device.type == "cuda" and sight.first is not None and sight.last is None:
        from tutelage.kernels import packed_attention

        if packed_attention.lacks(device, dtype, head_size) is None:
            return "packed"
    return "mask"


def _fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """PyTorch's own. On a GPU only flash attention shares keys among heads, 16-bit and without a mask: what is left
    would hold all scores."""
    groups = q.shape[1] // k.shape[1]
    flash = q.device.type == "cuda" and mask is None and q.dtype in (torch.float16, torch.bfloat16)
    if groups > 1 and q.device.type != "cpu" and not flash:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    gqa = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=gqa)


def _stacked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """The same with the few queries of a group under each other, so that no cache is repeated for its heads."""
    B, K, _, Dh = k.shape
    out = _fused(q.reshape(B, K, -1, Dh), k, v, mask.repeat(1, 1, q.shape[1] // K, 1))
    return out.reshape(q.shape)


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
