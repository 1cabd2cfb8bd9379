"""Who `benchmarks.kernels` times for the loss: ours, and what people would use in its place, on the same tensors.

Each function that returns `Factories` gives one per name. A factory that raises stands in the table with what it said,
so nobody is left out silently; what a peer needs besides torch is imported inside its factory.

Shapes: N tokens, V vocabulary, D student width, E teacher width.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from benchmarks.timing import Lap, interleaved
from tutelage.kernels import reference
from tutelage.kernels.dispatch import Impl
from tutelage.kernels.linear_divergence import DenseTeacher, linear_divergence
from tutelage.kernels.logit_divergence import logit_divergence

KD, CE = 0.8, 0.2
SETTINGS: dict[str, dict[str, Mapping[str, Any]]] = {
    "cpu": {
        "default": {},
        "fp32 matmuls": {"compute_dtype": torch.float32},
        "chunk 192, sum in bf16": {"chunk_size": 192, "accum_dtype": torch.bfloat16},
    },
    "cuda": {"default": {}, "chunk 2048": {"chunk_size": 2048}},
}
"""Of our loss: what nobody has to ask for; matmuls that are faster on many a CPU; a leaner or a larger one."""
PEER_CHUNK = 1024
"""Rows of the chunks of who cuts the loss into chunks by hand, as Liger's are."""
OURS: dict[str, tuple[Impl, ...]] = {"cpu": ("eager", "compile", "triton"), "cuda": ("triton", "compile")}
"""The implementations in the table; on a CPU the last one is there to say that it can't be."""


class NotHereError(Exception):
    """A contender cannot run on this machine, and why."""


@dataclass(frozen=True)
class Contender:
    """`forward`, then `backward` of what it returned, if there is one."""

    forward: Callable[[], Any]
    leaves: tuple[Tensor, ...] = ()
    backward: Callable[[Any], object] | None = None
    impl: str = ""
    bytes_moved: int = 0
    """Bytes that cannot be left out, where bandwidth is what counts."""
    expected: float | None = None
    """What `forward` should give; a contender that does not compute the same stays out."""

    def __call__(self, lap: Lap) -> Any:
        """One run, with a lap around each part; returns what `forward` did."""
        for leaf in self.leaves:
            leaf.grad = None
        lap()
        with torch.set_grad_enabled(bool(self.leaves)):
            out = self.forward()
        lap()
        if self.backward is not None:
            self.backward(out)
            lap()
        return out


Factories = dict[str, Callable[[], Contender]]


def trained(
    forward: Callable[[], Tensor], leaves: tuple[Tensor, ...], grad: Tensor | None = None, **more: Any
) -> Contender:
    """A contender whose backward pass is autograd's, from `grad` (None for a scalar)."""
    return Contender(forward, leaves, backward=lambda out: out.backward(grad), **more)


def needs_cuda(device: str, also: str = "") -> None:
    """Raises NotHereError on a CPU."""
    if device != "cuda":
        raise NotHereError(f"needs CUDA{also}")


def ours(impl: Impl, device: str, make: Callable[[], Contender]) -> Contender:
    """Our own, unless it is Triton without a GPU; its interpreter is for tests."""
    if impl == "triton":
        needs_cuda(device)
    return make()


@dataclass(frozen=True)
class Sizes:
    """One size of the loss, in bf16."""

    tokens: int
    vocab: int
    student: int
    teacher: int

    def __str__(self) -> str:
        return f"N={self.tokens} V={self.vocab} D={self.student} E={self.teacher} bf16"


class Problem(NamedTuple):
    """What a loss is made from: `hidden (N, D)`, `head (V, D)`, `t_hidden (N, E)`, `t_head (V, E)`, `targets (N,)`."""

    hidden: Tensor
    head: Tensor
    t_hidden: Tensor
    t_head: Tensor
    targets: Tensor

    @property
    def leaves(self) -> tuple[Tensor, Tensor]:
        """What wants gradients."""
        return self.hidden, self.head


def problem(sizes: Sizes, device: str) -> Problem:
    """Fresh random tensors; logits of both have a standard deviation of one."""
    N, V, D, E = sizes.tokens, sizes.vocab, sizes.student, sizes.teacher

    def normal(rows: int, width: int, std: float = 1.0) -> Tensor:
        return (torch.randn(rows, width, device=device) * std).bfloat16()

    return Problem(
        normal(N, D).requires_grad_(),
        normal(V, D, D**-0.5).requires_grad_(),
        normal(N, E),
        normal(V, E, E**-0.5),
        torch.randint(V, (N,), device=device),
    )


def naive(
    hidden: Tensor, head: Tensor, t_hidden: Tensor, t_head: Tensor, targets: Tensor, ce_weight: float = CE
) -> Tensor:
    """0.8·KL + 0.2·CE over full logits, as it is usually written; the teacher without a graph."""
    with torch.no_grad():
        t_logits = t_hidden @ t_head.T
    return naive_of_logits(hidden @ head.T, t_logits, targets, ce_weight)


