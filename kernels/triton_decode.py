"""Attention of a few new tokens over a key/value cache, split along the keys so that one row can fill a GPU.

Each split leaves a normalised partial output and the base-2 logarithm of its softmax sum; a second kernel weighs and
adds them in a fixed order, without atomics. Inference only. arXiv:2205.14135, the split from "Flash-Decoding" (2023).

Shapes: B rows, T new tokens, L cached slots, H query heads, K key/value heads, G = H / K, Dh head width, S splits,
M rows of a tile: of the G·T queries that share a key/value head, stacked.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tutelage.kernels.ahead_of_time import Variant
from tutelage.kernels.dispatch import interpreted
from tutelage.kernels.launch import on_its_device


class Tile(NamedTuple):
    """Most rows and the keys of a tile of scores, its warps, and how many loads are in flight."""

    rows: int
    keys: int
    warps: int
    stages: int


TILES = {32: Tile(64, 128, 4, 3), 64: Tile(64, 64, 4, 3), 128: Tile(64, 64, 4, 3)}
"""By padded head size, for 16-bit inputs."""
WIDE = Tile(16, 32, 4, 3)
"""For 32- and 64-bit inputs: their exact products use no tensor cores, and a larger tile spills."""
MIN_ROWS, MAX_SPLITS, WIDEST = 16, 64, 128


def decode_attention(
    q: Tensor, k: Tensor, v: Tensor, last: Tensor, rope: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """softmax(q kᵀ / √Dh) v over the slots 0 … `last[b, t]` of a cache → `(B, H, T, Dh)`, stored as `(B, T, H, Dh)`.

    `q (B, H, T, Dh)` is rotated first by `rope`: cos and sin, fp32 `(B or 1, 1, T, Dh)` with equal halves. `k, v
    (B, K, L, Dh)` are read in place, `k` rotated already; slots after the last that any query of the row sees may hold
    NaN. `last (B, T)` are integers; a query that sees nothing returns 0. Raises ValueError, naming shapes, at once.
    """
    _check(q, k, v, last, rope)
    cos, sin = rope or (None, None)
    out: Tensor = torch.ops.tutelage.decode_attention(q, k, v, last, cos, sin)
    return out


def lacks(dtype: torch.dtype, head_size: int) -> str | None:
    """What these kernels want and inputs of this dtype and head size are not, or None."""
    if head_size % 2 or not 2 <= head_size <= WIDEST:
        return f"a head size that is an even number from 2 to {WIDEST}, got {head_size}"
    known = (torch.float16, torch.float32, torch.float64 if interpreted() else torch.bfloat16)  # garbage in there
    return None if dtype in known else f"one dtype of {known}, got {dtype}"


def _check(q: Tensor, k: Tensor, v: Tensor, last: Tensor, rope: tuple[Tensor, Tensor] | None) -> None:
    """Names what is wrong with the arguments, if anything is."""
    seen = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}, last {tuple(last.shape)}"
    if q.ndim != 4 or k.ndim != 4 or k.shape != v.shape or (q.shape[0], q.shape[3]) != (k.shape[0], k.shape[3]):
        raise ValueError(f"q must be (B, H, T, Dh), k and v (B, K, L, Dh): {seen}")
    if not q.numel() or not k.numel() or q.shape[1] % k.shape[1]:
        raise ValueError(f"no dimension may be empty, and K must divide H: {seen}")
    B, _, T, Dh = q.shape
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"q, k and v must share one dtype, got {q.dtype}, {k.dtype}, {v.dtype}: {seen}")
    if lack := lacks(q.dtype, Dh):
        raise ValueError(f"the kernel needs {lack}: {seen}")
    if last.shape != (B, T) or last.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"last must be (B, T) int32 or int64, got {last.dtype}: {seen}")
    tables = {(tuple(x.shape), x.dtype) for x in rope or ()}
    if rope and (len(tables) > 1 or not tables <= {((rows, 1, T, Dh), torch.float32) for rows in (1, B)}):
        raise ValueError(f"cos and sin must both be fp32 (B or 1, 1, T, Dh), got {tables}: {seen}")
    if not q.stride(3) == k.stride(3) == v.stride(3) == 1:
        raise ValueError(f"heads must be contiguous, got strides {q.stride()}, {k.stride()}, {v.stride()}: {seen}")
    if not (q.is_cuda or interpreted()):
        raise ValueError(f"a Triton kernel needs CUDA tensors, got {q.device}: {seen}")


@torch.library.custom_op("tutelage::decode_attention", mutates_args=())
@on_its_device
def _launch(q: Tensor, k: Tensor, v: Tensor, last: Tensor, cos: Tensor | None, sin: Tensor | None) -> Tensor:
    B, H, T, Dh = q.shape
    K, L = k.shape[1:3]
    width = max(32, triton.next_power_of_2(Dh))
    tile = TILES[width] if q.element_size() == 2 else WIDE
    rows = min(max(MIN_ROWS, triton.next_power_of_2(H // K * T)), tile.rows)
    blocks = triton.cdiv(H // K * T, rows)
    splits = _splits(B * K * blocks, triton.cdiv(L, tile.keys), q.device)
    out = q.new_empty(B, T, H, Dh)
    logs = q.new_empty(splits, B, T, H, dtype=torch.promote_types(q.dtype, torch.float32))
    parts = out if splits == 1 else logs.new_empty(splits, B, T, H, Dh)
    cos, sin = (None if x is None else x.contiguous() for x in (cos, sin))
    _split_kernel[B * K, blocks, splits](
        q, k, v, last, cos, sin, parts, logs, B, H, K, T, L,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *last.stride(),
        0 if cos is None or len(cos) == 1 else T * Dh,
        HEAD=Dh, HALF=width // 2, ROWS=rows, KEYS=tile.keys, SCALE=math.log2(math.e) / math.sqrt(Dh),
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    if splits > 1:
        _combine_kernel[(B * T * H,)](parts, logs, out, SPLITS=splits, HEAD=Dh, WIDTH=width, num_warps=2)
    return out.transpose(1, 2)


@_launch.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, last: Tensor, cos: Tensor | None, sin: Tensor | None) -> Tensor:
    return torch.empty_like(q.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)


def _splits(programs: int, key_blocks: int, device: torch.device) -> int:
    """A power of two that gives a processor two programs, of two key blocks or more; `last` would cost a sync."""
    many = 2 * torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4 * programs
    return 1 << max(1, min(-(-many // programs), key_blocks // 2, MAX_SPLITS)).bit_length() - 1


@triton.jit
def _split_kernel(
    q, k, v, last, cos, sin, parts, logs, B, H, K, T, L,
    q_b, q_h, q_t, k_b, k_h, k_l, v_b, v_h, v_l, last_b, last_t, c_b,
    HEAD: tl.constexpr, HALF: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, SCALE: tl.constexpr,
):  # fmt: skip
    """Program (b·kv head, i, s): tile i of queries over split s; `parts (S, B, T, H, Dh)`, `logs (S, B, T, H)`."""
    ACC: tl.constexpr = logs.dtype.element_ty
    pid = tl.program_id(0).to(tl.int64)
    b, n = pid // K, pid % K
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    real = row < H // K * T
    t, h = row % T, n * (H // K) + row // T
    d, wide = tl.arange(0, HALF)[None, :], tl.arange(0, 2 * HALF)[None, :]
    low = d < HEAD // 2

    # the head is two half tiles, so that rotation is element-wise
    place = q + b * q_b + (h * q_h + t * q_t)[:, None] + d
    q1 = tl.load(place, mask=real[:, None] & low, other=0.0)
    q2 = tl.load(place + HEAD // 2, mask=real[:, None] & low, other=0.0)
    if cos is not None:
        turn = b * c_b + (t * HEAD)[:, None] + d
        c = tl.load(cos + turn, mask=real[:, None] & low, other=0.0)
        s = tl.load(sin + turn, mask=real[:, None] & low, other=0.0)
        q1, q2 = (q1 * c - q2 * s).to(q1.dtype), (q2 * c + q1 * s).to(q2.dtype)

    # splits share what these queries see and not the capacity: short rows are spread as well as long ones
    since = tl.minimum(tl.load(last + b * last_b + t * last_t, mask=real, other=-1), L - 1).to(tl.int32)
    end = tl.max(since, 0) + 1
    share = tl.cdiv(tl.cdiv(end, tl.num_programs(2)), KEYS) * KEYS
    start = tl.program_id(2) * share
    stop = tl.minimum(start + share, end)
    acc = tl.zeros((ROWS, 2 * HALF), ACC)
    top, total = tl.full((ROWS,), float("-inf"), ACC), tl.zeros((ROWS,), ACC)
    k, v = k + b * k_b + n * k_h, v + b * v_b + n * v_h
    for first in tl.range(start, stop, KEYS):
        slot = first + tl.arange(0, KEYS)
        inside = (slot < stop)[:, None]
        there = slot.to(tl.int64)[:, None]
        k1 = tl.load(k + there * k_l + d, mask=inside & low, other=0.0)
        k2 = tl.load(k + there * k_l + d + HEAD // 2, mask=inside & low, other=0.0)
        values = tl.load(v + there * v_l + wide, mask=inside & (wide < HEAD), other=0.0)
        scores = tl.dot(q1, tl.trans(k1), input_precision="ieee", out_dtype=ACC)
        scores = tl.dot(q2, tl.trans(k2), scores, input_precision="ieee", out_dtype=ACC) * SCALE  # (ROWS, KEYS)
        scores = tl.where(slot[None, :] <= since[:, None], scores, float("-inf"))  # only the last block passes `stop`
        higher = tl.maximum(top, tl.max(scores, 1))
        anchor = tl.where(higher == float("-inf"), 0.0, higher)  # a query that has seen nothing yet
        weights = tl.exp2(scores - anchor[:, None])
        shrink = tl.exp2(top - anchor)
        total = total * shrink + tl.sum(weights, 1)
        acc = tl.dot(weights.to(values.dtype), values, acc * shrink[:, None], input_precision="ieee", out_dtype=ACC)
        top = higher

    safe = tl.where(total == 0, 1.0, total)  # where nothing was seen, top and with it the logarithm is −inf
    to = ((tl.program_id(2).to(tl.int64) * B + b) * T + t) * H + h
    tl.store(logs + to, top + tl.log2(safe), mask=real)
    tl.store(parts + to[:, None] * HEAD + wide, acc / safe[:, None], mask=real[:, None] & (wide < HEAD))


@triton.jit
def _combine_kernel(parts, logs, out, SPLITS: tl.constexpr, HEAD: tl.constexpr, WIDTH: tl.constexpr):
    """Σ 2^log·part / Σ 2^log over the splits of one query and head: `parts (S, B, T, H, Dh)` → `out (B, T, H, Dh)`."""
    row, rows = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    at = row + tl.arange(0, SPLITS).to(tl.int64) * rows
    d = tl.arange(0, WIDTH)
    log = tl.load(logs + at)
    top = tl.max(log, 0)
    weights = tl.exp2(log - tl.where(top == float("-inf"), 0.0, top))  # 0 for a split that saw nothing
    part = tl.load(parts + at[:, None] * HEAD + d[None, :], mask=(d < HEAD)[None, :], other=0.0)
    mean = tl.sum(part * weights[:, None], 0) / tl.maximum(tl.sum(weights, 0), 1.0)  # the largest weight is 1
    tl.store(out + row * HEAD + d, mean, mask=d < HEAD)


def variants() -> list[Variant]:
    """Both kernels for each head size in bf16, with few queries and with many, at the cost of 512 keys a program."""
    types = {n: "i32:16" if "_" in n else "*bf16:16" for n in (*_split_kernel.arg_names, "out")}
    types |= dict.fromkeys(("cos", "sin", "parts", "logs"), "*fp32:16") | {"last": "*i64:16"}
    types |= dict.fromkeys((*"BHKTL", "last_b", "last_t"), "i32")
    found = []
    for head, tile in TILES.items():
        for rows in (MIN_ROWS, tile.rows):
            sizes = {"HEAD": head, "HALF": head // 2, "ROWS": rows, "KEYS": tile.keys, "SCALE": 1.0}
            costs = tile.warps, tile.stages, 4 * rows * 512 * head, 4 * head * (512 + rows), f"{rows}×{tile.keys}"
            found.append(Variant(f"decode_{head}", _split_kernel, types, sizes, *costs))
        sizes, costs = {"SPLITS": 16, "HEAD": head, "WIDTH": head}, (2, 3, 32 * head, 66 * head, f"16×{head}")
        found.append(Variant(f"decode_combine_{head}", _combine_kernel, types, sizes, *costs))
    return found
