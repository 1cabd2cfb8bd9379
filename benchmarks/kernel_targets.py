"""What `benchmarks.kernels` measures, and what it should find: ratios to the peers, measured in one process."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

PARTS = ("forward", "backward", "both")
HERE_ALONE = {"cpu": "--device cpu", "cuda": "a CUDA device"}


@dataclass(frozen=True)
class Row:
    """A contender's forward pass, backward pass or both, or the reason why it is not there. A line of the CSV."""

    op: str
    setting: str
    contender: str
    impl: str = ""
    """Which of our implementations ran; empty for a peer."""
    part: str = ""
    p20: float | None = None
    """Seconds."""
    p50: float | None = None
    p80: float | None = None
    extra_bytes: float | None = None
    """Peak of the whole run over where memory stood; on the last part's row."""
    gradient_bytes: float | None = None
    """The gradients handed out, which are in `extra_bytes`."""
    figure: float | None = None
    """GB/s of the bytes that cannot be left out, or (`accuracy`) the worst error over what is allowed."""
    note: str = ""

    def with_cost(self, extra: int, gradients: int, moved: int) -> "Row":
        """The same with its memory, and its bandwidth where `moved` bytes cannot be left out."""
        figure = moved / self.p50 / 1e9 if moved and self.p50 else None
        return replace(self, extra_bytes=extra, gradient_bytes=gradients, figure=figure)


@dataclass(frozen=True)
class MemoryRow:
    """Extra memory of forward and backward at a number of tokens. A line of the CSV."""

    tokens: int
    vocab: int
    student: int
    contender: str
    extra_bytes: float
    hidden_bytes: float
    """The hidden states, N·D: what must grow with N, as their gradient has that size."""


How = Literal["faster", "leaner", "workspace", "ratio", "share", "worst"]


@dataclass(frozen=True)
class Target:
    """What a ratio to the named peers should be: of our fastest setting, in all it costs, to their best in this."""

    device: str
    what: str
    op: str
    how: How
    peers: tuple[str, ...]
    goal: float
    stretch: float | None = None
    part: str = "both"
    setting: str = ""
    """The size it is meant for; where that was not measured, the last one is shown and the table says so."""

    @property
    def lower_is_better(self) -> bool:
        """Whether the value should stay under the goal."""
        return self.how in ("ratio", "worst")

    def met(self, value: float, goal: float) -> bool:
        """Whether this value reaches a goal."""
        return value <= goal if self.lower_is_better else value >= goal

    def bound(self, goal: float | None) -> str:
        """A goal with its direction."""
        return "" if goal is None else f"{'≤' if self.lower_is_better else '≥'} {goal:g}"


CPU_LOSS = "N=2048 V=49152 D=768 E=576 bf16"
GPU_LOSS = "N=8192 V=49152 D=768 E=3072 bf16"
GPU_HEADS = "B=8 H=12 K=12 T=2048 Dh=64 bf16"
LIGER = ("Liger chunked, not compiled", "Liger chunked, compiled")


def _loss(device: str, peer: str, how: How, peers: Sequence[str], goal: float, stretch: float | None = None) -> Target:
    words = {"faster": "time", "leaner": "extra peak", "workspace": "workspace", "ratio": "time"}
    what = f"fused loss {'/' if how == 'ratio' else 'vs'} {peer}: {words[how]}"
    return Target(device, what, "loss", how, tuple(peers), goal, stretch, setting=_SIZE[device])


_SIZE = {"cpu": CPU_LOSS, "cuda": GPU_LOSS}


def _attention(part: str, backend: str, goal: float, stretch: float) -> Target:
    what = f"attention {'forward+backward' if part == 'both' else part} vs SDPA {backend}"
    return Target("cuda", what, "attention", "faster", (f"SDPA {backend}",), goal, stretch, part, GPU_HEADS)


