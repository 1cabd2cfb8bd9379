"""Causal attention within packed documents by PyTorch's variable-length flash attention, on GPUs that have it.

It costs the squares of the documents and not of the rows, holds no scores, and takes documents one after the other: all
tokens of a batch in one row, cut at `offsets`. Its signature has changed from version to version.

Shapes: B rows, T tokens, H query heads, K key/value heads, Dh head width, S documents of all rows.
"""

from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from tutelage.kernels.dispatch import constant

varlen_attn: Callable[..., Any] | None = None
try:
    from torch.nn.attention import varlen

    varlen_attn = varlen.varlen_attn
except ImportError:  # a PyTorch before 2.10
    pass

DTYPES = (torch.float16, torch.bfloat16)
WIDEST, OLDEST = 256, (8, 0)
"""Head size and compute capability that flash attention ends at and begins with."""


@constant
def lacks(device: torch.device, dtype: torch.dtype, head_size: int) -> str | None:
    """What is missing for inputs of this dtype and head size, or None."""
    if varlen_attn is None:
        return "torch.nn.attention.varlen (PyTorch 2.10 or later)"
    if torch.version.hip is not None or not torch.backends.cuda.is_flash_attention_available():
        return "a build of PyTorch with flash attention"
    if torch.cuda.get_device_capability(device) < OLDEST:
        return "a GPU of compute capability 8.0 or later"
    if head_size % 8 or head_size > WIDEST:
        return f"a head size that 8 divides, up to {WIDEST}, got {head_size}"
    return None if dtype in DTYPES else f"one of {DTYPES}, got {dtype}"


def offsets(starts: Tensor) -> Tensor:
    """Where each document of `starts (B, T)` begins, and the end of the last, int32 `(S + 1,)`.

    How many there are is known to the device alone, so this waits for it: it is made once for all layers.
    """
    begins = starts.flatten().nonzero().squeeze(1)
    return torch.cat((begins, begins.new_full((1,), starts.numel()))).to(torch.int32)


def packed_attention(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor) -> Tensor:
    """softmax(q kᵀ / √Dh) v, causal within documents, for `q (B, H, T, Dh)`, `k, v (B, K, T, Dh)` → `(B, H, T, Dh)`."""
    B, H, T, Dh = q.shape
    groups = H // k.shape[1]
    q, k, v = (x.transpose(1, 2).reshape(B * T, -1, Dh) for x in (q, k, v))
    sharing = OPTIONS["sharing"] if groups > 1 else {}
    if groups > 1 and not sharing:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    # no document is longer than a row, and how long the longest is only the device knows
    assert varlen_attn is not None
    out: Tensor = varlen_attn(q, k, v, offsets, offsets, T, T, **OPTIONS["causal"], **sharing)
    return out.view(B, T, H, Dh).transpose(1, 2)


def options(function: Any) -> dict[str, dict[str, Any]]:
    """How this version says that attention is causal, and that heads share keys (nothing where they cannot)."""
    known = () if function is None else signature(function).parameters
    return {
        "causal": {"is_causal": True} if "is_causal" in known else {"window_size": (-1, 0)},
        "sharing": {"enable_gqa": True} if "enable_gqa" in known else {},
    }


OPTIONS = options(varlen_attn)
"""Looked up once, outside of what is compiled."""
