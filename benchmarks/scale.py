"""How a training step's time and memory grow: `python -m benchmarks.scale`.

One thing is varied at a time: tokens per step, sequence length, vocabulary, and processes on this machine's cores.
Every point is a fresh process (or group of them) that trains on random rows, so that its peak memory is its own; the
student has the quickstart's shape, and a random teacher of the same shape is asked in every step.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import Output, device_line, peak_resident, publish
from tutelage import cli
from tutelage.data.batch import Batch
from tutelage.errors import UserError
from tutelage.kernels.linear_divergence import DenseTeacher
from tutelage.losses.config import LossConfig
from tutelage.losses.objective import Objective
from tutelage.losses.term import Progress
from tutelage.student.config import StudentOptions, resolve
from tutelage.student.decoder import Decoder
from tutelage.teacher.signal import Signal
from tutelage.training.allocator import keep_memory
from tutelage.training.config import OptimConfig
from tutelage.training.distiller import Distiller
from tutelage.training.optim import clip, make_optimizer
from tutelage.training.processes import Processes


@dataclass(frozen=True)
class Point:
    """A setting; `rows` of all processes together."""

    rows: int = 8
    seq_len: int = 256
    vocab_size: int = 49_152
    processes: int = 1


BASE = Point()
AXES = {
    "tokens per step": [replace(BASE, rows=n) for n in (2, 4, 8, 16, 32)],
    "sequence length": [replace(BASE, rows=4096 // n, seq_len=n) for n in (128, 256, 512, 1024, 2048)],
    "vocabulary": [replace(BASE, vocab_size=n) for n in (8_192, 16_384, 32_768, 49_152, 98_304)],
    "processes": [replace(BASE, processes=n) for n in (1, 2)],
}
X = {
    "tokens per step": lambda point: point.rows * point.seq_len,
    "sequence length": lambda point: point.seq_len,
    "vocabulary": lambda point: point.vocab_size,
    "processes": lambda point: point.processes,
}


@dataclass(frozen=True)
class Options(Output):
    """What to measure."""

    axes: str = ",".join(AXES)
    """What is varied, joined by commas."""
    steps: int = 4
    """Timed steps of each point, after one that is not."""
    out: str = "benchmarks/results"
    """Where `scale.csv` and `scale.png` go."""
    point: str | None = None
    """Measure one point, given as JSON, in this process: how the command calls itself."""


def measure(point: Point, steps: int) -> dict[str, float]:
    """Median seconds of a step, and the peak resident memory of this process in bytes."""
    keep_memory()
    processes = Processes("cpu")
    torch.manual_seed(0)
    shape = resolve(StudentOptions(preset="smollm2-6l", max_seq_len=2048), point.vocab_size, "smollm2-6l")
    teacher = Decoder(shape).bfloat16().eval().requires_grad_(False)
    distiller = Distiller(Decoder(shape), Objective(LossConfig(), shape.vocab_size)).train()
    wrapped = processes.wrap(distiller)
    optimizer = make_optimizer(distiller, OptimConfig())
    seconds = []
    for step in range(steps + 1):
        batch = random_batch(point, step)
        started = time.perf_counter()
        counts, [mine] = distiller.objective.counts(batch), processes.shard(batch, 1)
        with torch.no_grad():
            hidden = teacher(mine.tokens, positions=mine.positions, segments=mine.segments).hidden
        loss, _ = wrapped(mine, Signal(DenseTeacher(hidden, teacher.head)), counts, Progress(step, steps))
        (loss * processes.size).backward()
        clip(distiller, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - started)
    return {"seconds": statistics.median(seconds[1:]), "bytes": float(peak_resident())}


def random_batch(point: Point, seed: int) -> Batch:
    """Rows of one document each, of random tokens."""
    random = torch.Generator().manual_seed(seed)
    tokens = torch.randint(point.vocab_size, (point.rows, point.seq_len + 1), generator=random)
    positions = torch.arange(point.seq_len).expand(point.rows, -1)
    return Batch(tokens[:, :-1], tokens[:, 1:], torch.zeros_like(positions), positions, torch.arange(point.rows))


def elsewhere(point: Point, steps: int) -> dict[str, float]:
    """The same in processes of their own, which share this machine's cores; memory is of all together."""
    command = [sys.executable, "-m", "benchmarks.scale", "--point", json.dumps(asdict(point)), "--steps", str(steps)]
    if point.processes > 1:
        command[1:2] = ["-m", "torch.distributed.run", "--nproc_per_node", str(point.processes), "-m"]
    env = {**os.environ, "OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // point.processes))}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if len(found) != point.processes:
        raise UserError(f"{point} could not be measured: {done.stderr[-200:] or done.returncode}")
    return {"seconds": max(row["seconds"] for row in found), "bytes": sum(row["bytes"] for row in found)}


def main(argv: list[str]) -> int:
    """Prints a table, and writes it and its picture."""
    options = cli.parse(Options, argv, prog="benchmarks.scale", description=__doc__ or "")
    if options.point:
        print(json.dumps(measure(Point(**json.loads(options.point)), options.steps)))
        return 0
    known: dict[Point, dict[str, float]] = {}
    rows: list[dict[str, Any]] = []
    axes = options.axes.split(",")
    if unknown := set(axes) - set(AXES):
        raise UserError(f"--axes {', '.join(unknown)}: choose from {', '.join(AXES)}")
    for axis in axes:
        for point in AXES[axis]:
            if point not in known:
                known[point] = elsewhere(point, options.steps)
            tokens = point.rows * point.seq_len
            found = {"axis": axis, **asdict(point), **known[point], "tokens_per_s": tokens / known[point]["seconds"]}
            rows.append(found)
            if not options.json:
                print(
                    f"{axis:<16}{X[axis](point):>8,}{found['seconds']:>9.2f} s{found['bytes'] / 2**30:>8.2f} GiB"
                    f"{found['tokens_per_s']:>8,.0f} tokens/s",
                    flush=True,
                )
    publish("scale", {"rows": rows}, options)
    save(rows, Path(options.out))
    return 0


def save(rows: list[dict[str, Any]], out: Path) -> None:
    """`scale.csv`, with the device in its first line, and `scale.png`, with the device in its title."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    out.mkdir(parents=True, exist_ok=True)
    lines = [",".join(rows[0]), *(",".join(str(value) for value in row.values()) for row in rows)]
    (out / "scale.csv").write_text(f"# {device_line()}\n" + "\n".join(lines) + "\n")
    axes = list(dict.fromkeys(row["axis"] for row in rows))
    figure, charts = pyplot.subplots(2, len(axes), figsize=(3.4 * len(axes), 5.6), squeeze=False)
    for column, axis in enumerate(axes):
        own = [row for row in rows if row["axis"] == axis]
        x = [X[axis](Point(**{key: row[key] for key in asdict(BASE)})) for row in own]
        for chart, values, label in (
            (charts[0][column], [row["seconds"] for row in own], "seconds per step"),
            (charts[1][column], [row["bytes"] / 2**30 for row in own], "peak memory, GiB"),
        ):
            chart.plot(x, values, marker="o", color="#2a5d8f")
            chart.set(xlabel=axis, ylim=(0, None), xlim=(0, None))
            chart.set_ylabel(label if column == 0 else "")
            chart.grid(alpha=0.3)
    figure.suptitle(device_line(), fontsize=9)
    figure.tight_layout()
    figure.savefig(out / "scale.png", dpi=110)


if __name__ == "__main__":
    sys.exit(cli.run(lambda: main(sys.argv[1:])))