TARGETS = [
    _loss("cuda", "Liger fused_linear_jsd", "faster", ["Liger fused_linear_jsd, KL alone"], 5, 8),
    _loss("cuda", "Liger fused_linear_jsd", "workspace", ["Liger fused_linear_jsd, KL alone"], 6, 12),
    _loss("cuda", "fair eager naive", "faster", ["naive"], 3, 5),
    _loss("cuda", "fair eager naive", "workspace", ["naive"], 25, 60),
    _loss("cuda", "torch.compile of the naive loss", "faster", ["naive, compiled"], 1.15, 1.4),
    _loss("cuda", "torch.compile of the naive loss", "workspace", ["naive, compiled"], 8),
    _loss("cuda", "sum of its four GEMMs", "ratio", ["its four matmuls"], 1.5, 1.3),
    Target("cuda", "logit-level divergence: share of measured copy bandwidth", "logits", "share", ("copy",), 0.75, 0.9,
           setting="N=8192 V=49152 bf16"),
    _attention("forward", "flash", 1.2, 1.35),
    _attention("forward", "cuDNN", 0.95, 1.05),
    _attention("both", "flash", 1.0, 1.2),
    _attention("both", "cuDNN", 0.7, 0.85),
    Target("cuda", "RoPE + attention vs separate RoPE + flash", "rope", "faster",
           ("rotation, then SDPA flash", "compiled rotation, then SDPA flash"), 1.25, 1.5, setting=GPU_HEADS),
    Target("cuda", "student step vs compiled SDPA + naive loss", "step", "faster",
           ("SDPA, naive loss, trunk compiled",), 1.3, 1.8, setting=GPU_LOSS),
    _loss("cpu", "naive eager", "faster", ["naive"], 2.8, 3.5),
    _loss("cpu", "naive eager", "leaner", ["naive"], 4.5, 6),
    _loss("cpu", "torch.compile of the naive loss", "faster", ["naive, compiled"], 1.1, 1.4),
    _loss("cpu", "torch.compile of the naive loss", "leaner", ["naive, compiled"], 2, 2.5),
    _loss("cpu", "Liger chunked loss, the best of compiled or not", "faster", LIGER, 1.6, 2),
    _loss("cpu", "Liger chunked loss, the best of compiled or not", "leaner", LIGER, 1),
    _loss("cpu", "sum of its four matmuls, each in its fastest layout", "ratio", ["its four matmuls"], 1.6, 1.3),
    Target("cpu", "KL error against fp64, over 1e-5 of it + 1e-6", "accuracy", "worst", (), 1.0, part="forward",
           setting="V=49152 bf16 logits"),
]  # fmt: skip

COST: dict[str, Callable[[Any], float]] = {
    "faster": lambda row: row.p50,
    "ratio": lambda row: row.p50,
    "leaner": lambda row: max(row.extra_bytes, 1.0),
    # what is left without the gradients, which everybody hands out
    "workspace": lambda row: max(row.extra_bytes - row.gradient_bytes, 1.0),
    "share": lambda row: 1 / row.figure,
    "worst": lambda row: row.figure,
}
"""What is compared, the less the better."""


def judge(target: Target, rows: Sequence[Row], device: str) -> tuple[str, str, str]:
    """(measured, verdict, between whom) of a target."""
    if target.device != device:
        return "", f"not here: needs {HERE_ALONE[target.device]}", ""
    of_op = [row for row in rows if row.op == target.op]
    if not of_op:
        return "", f"not measured: --rows {target.op}", ""
    setting = target.setting if any(row.setting == target.setting for row in of_op) else of_op[-1].setting
    here = [row for row in of_op if row.setting == setting]
    sides = [[row for row in here if row.contender.startswith("ours")]]
    if target.peers:
        sides.append([row for row in here if row.contender in target.peers])
    ran = [[row for row in side if row.part == target.part and not row.note] for side in sides]
    if not all(ran):
        missing = next(side for side, found in zip(sides, ran, strict=True) if not found)
        return "", f"not here: {missing[0].note if missing else 'no such row'}", ""
    if target.how == "worst":
        best = [max(ran[0], key=COST["worst"])]
    else:  # one setting of ours must be both faster and leaner
        best = [min(ran[0], key=COST["faster"]), min(ran[-1], key=COST[target.how])]
    costs = [COST[target.how](row) for row in best]
    value = costs[0] if target.how == "worst" else costs[0] / costs[1] if target.how == "ratio" else costs[1] / costs[0]
    verdict = "met" if target.met(value, target.goal) else "missed"
    if target.stretch is not None and target.met(value, target.stretch):
        verdict = "met, stretch too"
    if setting != target.setting:
        verdict += " (at another size)"
    return f"{value:.3g}", verdict, " : ".join(row.contender for row in best)
