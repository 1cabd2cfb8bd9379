"""Causal attention for training in Triton: rotation, grouped heads and packed documents inside, always the same bits.

The forward pass is the online softmax of arXiv:2205.14135 with exp2. The backward pass is two kernels that share no
sum, so it needs no atomics: one owns blocks of queries and writes dq, the other owns blocks of keys and writes dk and
dv, summed over the query heads of their group. The kernels themselves are in `triton_attention_kernels`.

Shapes: B rows, T tokens, H query heads, K key/value heads, G = H / K, Dh head width.
"""

from typing import Any, Literal, NamedTuple

import torch
import triton
from torch import Tensor

from tutelage.kernels import triton_attention_kernels as kernels
from tutelage.kernels.ahead_of_time import Variant
from tutelage.kernels.launch import on_its_device, only_once

INTERPRETED = not isinstance(kernels.forward_kernel, triton.JITFunction)
DTYPES = (torch.float16, torch.float32, torch.float64 if INTERPRETED else torch.bfloat16)
"""bf16 products come out of Triton's interpreter as garbage, silently; fp64 is for tests in there."""
Kind = Literal["forward", "dq", "dkv"]


class Tile(NamedTuple):
    """What one program holds of the score matrix, on how many warps, with how many loads in flight."""

    queries: int
    keys: int
    warps: int
    stages: int
    registers: int | None = None
    """Most that a thread may have from Hopper on, where it costs no spill and lets two programs share a processor."""


TILES: dict[int, dict[Kind, Tile]] = {
    32: {"forward": Tile(128, 64, 8, 3, 128), "dq": Tile(128, 64, 8, 3), "dkv": Tile(64, 128, 8, 3)},
    64: {"forward": Tile(128, 64, 8, 3, 128), "dq": Tile(128, 64, 8, 3), "dkv": Tile(64, 128, 8, 2)},
    128: {"forward": Tile(128, 64, 8, 3), "dq": Tile(128, 64, 8, 2), "dkv": Tile(32, 128, 8, 2)},
}
"""By padded head size, for 16-bit inputs; chosen with `ahead_of_time`."""
WIDE = Tile(32, 32, 8, 1)
"""For 32- and 64-bit inputs: their exact products run outside the tensor cores and want many registers."""
ROTATED_ROWS, WIDEST = 64, 128
"""Rows that a program rotates, and the largest head size."""


def causal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    first: Tensor | None = None,
    rope: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """softmax(q kᵀ / √Dh) v, causal, for `q (B, H, T, Dh)`, `k, v (B, K, T, Dh)` → `(B, H, T, Dh)`.

    Query t of row b sees keys `first[b, t]` … t: `first (B, T)` names the start of its document and never falls along
    a row; None is plain causal. `rope` is (cos, sin), each `(B or 1, 1, T, Dh)` with equal halves: q and k are rotated
    by it. The result lies in memory as `(B, T, H, Dh)`. Raises ValueError, naming shapes, before any launch.
    """
    _check(q, k, v, first, rope)
    first = None if first is None else first.to(torch.int32).contiguous()  # as `documents` makes it
    cos, sin = rope or (None, None)
    out: Tensor = _forward(q, k, v, first, cos, sin)[0]
    return out


def lacks(dtype: torch.dtype, head_size: int) -> str | None:
    """What these kernels want and inputs of this dtype and head size are not, or None."""
    if head_size % 2 or not 2 <= head_size <= WIDEST:
        return f"a head size that is an even number from 2 to {WIDEST}, got {head_size}"
    return None if dtype in DTYPES else f"one dtype of {DTYPES}, got {dtype}"


def _check(q: Tensor, k: Tensor, v: Tensor, first: Tensor | None, rope: tuple[Tensor, Tensor] | None) -> None:
    """Names what is wrong with the arguments, if anything is."""
    seen = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    if q.ndim != 4 or k.ndim != 4 or k.shape != v.shape or (q.shape[0], *q.shape[2:]) != (k.shape[0], *k.shape[2:]):
        raise ValueError(f"q must be (B, H, T, Dh), k and v (B, K, T, Dh): {seen}")
    B, H, T, Dh = q.shape
    if not k.shape[1] or H % k.shape[1]:
        raise ValueError(f"{k.shape[1]} key/value heads do not divide {H} query heads: {seen}")
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"q, k and v must share one dtype, got {q.dtype}, {k.dtype}, {v.dtype}: {seen}")
    if lack := lacks(q.dtype, Dh):
        raise ValueError(f"the kernel needs {lack}: {seen}")
    if not (INTERPRETED or q.is_cuda):
        raise ValueError(f"a Triton kernel needs CUDA tensors, got {q.device}: {seen}")
    if first is not None and (first.shape != (B, T) or first.dtype not in (torch.int32, torch.int64)):
        raise ValueError(f"first must be (B, T) int32 or int64, got {tuple(first.shape)} {first.dtype}: {seen}")
    if rope and not (rope[0].shape == rope[1].shape and rope[0].shape in ((B, 1, T, Dh), (1, 1, T, Dh))):
        raise ValueError(
            f"rope must be two of (B or 1, 1, T, Dh), got {[tuple(table.shape) for table in rope]}: {seen}"
        )


