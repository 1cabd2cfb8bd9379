"""Who `benchmarks.kernels` times for the student: attention in its several uses, the norm, and a whole step.

As in `kernel_peers`, a factory that raises stands in the table with what it said.

Shapes: N tokens, D width, B rows, T tokens of a row, L cached tokens, H query heads, K key/value heads, Dh head width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.kernel_peers import CE, KD, OURS, Contender, Factories, Sizes, naive, needs_cuda, ours, problem, trained
from tutelage.kernels import dispatch
from tutelage.kernels.attention import Rope, Sight, attention, cached_attention, documents, rotate, so_far
from tutelage.kernels.dispatch import Impl
from tutelage.kernels.linear_divergence import DenseTeacher, linear_divergence
from tutelage.kernels.rms_norm import rms_norm


@dataclass(frozen=True)
class Heads:
    """One size of attention, in bf16."""

    batch: int
    heads: int
    kv_heads: int
    tokens: int
    width: int = 64

    def __str__(self) -> str:
        return f"B={self.batch} H={self.heads} K={self.kv_heads} T={self.tokens} Dh={self.width} bf16"


Qkv = tuple[Tensor, Tensor, Tensor]


def queries(size: Heads, device: str, keys: int | None = None) -> Qkv:
    """Random q, k and v that want gradients; of `keys` tokens where there is a cache."""

    def normal(heads: int, tokens: int) -> Tensor:
        # as a projection leaves them: token-major
        x = torch.randn(size.batch, tokens, heads, size.width, device=device).bfloat16()
        return x.transpose(1, 2).requires_grad_(keys is None)

    L = keys or size.tokens
    return normal(size.heads, 1 if keys else size.tokens), normal(size.kv_heads, L), normal(size.kv_heads, L)


def angles(tokens: int, width: int, device: str) -> Rope:
    """cos and sin `(1, 1, T, Dh)`. arXiv:2104.09864."""
    rates = 10_000.0 ** (-torch.arange(0, width, 2, device=device) / width)
    turns = (torch.arange(tokens, device=device)[:, None] * rates).repeat(1, 2)[None, None]
    return turns.cos(), turns.sin()


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, backend: str | None = None) -> Tensor:
    """PyTorch's fused op, by the backend of this name or by whichever it picks."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    run = partial(F.scaled_dot_product_attention, attn_mask=mask, is_causal=mask is None and q.shape[2] > 1)
    grouped = {"enable_gqa": True} if q.shape[1] != k.shape[1] else {}
    if backend is None:
        return run(q, k, v, **grouped)
    with sdpa_kernel(getattr(SDPBackend, backend)):
        return run(q, k, v, **grouped)


BACKENDS = {"SDPA flash": "FLASH_ATTENTION", "SDPA efficient": "EFFICIENT_ATTENTION", "SDPA cuDNN": "CUDNN_ATTENTION"}


def attentions(size: Heads, device: str) -> Factories:
    """Plain causal attention."""
    qkv = queries(size, device)
    grad = torch.randn_like(qkv[0])

    def peer(backend: str) -> Contender:
        if backend != "FLASH_ATTENTION":
            needs_cuda(device)
        return trained(lambda: sdpa(*qkv, backend=backend), qkv, grad)

    return (
        {f"ours, {impl}": partial(our_attention, qkv, impl, device) for impl in OURS[device]}
        | {name: partial(peer, backend) for name, backend in BACKENDS.items()}
        | {"FlexAttention, compiled": lambda: flex(qkv, None, device)}
    )


def our_attention(qkv: Qkv, impl: Impl, device: str, sight: Sight | None = None, rope: Rope | None = None) -> Contender:
    """Attention for training, with an implementation of ours."""
    grad = torch.randn_like(qkv[0])
    return ours(impl, device, lambda: trained(lambda: attention(*qkv, sight, rope, impl), qkv, grad, impl=impl))


