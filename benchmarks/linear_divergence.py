"""The fused loss beside what people use: `python -m benchmarks.linear_divergence [--json]`.

Forward and backward of CE + KL from hidden states and heads in bf16, time and extra memory, all in one process.
Peers: the naive loss over full logits, the same compiled, and Liger's chunked JSD loss.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.timing import Output, device_line, extra_memory, interleaved, publish
from tutelage import cli
from tutelage.kernels.linear_divergence import linear_divergence

Loss = Callable[[], Tensor]


@dataclass(frozen=True)
class Setting:
    """One size of the problem."""

    tokens: int = 2048
    """Tokens N."""
    vocab: int = 49_152
    """Vocabulary V."""
    student: int = 768
    """Student width D."""
    teacher: int = 576
    """Teacher width E."""


@dataclass(frozen=True)
class Options(Output):
    """What to run."""

    students: str = "384,768"
    """Student widths, separated by commas."""
    tokens: int = 2048
    """Tokens N."""
    repeats: int = 5
    """Timed rounds."""
    chunk: int = 2048
    """Tokens whose logits our loss holds at a time, where it is timed for speed."""
    small_chunk: int = 512
    """The same where it is timed for memory."""
    compile: bool = True
    """Time torch.compile too; it needs a C++ compiler."""


def losses(setting: Setting, options: Options) -> tuple[dict[str, Loss], list[Tensor]]:
    """The contenders on the same tensors, and the tensors that want gradients."""
    torch.manual_seed(0)
    N, V, D, E = setting.tokens, setting.vocab, setting.student, setting.teacher
    hidden = torch.randn(N, D).bfloat16().requires_grad_()
    head = (torch.randn(V, D) * D**-0.5).bfloat16().requires_grad_()
    t_hidden, t_head = torch.randn(N, E).bfloat16(), (torch.randn(V, E) * E**-0.5).bfloat16()
    targets = torch.randint(0, V, (N,))
    args = (hidden, head, t_hidden, t_head, targets)

    def ours(chunk: int) -> Tensor:
        return linear_divergence(*args, kd_weight=0.8, ce_weight=0.2, chunk_size=chunk).total

    contenders: dict[str, Loss] = {
        f"ours, chunk {options.chunk}": lambda: ours(options.chunk),
        f"ours, chunk {options.small_chunk}": lambda: ours(options.small_chunk),
        "naive": lambda: naive(*args),
    }
    if options.compile:
        compiled = torch.compile(naive)
        contenders["naive, compiled"] = lambda: compiled(*args)
    contenders["Liger chunked JSD"] = liger(args)
    return contenders, [hidden, head]


def naive(hidden: Tensor, head: Tensor, t_hidden: Tensor, t_head: Tensor, targets: Tensor) -> Tensor:
    """0.8·KL + 0.2·CE over full logits, as it is usually written; the teacher without a graph."""
    with torch.no_grad():
        log_p = F.log_softmax((t_hidden @ t_head.T).float(), -1)
    log_q = F.log_softmax((hidden @ head.T).float(), -1)
    kl = F.kl_div(log_q, log_p, log_target=True, reduction="sum")
    return 0.8 * kl + 0.2 * F.nll_loss(log_q, targets, reduction="sum")


def liger(args: tuple[Tensor, ...]) -> Loss:
    """Liger's chunked torch loss: its JSD, as it has no forward KL; the work is the same."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    hidden, head, t_hidden, t_head, targets = args
    loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.2, weight_soft_loss=0.8, compiled=False)
    return lambda: loss(hidden, head, t_hidden, t_head, targets)


def measure(setting: Setting, options: Options) -> dict[str, dict[str, float]]:
    """Seconds (p50) and extra bytes of forward and backward, by contender."""
    contenders, leaves = losses(setting, options)

    def step(loss: Loss) -> None:
        for leaf in leaves:
            leaf.grad = None
        loss().backward()

    runs = {name: (lambda loss=loss: step(loss)) for name, loss in contenders.items()}
    times = interleaved(runs, options.repeats)
    return {name: {"seconds": times[name][1], "bytes": float(extra_memory(run))} for name, run in runs.items()}


def main(argv: list[str]) -> int:
    """Prints a table per student width, or JSON."""
    options = cli.parse(Options, argv, prog="benchmarks.linear_divergence", description=__doc__ or "")
    results = {}
    for width in map(int, options.students.split(",")):
        setting = Setting(tokens=options.tokens, student=width)
        results[width] = measure(setting, options)
        if not options.json:
            show(setting, results[width])
    publish("linear_divergence", {"results": results}, options)
    return 0


def show(setting: Setting, rows: dict[str, dict[str, float]]) -> None:
    """Times and memory, and their ratios to the naive loss."""
    table = Table(title=f"{setting}\n{device_line()}")
    for column in ("forward + backward", "seconds (p50)", "extra MB", "times faster than naive", "times less memory"):
        table.add_column(column)
    base = rows["naive"]
    for name, row in rows.items():
        faster, leaner = base["seconds"] / row["seconds"], base["bytes"] / max(row["bytes"], 1.0)
        table.add_row(name, f"{row['seconds']:.2f}", f"{row['bytes'] / 1e6:,.0f}", f"{faster:.2f}", f"{leaner:.1f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    sys.exit(cli.run(lambda: main(sys.argv[1:])))