@torch.library.custom_op("tutelage::causal_attention", mutates_args=())
@on_its_device
def _forward(
    q: Tensor, k: Tensor, v: Tensor, first: Tensor | None, cos: Tensor | None, sin: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The output, log₂ Σ exp of each query's scores `(B, H, T)`, and the rotated keys (empty without rope)."""
    out, lse, turned = _outputs(q, k, v, first, cos, sin)
    if not q.numel():
        return out, lse, turned
    B, H, T, _ = q.shape
    q, k, v = map(_rows, (q, k, v))
    cos, sin, *c_strides = _table(cos, sin)
    if cos is not None:
        sizes = {"HEAD": q.shape[-1], "HALF": _half(q), "ROWS": ROTATED_ROWS}
        K = k.shape[1]
        kernels.rotate_kernel[B * K, triton.cdiv(T, ROTATED_ROWS)](
            k, turned, cos, sin, *_strides(k), *c_strides, K, T, **sizes
        )
        k = turned
    tile, options = _plan("forward", q, k)
    kernels.forward_kernel[B * H, triton.cdiv(T, tile.queries)](
        q, k, v, out, lse, _int32(first), cos, sin, *_strides(q, k, v), *c_strides, H, T, **options
    )
    return out, lse, turned


@_forward.register_fake
def _outputs(
    q: Tensor, k: Tensor, v: Tensor, first: Tensor | None, cos: Tensor | None, sin: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """What the forward pass fills."""
    lse = q.new_empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))
    return _token_major(q), lse, k.new_empty(0 if cos is None else k.shape)


@torch.library.custom_op("tutelage::causal_attention_backward", mutates_args=())
@on_its_device
def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    first: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk and dv; `k` comes rotated, `q` does not."""
    dq, dk, dv = _token_major(q), _token_major(k), _token_major(v)
    if not q.numel():
        return dq, dk, dv
    B, H, T, _ = q.shape
    K = k.shape[1]
    grad, q, k, v = map(_rows, (grad, q, k, v))
    out, lse = out.transpose(1, 2).contiguous(), lse.contiguous()  # as they were left, whoever kept them since
    cos, sin, *c_strides = _table(cos, sin)
    first = _int32(first)
    last = None if first is None else _last(first)
    turned = q if cos is None else torch.empty(q.shape, dtype=q.dtype, device=q.device)
    delta = torch.empty_like(lse)
    tile, options = _plan("dq", q, k)
    kernels.dq_kernel[B * H, triton.cdiv(T, tile.queries)](
        grad, q, k, v, out, lse, first, cos, sin, dq, turned, delta,
        *_strides(grad, q, k, v), *c_strides, H, T, **options,
    )  # fmt: skip
    tile, options = _plan("dkv", q, k)
    kernels.dkv_kernel[B * K, triton.cdiv(T, tile.keys)](
        grad, turned, k, v, lse, delta, first, last, cos, sin, dk, dv,
        *_strides(grad, turned, k, v), *c_strides, K, T, **options,
    )  # fmt: skip
    return dq, dk, dv


@_backward.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    return _token_major(q), _token_major(k), _token_major(v)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    q, k, v, first, cos, sin = inputs
    out, lse, turned = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(lse, turned)
    ctx.save_for_backward(q, k if cos is None else turned, v, out, lse, first, cos, sin)


def _gradients(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 6
    return (*only_once(*_backward(grad, *ctx.saved_tensors)), None, None, None)


_forward.register_autograd(_gradients, setup_context=_setup_context)


def _token_major(x: Tensor) -> Tensor:
    """An empty `(B, H, T, Dh)` that lies in memory as `(B, T, H, Dh)`."""
    return x.new_empty([x.shape[i] for i in (0, 2, 1, 3)]).transpose(1, 2)


def _rows(x: Tensor) -> Tensor:
    """`x` with its last dimension contiguous."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _strides(*tensors: Tensor) -> tuple[int, ...]:
    return tuple(stride for x in tensors for stride in x.stride()[:3])


