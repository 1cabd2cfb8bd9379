"""Causal grouped-query attention that keeps packed documents apart.

Shapes: B rows, T queries, L keys, H query heads, K key/value heads, G = H / K, Dh head width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

EXPLICIT_LIMIT = 512
"""Longest row for which the explicit form is used on a CPU: its scores are held, and up to here it is faster."""


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ / √Dh + mask) v for `q (B, H, T, Dh)`, `k, v (B, K, L, Dh)` → `(B, H, T, Dh)`.

    `mask (B, 1, T, L)` is True where a key is seen; None is plain causal, with T = L. Raises ValueError where K does
    not divide H.
    """
    if q.shape[1] % k.shape[1]:
        raise ValueError(f"{k.shape[1]} key/value heads do not divide {q.shape[1]} query heads")
    trains = torch.is_grad_enabled() and q.requires_grad
    if trains and q.device.type == "cpu" and q.shape[2] <= EXPLICIT_LIMIT:
        return _explicit(q, k, v, mask)
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