def flex(qkv: Qkv, segments: Tensor | None, device: str) -> Contender:
    """FlexAttention, causal and within `segments (B, T)`; on CPUs it has no backward pass, so the forward is timed."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def seen(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (i >= j) if segments is None else (i >= j) & (segments[b, i] == segments[b, j])

    q = qkv[0]
    mask = create_block_mask(seen, None if segments is None else len(q), None, q.shape[2], q.shape[2], device=device)
    run = torch.compile(flex_attention, dynamic=False)
    same = {"block_mask": mask, "enable_gqa": q.shape[1] != qkv[1].shape[1]}
    if device == "cpu":
        still = [x.detach() for x in qkv]
        return Contender(lambda: run(*still, **same))
    return trained(lambda: run(*qkv, **same), qkv, torch.randn_like(q))


def rotations(size: Heads, device: str) -> Factories:
    """Rotation and attention: inside one op, and one after the other."""
    qkv, rope = queries(size, device), angles(size.tokens, size.width, device)
    grad = torch.randn_like(qkv[0])

    def apart(turn: Callable[..., Tensor]) -> Contender:
        q, k, v = qkv
        flash = BACKENDS["SDPA flash"]
        return trained(lambda: sdpa(turn(q, *rope), turn(k, *rope), v, backend=flash), qkv, grad)

    return {f"ours, {impl}": partial(our_attention, qkv, impl, device, None, rope) for impl in OURS[device]} | {
        "rotation, then SDPA flash": lambda: apart(rotate),
        "compiled rotation, then SDPA flash": lambda: apart(torch.compile(rotate, dynamic=False)),
    }


def packed(size: Heads, device: str) -> Factories:
    """Four documents of random length in each row, which must not see each other."""
    qkv = queries(size, device)
    grad = torch.randn_like(qkv[0])
    cuts = torch.rand(size.batch, 3, device=device).mul(size.tokens).long().sort(1).values
    place = torch.arange(size.tokens, device=device).expand(size.batch, -1).contiguous()
    segments = torch.searchsorted(cuts, place, right=True)  # (B, T)
    sight = documents(segments)
    return {f"ours, {impl}": partial(our_attention, qkv, impl, device, sight) for impl in OURS[device]} | {
        "SDPA with a mask": lambda: trained(lambda: sdpa(*qkv, mask=sight.mask), qkv, grad),
        "FlexAttention, document mask": lambda: flex(qkv, segments, device),
    }


def decoding(size: Heads, keys: int, device: str) -> Factories:
    """One new token of each row against a full cache of `keys`."""
    q, k, v = queries(size, device, keys)
    sight = so_far(torch.full((size.batch, 1), keys - 1, device=device), keys)

    def own(impl: Impl) -> Contender:
        run = Contender(lambda: cached_attention(q, k, v, sight, None, impl), impl=impl)
        return ours(impl, device, lambda: run)

    return {f"ours, {impl}": partial(own, impl) for impl in OURS[device] if impl != "compile"} | {
        "SDPA": lambda: Contender(lambda: sdpa(q, k, v)),
        "SDPA with a mask": lambda: Contender(lambda: sdpa(q, k, v, mask=sight.mask)),
    }


def norms(N: int, D: int, device: str) -> Factories:
    """RMS normalisation beside the composite it replaces."""
    x = torch.randn(N, D, device=device).bfloat16().requires_grad_()
    weight = torch.rand(D, device=device).bfloat16().requires_grad_()
    grad, leaves = torch.randn_like(x), (x, weight)

    def composite(x: Tensor, weight: Tensor) -> Tensor:
        return weight * F.rms_norm(x.float(), (D,), eps=1e-5).to(x.dtype)

    def compiled() -> Contender:
        function = torch.compile(composite, dynamic=False)
        return trained(lambda: function(x, weight), leaves, grad)

    return {
        "ours": lambda: trained(lambda: rms_norm(x, weight, 1e-5), leaves, grad, impl="eager"),
        "F.rms_norm in fp32": lambda: trained(lambda: composite(x, weight), leaves, grad),
        "F.rms_norm in fp32, compiled": compiled,
        "F.rms_norm in bf16": lambda: trained(lambda: F.rms_norm(x, (D,), weight, 1e-5), leaves, grad),
    }


def student_steps(sizes: Sizes, device: str) -> Factories:
    """Forward and backward pass of the 125m preset and its loss, the teacher's hidden states given; trunks compiled."""
    names = ["ours: Triton attention, fused loss", "SDPA, naive loss", "SDPA, naive loss, all compiled"]

    def make(name: str) -> Contender:
        needs_cuda(device, "; on a CPU see benchmarks.train_step")
        return step_contenders(sizes, device)[names.index(name)]

    return {name: partial(make, name) for name in names}


def step_contenders(sizes: Sizes, device: str) -> list[Contender]:
    """In the order of `student_steps`; each compiles a function of its own, as code cached for one would serve all."""
    from tutelage.student.config import StudentOptions, resolve
    from tutelage.student.decoder import Decoder

    torch.manual_seed(0)
    shape = resolve(StudentOptions(preset="125m"), sizes.vocab, "125m")
    model, p = Decoder(shape).to(device), problem(sizes, device)
    rows = max(1, sizes.tokens // 1024)
    tokens = torch.randint(sizes.vocab, (rows, sizes.tokens // rows), device=device)
    rest, teacher = p[2:], DenseTeacher(p.t_hidden, p.t_head)

    def trunk() -> Tensor:
        return model(tokens).hidden.flatten(0, 1)

    def plain_trunk() -> Tensor:
        return trunk()

    def plain_step() -> Tensor:
        return naive(trunk(), model.head.bfloat16(), *rest)

    fast, plain, whole = (torch.compile(function, dynamic=False) for function in (trunk, plain_trunk, plain_step))
    runs: list[tuple[Impl, Callable[[], Tensor]]] = [
        ("triton", lambda: linear_divergence(fast(), model.head, teacher, p.targets, kd_weight=KD, ce_weight=CE).total),
        ("eager", lambda: naive(plain(), model.head.bfloat16(), *rest)),
        ("eager", whole),
    ]
    return [trained(partial(under, impl, run, device), tuple(model.parameters()), impl=impl) for impl, run in runs]


def under(impl: Impl, run: Callable[[], Tensor], device: str) -> Tensor:
    """`run` under autocast with this implementation of our ops."""
    dispatch.use(impl, device)
    try:
        with torch.autocast(device, torch.bfloat16):
            return run()
    finally:
        dispatch.use("auto", device)
