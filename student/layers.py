"""The parts of the decoder. Module names follow transformers, so that weights carry over.

Shapes: B rows, T tokens, D width, H query heads, K key/value heads, Dh head width, L cached tokens.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.kernels.attention import Rope, Sight, attention, cached_attention, rotate
from tutelage.kernels.rms_norm import rms_norm
from tutelage.student.cache import KVCache
from tutelage.student.config import StudentConfig


class RMSNorm(nn.RMSNorm):
    """See `rms_norm`."""

    def forward(self, x: Tensor) -> Tensor:
        """`(…, D)` → `(…, D)`."""
        return rms_norm(x, self.weight, self.eps or 0.0)


NORMS: dict[str, type[RMSNorm | nn.LayerNorm]] = {"rmsnorm": RMSNorm, "layernorm": nn.LayerNorm}


def make_norm(config: StudentConfig, width: int) -> nn.Module:
    """The normalisation this configuration names, of vectors of `width`."""
    return NORMS[config.norm](width, eps=config.norm_eps)


def rope_table(positions: Tensor, d_head: int, theta: float) -> Rope:
    """cos and sin `(B, 1, T, Dh)` of the rotation angles at `positions (B, T)`, in fp32. arXiv:2104.09864."""
    frequencies = theta ** (-torch.arange(0, d_head, 2, device=positions.device, dtype=torch.float32) / d_head)
    angles = positions[:, None, :, None].float() * frequencies
    return torch.cat((angles, angles), -1).cos(), torch.cat((angles, angles), -1).sin()


def sinusoids(positions: Tensor, d_model: int) -> Tensor:
    """Absolute position vectors `(B, T, D)`: sines in even, cosines in odd places. arXiv:1706.03762 §3.5."""
    rate = torch.exp(torch.arange(0, d_model, 2, device=positions.device) * (-math.log(10_000.0) / d_model))
    angles = positions[..., None].float() * rate  # (B, T, D/2)
    return torch.stack((angles.sin(), angles.cos()), -1).flatten(-2)[..., :d_model]


class Attention(nn.Module):
    """Causal grouped-query attention."""

    def __init__(self, config: StudentConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.d_head = layer, config.head_size
        q, kv = config.n_heads * config.head_size, config.n_kv_heads * config.head_size
        self.q_proj = nn.Linear(config.d_model, q, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.d_model, kv, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.d_model, kv, bias=config.qkv_bias)
        self.o_proj = nn.Linear(q, config.d_model, bias=config.bias)
        self.q_norm, self.k_norm = (
            make_norm(config, config.head_size) if config.qk_norm else nn.Identity() for _ in range(2)
        )

    def forward(self, x: Tensor, rope: Rope | None, sight: Sight | None, cache: KVCache | None) -> Tensor:
        """`x (B, T, D)` → `(B, T, D)`; without a `sight` it is plain causal."""
        B, T, _ = x.shape
        q, k, v = (
            proj(x).view(B, T, -1, self.d_head) for proj in (self.q_proj, self.k_proj, self.v_proj)
        )  # (B, T, H | K, Dh)
        q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)  # under autocast norms are fp32
        q, k, v = (each.transpose(1, 2) for each in (q, k, v))  # (B, H | K, T, Dh)
        if cache is None or sight is None:
            y = attention(q, k, v, sight, rope)
        else:
            k = k if rope is None else rotate(k, *rope)  # once, for all the queries that will see them
            y = cached_attention(q, *cache.append(self.layer, k, v), sight, rope)
        out: Tensor = self.o_proj(y.transpose(1, 2).reshape(B, T, -1))
        return out


class SwiGLU(nn.Module):
    """`down(silu(gate(x)) · up(x))`. arXiv:2002.05202."""

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.d_model, config.d_ff, bias=config.biased_mlp)
        self.up_proj = nn.Linear(config.d_model, config.d_ff, bias=config.biased_mlp)
        self.down_proj = nn.Linear(config.d_ff, config.d_model, bias=config.biased_mlp)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, T, D)` → `(B, T, D)`."""
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class GELU(nn.Module):
    """`proj(gelu(fc(x)))` with the tanh form of GELU, as StarCoder2 has it."""

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.d_model, config.d_ff, bias=config.biased_mlp)
        self.c_proj = nn.Linear(config.d_ff, config.d_model, bias=config.biased_mlp)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, T, D)` → `(B, T, D)`."""
        out: Tensor = self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))
        return out


MLPS = {"swiglu": SwiGLU, "gelu": GELU}


class Block(nn.Module):
    """Pre-norm attention and MLP, each added to the residual stream."""

    def __init__(self, config: StudentConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = make_norm(config, config.d_model)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = make_norm(config, config.d_model)
        self.mlp = MLPS[config.mlp](config)
        self.dropout = config.dropout

    def forward(self, x: Tensor, rope: Rope | None, sight: Sight | None, cache: KVCache | None) -> Tensor:
        """`(B, T, D)` → `(B, T, D)`."""
        x = x + self._drop(self.self_attn(self.input_layernorm(x), rope, sight, cache))
        return x + self._drop(self.mlp(self.post_attention_layernorm(x)))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x
