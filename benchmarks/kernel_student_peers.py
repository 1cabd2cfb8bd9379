"""Who `benchmarks.kernels` times for the student: attention in its several uses, the norm, and a whole step.

As in `kernel_peers`, a factory that raises stands in the table with what it said.

Shapes: N tokens, D width, B rows, T tokens of a row, L cached tokens, H query heads, K key/value heads, Dh head width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.kernel_peers import (
    CE,
    KD,
    OURS,
    Contender,
    Factories,
    Sizes,
    naive,
    needs_cuda,
    ours,
    problem,
    trained,
)
from tutelage.kernels import dispatch
from tutelage.kernels.attention import Rope, Sight, attention, cached_attention, documents, rotate, so_far
from tutelage.kernels.dispatch import Impl
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
        "varlen_attn": lambda: varlen(qkv, segments, device),
        "FlexAttention, document mask": lambda: flex(qkv, segments, device),
    }


def varlen(qkv: Qkv, segments: Tensor, device: str) -> Contender:
    """PyTorch's flash attention of documents laid end to end; its way of saying "causal" depends on the version."""
    needs_cuda(device)
    from torch.nn.attention.varlen import varlen_attn

    known = signature(varlen_attn).parameters
    more: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    B, H, T, Dh = qkv[0].shape
    groups = H // qkv[1].shape[1]
    if "enable_gqa" in known:
        more["enable_gqa"], groups = groups > 1, 1
    starts = torch.ones_like(segments, dtype=torch.bool)
    starts[:, 1:] = segments[:, 1:] != segments[:, :-1]
    cuts = F.pad(starts.flatten().nonzero()[:, 0], (0, 1), value=B * T).int()
    longest = int(cuts.diff().max())

    def flat(x: Tensor, repeats: int) -> Tensor:
        rows = x.transpose(1, 2).reshape(B * T, -1, Dh)
        return rows if repeats == 1 else rows.repeat_interleave(repeats, 1)

    def forward() -> Tensor:
        q, k, v = flat(qkv[0], 1), flat(qkv[1], groups), flat(qkv[2], groups)
        out = varlen_attn(q, k, v, cuts, cuts, longest, longest, **more)
        return out.view(B, T, H, Dh).transpose(1, 2)

    return trained(forward, qkv, torch.randn_like(qkv[0]))


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

    name = "ours" if device == "cpu" else "ours: there the composite"
    return {
        name: lambda: trained(lambda: rms_norm(x, weight, 1e-5), leaves, grad, impl="eager"),
        "F.rms_norm in fp32": lambda: trained(lambda: composite(x, weight), leaves, grad),
        "F.rms_norm in fp32, compiled": compiled,
        "F.rms_norm in bf16": lambda: trained(lambda: F.rms_norm(x, (D,), weight, 1e-5), leaves, grad),
    }


def student_steps(sizes: Sizes, device: str) -> Factories:
    """Forward and backward pass of the 125m preset and its loss, the teacher's hidden states given.

    Ours calls what training calls, as it stands and with the blocks compiled as training has them.
    """
    factories: Factories = {
        "ours": partial(our_step, sizes, device, False),
        "ours, compiled by block": partial(our_step, sizes, device, True),
    }
    factories |= {f"SDPA, naive loss{what}": partial(peer_step, sizes, device, what) for what in PEER_STEPS}
    return factories


PEER_STEPS = ("", ", trunk compiled", ", all compiled")


def random_student(sizes: Sizes, device: str) -> tuple[Any, Tensor]:
    """The 125m preset, and tokens for it in rows of 1,024."""
    needs_cuda(device, "; on a CPU see benchmarks.train_step")
    from tutelage.student.config import StudentOptions, resolve
    from tutelage.student.decoder import Decoder

    torch.manual_seed(0)
    rows = max(1, sizes.tokens // 1024)
    tokens = torch.randint(sizes.vocab, (rows, sizes.tokens // rows), device=device)
    return Decoder(resolve(StudentOptions(preset="125m"), sizes.vocab, "125m")).to(device), tokens


def our_step(sizes: Sizes, device: str, by_block: bool) -> Contender:
    """What a training step runs between the teacher and the optimizer."""
    model, tokens = random_student(sizes, device)
    from tutelage.data.batch import Batch
    from tutelage.kernels.linear_divergence import DenseTeacher
    from tutelage.losses.config import LossConfig
    from tutelage.losses.objective import Objective
    from tutelage.losses.term import Progress
    from tutelage.teacher.signal import Signal
    from tutelage.training.distiller import Distiller
    from tutelage.training.precision import Precision

    if by_block:
        model.compile_blocks()
    p = problem(sizes, device)
    place = torch.arange(tokens.shape[1], device=device).expand_as(tokens)
    keys = torch.arange(len(tokens), device=device)
    batch = Batch(tokens, p.targets.view_as(tokens), torch.zeros_like(tokens), place, keys)
    signal = Signal(DenseTeacher(p.t_hidden.view(*tokens.shape, -1), p.t_head))
    objective = Objective(LossConfig(ce_weight=CE, kd_weight=KD), sizes.vocab)
    distiller = Distiller(model, objective, Precision()).train()
    counts = distiller.objective.counts(batch)

    def run() -> Tensor:
        return distiller(batch, signal, counts, Progress(0, 1))[0]

    return trained(partial(under, "auto", run, device), tuple(model.parameters()), impl=dispatch.use("auto", device))


def peer_step(sizes: Sizes, device: str, what: str) -> Contender:
    """The same model on PyTorch's own ops; each way compiles a function of its own, as cached code would serve all."""
    model, tokens = random_student(sizes, device)
    rest = problem(sizes, device)[2:]

    def trunk() -> Tensor:
        return model(tokens).hidden.flatten(0, 1)

    fast = torch.compile(trunk, dynamic=False) if "trunk" in what else trunk

    def step() -> Tensor:
        return naive(fast(), model.head.bfloat16(), *rest)

    run = torch.compile(step, dynamic=False) if "all" in what else step
    return trained(partial(under, "eager", run, device), tuple(model.parameters()), impl="eager")


def under(impl: Impl, run: Callable[[], Tensor], device: str) -> Tensor:
    """`run` under autocast with this implementation of our ops."""
    dispatch.use(impl, device)
    try:
        with torch.autocast(device, torch.bfloat16):
            return run()
    finally:
        dispatch.use("auto", device)
