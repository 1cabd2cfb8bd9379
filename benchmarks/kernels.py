"""Every op of ours beside its peers, in time, memory and accuracy: `python -m benchmarks.kernels [--device cuda]`.

All contenders of a table run in one process, in turn and on the same random tensors in bf16. It needs torch and numpy
alone: a peer that is not installed, or cannot run on this device, is a row that says why. Last come the targets.
"""

import argparse
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import kernel_report as report
from benchmarks.kernel_peers import (
    SETTINGS,
    Contender,
    Factories,
    Sizes,
    kl_errors,
    logit_losses,
    losses,
    naive,
    our_loss,
    problem,
)
from benchmarks.kernel_student_peers import Heads, attentions, decoding, norms, packed, rotations, student_steps
from benchmarks.kernel_targets import MemoryRow, Row
from benchmarks.timing import Output, device_line, extra_memory, laps, publish, quantiles
from tutelage.kernels.linear_divergence import forget_workspace
from tutelage.training.allocator import keep_memory

TOLERANCE = 0.05
"""How far a peer's loss may be from the naive one; some keep their statistics in bf16."""


@dataclass(frozen=True)
class Defaults:
    """What is measured on a device where nobody says otherwise."""

    tokens: int
    students: tuple[int, ...]
    teacher: int
    heads: tuple[int, int, int, int]
    """Rows, query heads, key/value heads and longest row of attention."""
    repeats: int
    vocab: int = 49_152
    cached: int = 4096
    """Tokens in the cache of a decoding step."""


DEFAULTS = {
    "cpu": Defaults(2048, (384, 768), 576, (4, 9, 3, 256), 7),
    "cuda": Defaults(8192, (768,), 3072, (8, 12, 12, 2048), 30),
}
GROWTH = [512 << step for step in range(6)]
"""Tokens at which memory is measured; the naive loss up to NAIVE_UP_TO of them."""
NAIVE_UP_TO = 4096


@dataclass(frozen=True)
class Options:
    """What to measure, from the command line."""

    device: str
    rows: tuple[str, ...]
    tokens: int
    vocab: int
    students: tuple[int, ...]
    teacher: int
    repeats: int
    limit: float
    seconds: float = math.inf

    @property
    def own(self) -> Defaults:
        """What the command line does not change."""
        return DEFAULTS[self.device]

    @property
    def heads(self) -> Heads:
        """The size of attention."""
        *batch, T = self.own.heads
        return Heads(*batch, min(T, self.tokens))


Tables = Iterator[tuple[str, Factories]]


def loss_tables(o: Options) -> Tables:
    """One table per student width."""
    for width in o.students:
        sizes = Sizes(o.tokens, o.vocab, width, o.teacher)
        yield str(sizes), losses(problem(sizes, o.device), o.device)


def logits_tables(o: Options) -> Tables:
    """Logits that exist."""
    yield f"N={o.tokens} V={o.vocab} bf16", logit_losses(o.tokens, o.vocab, o.device)


def decode_tables(o: Options) -> Tables:
    """The cache is cut down with the tokens."""
    cached = min(o.own.cached, 2 * o.tokens)
    yield f"{o.heads} L={cached}".replace(f"T={o.heads.tokens}", "T=1"), decoding(o.heads, cached, o.device)


def norm_tables(o: Options) -> Tables:
    """At the widest student."""
    N, D = o.tokens, max(o.students)
    yield f"N={N} D={D} bf16", norms(N, D, o.device)


def step_tables(o: Options) -> Tables:
    """The 125m preset is 768 wide."""
    sizes = Sizes(o.tokens, o.vocab, 768, o.teacher)
    yield str(sizes), student_steps(sizes, o.device)