def naive_of_logits(logits: Tensor, t_logits: Tensor, targets: Tensor, ce_weight: float = CE) -> Tensor:
    """The same of logits `(N, V)` that exist, with statistics in fp32."""
    with torch.no_grad():
        log_p = F.log_softmax(t_logits.float(), -1)
    log_q = F.log_softmax(logits.float(), -1)
    kl = F.kl_div(log_q, log_p, log_target=True, reduction="sum")
    return KD * kl + ce_weight * F.nll_loss(log_q, targets, reduction="sum")


def our_loss(p: Problem, settings: Mapping[str, Any], impl: Impl = "auto") -> Tensor:
    """The same by our fused op."""
    teacher = DenseTeacher(p.t_hidden, p.t_head)
    return linear_divergence(
        p.hidden, p.head, teacher, p.targets, kd_weight=KD, ce_weight=CE, impl=impl, **settings
    ).total


def losses(p: Problem, device: str) -> Factories:
    """The fused loss and its peers."""
    with torch.no_grad():
        both, kl = naive(*p).item(), naive(*p, ce_weight=0.0).item()

    def own(impl: Impl, settings: Mapping[str, Any]) -> Contender:
        run = partial(our_loss, p, settings, impl)
        return ours(impl, device, lambda: trained(run, p.leaves, impl=impl, expected=both))

    def compiled() -> Contender:
        function = torch.compile(naive, dynamic=False)
        return trained(lambda: function(*p), p.leaves, expected=both)

    def by_hand() -> Contender:
        function = torch.compile(naive, dynamic=False)
        return trained(lambda: chunked(p, function), p.leaves, expected=both)

    named: Factories = {
        f"ours, {i}, {name}": partial(own, i, settings)
        for i in OURS[device]
        for name, settings in SETTINGS[device].items()
    }
    return named | {
        "naive": lambda: trained(lambda: naive(*p), p.leaves, expected=both),
        "naive, compiled": compiled,
        "naive in chunks: checkpoint, compiled": by_hand,
        "Liger fused_linear_jsd, KL alone": lambda: liger_fused(p, device, kl),
        "Liger chunked, not compiled": lambda: liger_chunked(p, False, both),
        "Liger chunked, compiled": lambda: liger_chunked(p, True, both),
        "FLA fused_kl_div, KL alone": lambda: fla(p, device, kl),
        "Cut Cross-Entropy, CE alone": lambda: cut_cross_entropy(p, device, both - kl),
        "its four matmuls": lambda: matmuls(p, device),
    }


def chunked(p: Problem, loss: Callable[..., Tensor]) -> Tensor:
    """What a good engineer writes first: chunk after chunk, whose logits are made again in the backward pass."""
    parts = zip(*(x.split(PEER_CHUNK) for x in (p.hidden, p.t_hidden, p.targets)), strict=True)
    return torch.stack([
        checkpoint(loss, hidden, p.head, t_hidden, p.t_head, targets, use_reentrant=False)
        for hidden, t_hidden, targets in parts
    ]).sum()  # fmt: skip


def liger_chunked(p: Problem, compiled: bool, expected: float) -> Contender:
    """Liger's chunked torch loss; its generalised JSD with β = 0 is the forward KL. It takes means over tokens."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(weight_hard_loss=CE, weight_soft_loss=KD, beta=0.0, compiled=compiled)
    return trained(lambda: loss(*p) * len(p.targets), p.leaves, expected=expected)


def liger_fused(p: Problem, device: str, expected: float) -> Contender:
    """Liger's Triton op, which has no cross-entropy: less work than the others do."""
    needs_cuda(device, " (Triton)")
    from liger_kernel.ops.fused_linear_jsd import LigerFusedLinearJSDFunction

    def forward() -> Tensor:
        # β, ignored id, temperature, dtype of the head's gradient while it is summed, and two for its dispatcher
        return KD * len(p.targets) * LigerFusedLinearJSDFunction.apply(*p, 0.0, -100, 1.0, None, None, None)

    return trained(forward, p.leaves, expected=expected)


def fla(p: Problem, device: str, expected: float) -> Contender:
    """flash-linear-attention's, a mean over tokens too, and without a cross-entropy."""
    needs_cuda(device, " (Triton)")
    from fla.modules.fused_kl_div import FusedKLDivLoss

    loss = FusedKLDivLoss()
    hidden, head, t_hidden, t_head, targets = p
    return trained(lambda: KD * len(targets) * loss(hidden, t_hidden, head, t_head), p.leaves, expected=expected)