def _table(cos: Tensor | None, sin: Tensor | None) -> tuple[Tensor | None, Tensor | None, int, int]:
    """The angles, and the strides by row and by token that both tables have."""
    if cos is None or sin is None:
        return None, None, 0, 0
    if cos.stride() != sin.stride() or cos.stride(-1) != 1:
        cos, sin = cos.contiguous(), sin.contiguous()
    return cos, sin, 0 if len(cos) == 1 else cos.stride(0), cos.stride(2)


def _int32(first: Tensor | None) -> Tensor | None:
    return None if first is None else first.to(torch.int32).contiguous()


def _last(first: Tensor) -> Tensor:
    """The last query `(B, T)` that sees each key, found without asking the device anything."""
    tokens = torch.arange(first.shape[1], dtype=first.dtype, device=first.device).expand_as(first).contiguous()
    return torch.searchsorted(first, tokens, right=True, out_int32=True) - 1


def _half(q: Tensor) -> int:
    """Columns of a half tile; a product wants 16 at least."""
    return max(16, 1 << (q.shape[-1] // 2 - 1).bit_length())


def _plan(kind: Kind, q: Tensor, k: Tensor) -> tuple[Tile, dict[str, Any]]:
    """A kernel's tile, and its compile-time arguments."""
    tile = WIDE if q.element_size() > 2 else TILES[2 * _half(q)][kind]
    on_nvidia = q.is_cuda and torch.version.hip is None  # HIP takes no `maxnreg`
    capped = tile.registers is not None and on_nvidia and torch.cuda.get_device_capability(q.device) >= (9, 0)
    return tile, {
        "GROUPS": q.shape[1] // k.shape[1],
        "HEAD": q.shape[-1],
        "HALF": _half(q),
        "QUERIES": tile.queries,
        "KEYS": tile.keys,
        # that of cuBLAS; to ask torch.get_float32_matmul_precision fails where somebody has set this one
        "PRECISION": "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee",
        "num_warps": tile.warps,
        "num_stages": tile.stages,
        **({"maxnreg": tile.registers} if capped else {}),
    }


def variants() -> list[Variant]:
    """Each kernel with each tile in bf16: with documents and rotation and, from heads of 64 on, without either."""
    return [
        _variant(kind, head, tile, extras)
        for head, tiles in TILES.items()
        for kind, tile in tiles.items()
        for extras in ((False, True) if head > 32 else (True,))
    ] + [_rotate_variant(head) for head in TILES]


def _variant(kind: Kind, head: int, tile: Tile, extras: bool) -> Variant:
    """Costs are those of a mean program in a row of 2,048 tokens."""
    kernel = {"forward": kernels.forward_kernel, "dq": kernels.dq_kernel, "dkv": kernels.dkv_kernel}[kind]
    known = {"GROUPS": 1, "HEAD": head, "HALF": head // 2, "QUERIES": tile.queries, "KEYS": tile.keys}
    absent = (
        {} if extras else dict.fromkeys(name for name in ("first", "last", "cos", "sin") if name in kernel.arg_names)
    )
    own, matmuls, held = {"forward": (tile.queries, 2, 2), "dq": (tile.queries, 3, 5), "dkv": (tile.keys, 4, 4)}[kind]
    met = 1024
    return Variant(
        name=f"attention_{kind}_{head}" + "_documents_rope" * extras,
        kernel=kernel,
        signature=_signature(kernel),
        constexprs={**known, "PRECISION": "ieee", **absent},
        warps=tile.warps,
        stages=tile.stages,
        flops=2 * matmuls * own * met * head,
        bytes=2 * head * (held * own + 2 * met),
        tile=f"{tile.queries}×{tile.keys}",
        may_spill=kind != "forward",
        registers=tile.registers,
    )


def _rotate_variant(head: int) -> Variant:
    return Variant(
        name=f"attention_rotate_{head}",
        kernel=kernels.rotate_kernel,
        signature=_signature(kernels.rotate_kernel),
        constexprs={"HEAD": head, "HALF": head // 2, "ROWS": ROTATED_ROWS},
        warps=4,
        stages=1,
        flops=3 * ROTATED_ROWS * head,
        bytes=8 * ROTATED_ROWS * head,
        tile=f"{ROTATED_ROWS}×{head}",
    )


def _signature(kernel: Any) -> dict[str, str]:
    """Types as they are in training: bf16, aligned, T a multiple of 16."""
    types = {"H": "i32", "K": "i32", "N": "i32", "T": "i32:16", "first": "*i32:16", "last": "*i32:16"}
    types |= dict.fromkeys(("lse", "delta", "cos", "sin"), "*fp32:16")
    sizes = [name for name in kernel.arg_names if not name.isupper() or name in types]
    return {name: types.get(name, "i32:16" if name[1:2] == "_" else "*bf16:16") for name in sizes}