TABLES: dict[str, Callable[[Options], Tables]] = {
    "loss": loss_tables,
    "logits": logits_tables,
    "attention": lambda o: iter([(str(o.heads), attentions(o.heads, o.device))]),
    "rope": lambda o: iter([(str(o.heads), rotations(o.heads, o.device))]),
    "packed": lambda o: iter([(str(o.heads), packed(o.heads, o.device))]),
    "decode": decode_tables,
    "norm": norm_tables,
    "step": step_tables,
}
ROWS = [*TABLES, "memory", "accuracy"]
ALLOCATOR = {
    "cpu": "freed memory is kept by everybody, as in training (training/allocator.py)",
    "cuda": "PyTorch's caching allocator; the L2 cache is cold before a forward pass and warm before a backward pass",
}


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raises TimeoutError in the block once it has taken so long: some peers compile for minutes."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"not ready within {seconds:g} s (--limit)")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def prepare(factory: Callable[[], Contender], limit: float) -> Contender | str:
    """A contender that has run once and gave what it should, or why there is none."""
    try:
        with within(limit):
            contender = factory()
            found = contender(lambda: None)
    except Exception as error:  # whatever keeps a peer from running here is its row
        return reason(error)
    if contender.expected is None:
        return contender
    value = float(found.detach())
    close = math.isclose(value, contender.expected, rel_tol=TOLERANCE)
    return contender if close else f"gives {value:.6g} where {contender.expected:.6g} is right"


def reason(error: Exception) -> str:
    """An exception in one line."""
    kind = "" if type(error).__name__ in ("NotHereError", "TimeoutError") else f"{type(error).__name__}: "
    return (kind + (str(error).strip().splitlines() or [""])[0])[:90]


def measure(op: str, setting: str, factories: Factories, o: Options, until: float = math.inf) -> list[Row]:
    """Times and extra memory of everybody in a table; where somebody cannot run, one row with the reason.

    Once `time.monotonic()` has passed `until`, who was not prepared stays out and there are no more rounds.
    """
    torch.compiler.reset()  # or what another size left behind would make this one compile for any size
    found: dict[str, Contender | str] = {}
    for name, factory in factories.items():
        left = until - time.monotonic()
        found[name] = prepare(factory, min(o.limit, left)) if left > 1 else "not measured: no time left (--seconds)"
    ready = {name: contender for name, contender in found.items() if isinstance(contender, Contender)}
    times = laps(ready, o.repeats, o.device, until=until)
    rows: list[Row] = []
    for name, contender in found.items():
        if isinstance(contender, str):
            rows.append(Row(op, setting, name, note=contender))
            continue
        parts = dict(zip(("forward", "backward"), times[name].T, strict=False))
        if len(parts) == 2:
            parts["both"] = times[name].sum(1)
        rows += [Row(op, setting, name, contender.impl, part, *quantiles(s)) for part, s in parts.items()]
        rows[-1] = rows[-1].with_cost(memory_of(contender, o.device), gradients(contender), contender.bytes_moved)
    return rows


def memory_of(contender: Contender, device: str) -> int:
    """Extra bytes of one run."""
    forget(contender.leaves)
    return extra_memory(lambda: contender(lambda: None), device)


def forget(leaves: Sequence[Tensor]) -> None:
    """Frees gradients, and the buffers our loss keeps between calls: what stood already would not count as extra."""
    for leaf in leaves:
        leaf.grad = None
    forget_workspace()


def gradients(contender: Contender) -> int:
    """Bytes of the gradients that it hands out, which are part of its extra memory."""
    return sum(leaf.numel() * leaf.element_size() for leaf in contender.leaves)


def growth(o: Options) -> list[MemoryRow]:
    """Extra memory of the fused loss and of the naive one, forward and backward, by number of tokens."""
    rows, width = [], min(o.students)
    for tokens in [n for n in GROWTH if n <= max(GROWTH[0], 8 * o.tokens)]:
        p = problem(Sizes(tokens, o.vocab, width, o.teacher), o.device)
        runs: dict[str, Callable[[], None]] = {
            f"ours, {name}": lambda p=p, settings=settings: our_loss(p, settings).backward()
            for name, settings in SETTINGS[o.device].items()
        }
        if tokens <= NAIVE_UP_TO:
            runs["naive"] = lambda p=p: naive(*p).backward()
        for name, run in runs.items():
            if tokens == GROWTH[0]:
                run()  # what the first run of all sets up is not this size's
            forget(p.leaves)
            extra = extra_memory(run, o.device)
            rows.append(MemoryRow(tokens, o.vocab, width, name, extra, tokens * width * p.hidden.element_size()))
    return rows