def cut_cross_entropy(p: Problem, device: str, expected: float) -> Contender:
    """Apple's, of the student alone. arXiv:2411.09009."""
    needs_cuda(device, " (Triton)")
    from cut_cross_entropy import linear_cross_entropy

    return trained(
        lambda: CE * linear_cross_entropy(p.hidden, p.head, p.targets, reduction="sum"), p.leaves, expected=expected
    )


def matmuls(p: Problem, device: str) -> Contender:
    """The four products that nobody can leave out, each in the layout that is fastest here, into ready buffers."""
    h, w, x, u = (tensor.detach() for tensor in p[:4])
    g = torch.randn(len(h), len(w), device=device).bfloat16()  # stands for the gradient of the logits
    products = [fastest(a, b, device) for a, b in ((x, u.t()), (h, w.t()), (g, w), (g.t(), h))]
    return Contender(
        lambda: [product() for product in products[:2]], backward=lambda _: [product() for product in products[2:]]
    )


def fastest(a: Tensor, b: Tensor, device: str) -> Callable[[], object]:
    """`a @ b` as it takes least time, of three rounds."""
    found = interleaved(layouts(a, b), 3, device)
    best = min(found, key=lambda name: found[name][1])
    return layouts(a, b)[best]  # made anew, so that the buffers of the others go


def layouts(a: Tensor, b: Tensor) -> dict[str, Callable[[], object]]:
    """`a @ b` with either operand and the result stored by rows or by columns."""

    def stored(x: Tensor) -> tuple[Tensor, Tensor]:
        return x.contiguous(), x.t().contiguous().t()

    out = a.new_empty(len(a), b.shape[1])
    turned = a.new_empty(b.shape[1], len(a))
    return {
        f"{i}{j}{name}": run
        for i, left in enumerate(stored(a))
        for j, right in enumerate(stored(b))
        for name, run in (
            ("rows", partial(torch.mm, left, right, out=out)),
            ("columns", partial(torch.mm, right.t(), left.t(), out=turned)),
        )
    }


def logit_losses(N: int, V: int, device: str) -> Factories:
    """The divergence of logits that exist, beside a plain copy: what memory can do."""
    s = torch.randn(N, V, device=device).bfloat16().requires_grad_()
    t = torch.randn(N, V, device=device).bfloat16()
    targets, scratch = torch.randint(V, (N,), device=device), torch.empty_like(t)
    once = s.numel() * s.element_size()
    with torch.no_grad():
        expected = naive_of_logits(s, t, targets).item()
    more: dict[str, Any] = {"expected": expected, "bytes_moved": 3 * once}  # two are read, the gradient is written

    def op(impl: Impl) -> Contender:
        def forward() -> Tensor:
            return logit_divergence(s, t, targets, kd_weight=KD, ce_weight=CE, impl=impl).total

        return ours(impl, device, lambda: trained(forward, (s,), impl=impl, **more))

    def compiled() -> Contender:
        function = torch.compile(naive_of_logits, dynamic=False)
        return trained(lambda: function(s, t, targets), (s,), **more)

    return {f"ours, {impl}": partial(op, impl) for impl in OURS[device]} | {
        "naive": lambda: trained(lambda: naive_of_logits(s, t, targets), (s,), **more),
        "naive, compiled": compiled,
        "copy": lambda: Contender(lambda: scratch.copy_(t), bytes_moved=2 * once),
    }


def kl_errors(V: int, device: str) -> Iterator[tuple[str, str, Callable[[], float]]]:
    """(name, impl, the worst error of KL on one row over what is allowed: 1e-5 of it + 1e-6) against fp64.

    Rows from nearly equal to far apart, from flat to peaked. A row stands 16 times, as many as compiled code sweeps.
    """
    pairs = []
    for spread in (0.5, 2.0, 8.0):
        for gap in (0.01, 0.3, 3.0):
            t = torch.randn(1, V, device=device) * spread
            s = (t + gap * torch.randn_like(t)).bfloat16().expand(16, -1).contiguous()
            pairs.append((s, t.bfloat16().expand(16, -1).contiguous()))
    targets = torch.zeros(16, dtype=torch.int64, device=device)

    def worst(kl: Callable[[Tensor, Tensor], Tensor]) -> float:
        found = [(reference.forward_kl(s[:1].double(), t[:1].double()).item(), kl(s, t).item() / 16) for s, t in pairs]
        return max(abs(value - truth) / (1e-5 * truth + 1e-6) for truth, value in found)

    def own(impl: Impl) -> float:
        if impl == "triton":
            needs_cuda(device)
        # with a gradient, as training has it
        return worst(lambda s, t: logit_divergence(s.requires_grad_(), t, targets, impl=impl).divergence)

    for impl in OURS[device]:
        yield f"ours, {impl}", impl, partial(own, impl)
    yield "naive", "", lambda: worst(lambda s, t: naive_of_logits(s, t, targets, 0.0) / KD)
    yield "the same in bf16", "", lambda: worst(lambda s, t: reference.forward_kl(s, t).sum())