def accuracy(o: Options) -> list[Row]:
    """The worst error of one row's KL, over what is allowed."""
    rows = []
    for name, impl, run in kl_errors(o.vocab, o.device):
        found: dict[str, Any]
        try:
            found = {"figure": run()}
        except Exception as error:
            found = {"note": reason(error)}
        rows.append(Row("accuracy", f"V={o.vocab} bf16 logits", name, impl, "forward", **found))
    return rows


def everything(o: Options) -> Iterator[list[Row] | list[MemoryRow]]:
    """What `--rows` names, table after table; each has its share of the time that is left."""
    end = time.monotonic() + o.seconds
    for place, op in enumerate(o.rows):
        now = time.monotonic()
        until = now + (end - now) / (len(o.rows) - place)
        if op == "memory":
            yield growth(o)
        elif op == "accuracy":
            yield accuracy(o)
        else:
            for setting, factories in TABLES[op](o):
                yield measure(op, setting, factories, o, until)


def numbers(text: str) -> tuple[int, ...]:
    """`384,768` as numbers, in order."""
    return tuple(sorted(int(part) for part in text.split(",")))


def names(text: str) -> tuple[str, ...]:
    """`loss,memory` as names of tables."""
    found = tuple(text.split(","))
    if unknown := set(found) - set(ROWS):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: choose from {', '.join(ROWS)}")
    return found


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The command line, with the device's own sizes where it is silent."""
    parser = argparse.ArgumentParser("benchmarks.kernels", description=__doc__)
    parser.add_argument("--device", choices=list(DEFAULTS), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rows", type=names, default=tuple(ROWS), help=f"tables, of {','.join(ROWS)} (default: all)")
    parser.add_argument("--tokens", type=int, help="tokens N")
    parser.add_argument("--vocab", type=int, help="vocabulary V")
    parser.add_argument("--students", type=numbers, help="student widths D, separated by commas")
    parser.add_argument("--teacher", type=int, help="teacher width E")
    parser.add_argument("--repeats", type=int, help="timed rounds")
    parser.add_argument("--limit", type=float, default=240.0, help="seconds for a contender's first run")
    parser.add_argument("--seconds", type=float, default=math.inf, help="time for all tables; what is left out says so")
    parser.add_argument("--output", type=Path, help="folder for the CSV files and the picture")
    parser.add_argument("--redraw", action="store_true", help="measure nothing: show and draw what lies in --output")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--history", help="append the result as a line of JSON to this file")
    found = parser.parse_args(argv)
    if found.device == "cuda" and not torch.cuda.is_available() and not found.redraw:
        parser.error("--device cuda: there is no CUDA device")
    if found.redraw and found.output is None:
        parser.error("--redraw needs --output")
    for name, value in asdict(DEFAULTS[found.device]).items():
        if getattr(found, name, 0) is None:
            setattr(found, name, value)
    return found


def main(argv: Sequence[str]) -> int:
    """Prints the tables and the targets, and writes them where asked; an interrupted run keeps what it has."""
    keep_memory()  # as training does: nobody here waits for pages that were given back
    args = arguments(argv)
    options = Options(**{name: getattr(args, name) for name in Options.__dataclass_fields__})
    show: Callable[[str], None] = (lambda text: None) if args.json else (lambda text: print(text, flush=True))
    rows: list[Row] = []
    memory: list[MemoryRow] = []
    stopped = False
    if args.redraw:
        rows, memory, line = report.read(args.output, args.device)
        show("\n".join(map(report.table, report.grouped(rows))))
        show(report.memory_table(memory))
    else:
        line = device_line(args.device)
        show(line + f"\n{ALLOCATOR[args.device]}\n")
        torch.manual_seed(0)
        try:
            for found in everything(options):
                show(report.show(found))
                memory += [row for row in found if isinstance(row, MemoryRow)]
                rows += [row for row in found if isinstance(row, Row)]
                if args.output is not None:  # what comes next may bring the process down
                    report.write(rows, memory, args.output, args.device, line)
        except KeyboardInterrupt:
            stopped = True
        result = {"rows": [asdict(row) for row in rows], "memory": [asdict(row) for row in memory]}
        publish("kernels", result, Output(json=args.json, history=args.history), args.device)
    show(report.targets_table(rows, args.device))
    if args.output is not None and not stopped:
        show(report.draw(rows, memory, args.output / f"kernels-{args.device}.png", line))
    return 130 if stopped else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
