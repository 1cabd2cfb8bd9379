"""A training step and its parts: `python -m benchmarks.train_step [flags] [-- train.py's flags]`.

    python -m benchmarks.train_step --precision both                           # the quickstart's, bf16 beside fp32
    python -m benchmarks.train_step --compile both -- --student.preset 125m    # with and without compiled blocks
    python -m benchmarks.train_step --random_teacher starcoder2-3b -- --config configs/one-gpu.yaml --data stdlib

All cases run in one process, in turn, on the same rows: the function that training calls, taken apart as the run's own
log does it. MFU is the step's matmul FLOP (the teacher once, the student three times) over its time and the data
sheet's peak, where that is known; `of matmul` is the same over what a large matmul reaches here in the same dtype.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from jsonargparse.typing import NonNegativeFloat, PositiveInt

from benchmarks.ceilings import matmul_rate
from benchmarks.random_teacher import random_teacher
from benchmarks.timing import Lap, Output, device_line, extra_memory, laps, peak_resident, publish
from benchmarks.workload import Workload
from tutelage import cli
from tutelage.teacher.registry import load_teacher
from tutelage.training.config import RunConfig
from tutelage.training.devices import find_device
from tutelage.training.meter import PARTS
from tutelage.training.precision import DTYPES


@dataclass(frozen=True)
class Options(Output):
    """What to run."""

    precision: Literal["run", "bf16", "fp32", "both"] = "run"
    """The run's, another, or both and their ratio."""
    compile: Literal["run", "no", "yes", "both"] = "run"
    """As the run has the student's blocks, as they stand, compiled, or both."""
    random_teacher: str | None = None
    """A teacher of this shape with random weights, and of the run's teacher its vocabulary alone."""
    repeats: PositiveInt = 5
    """Timed rounds."""
    seconds: NonNegativeFloat = 3600.0
    """Rounds end, but for one, after so long."""


def cases(options: Options, config: RunConfig) -> dict[str, Workload]:
    """What is timed, by name."""
    known: dict[str, list[Any]] = {"run": [config.precision], "both": ["fp32", "bf16"]}
    compiled: dict[str, list[Any]] = {"run": [config.compile], "no": [False], "yes": [True], "both": [False, True]}
    found: dict[str, Workload] = {}
    teacher: Any = None
    if options.random_teacher is not None:
        vocabulary = load_teacher(config.teacher).tokenizer
        teacher = random_teacher(options.random_teacher, vocabulary, str(find_device(config.device)))
    for precision in known.get(options.precision, [options.precision]):
        for blocks in compiled[options.compile]:
            work = Workload(replace(config, precision=precision, compile=blocks), teacher)
            found[f"{work.parts.precision}{', blocks compiled' if blocks else ''}"] = work
    return found


def measure(found: dict[str, Workload], options: Options) -> list[dict[str, Any]]:
    """A row per case."""
    runs: dict[str, Callable[[Lap], object]] = {}
    for name, work in found.items():
        runs[name] = lambda lap, work=work: (lap(), work.step(), lap())  # type: ignore[misc]
    times = laps(runs, options.repeats, until=time.monotonic() + options.seconds)
    rows: list[dict[str, Any]] = []
    for name, work in found.items():
        step = float(np.median(times[name]))
        parts = {part: float(np.median([one[part] for one in work.taken[1:]])) for part in PARTS}
        dtype = DTYPES[work.parts.precision.student]
        rows.append(
            {"case": name, "teacher": work.parts.teacher.spec.name, "student": work.parts.student.config.n_parameters}
            | {"step s": step, "tokens/s": work.tokens / step}
            | {f"{part} %": 100 * seconds / sum(parts.values()) for part, seconds in parts.items()}
            | {"TFLOP": work.flops / 1e12}
            | {"MFU": work.ideal / step if work.device.type == "cuda" else None}
            | {"of matmul": work.flops / step / matmul_rate(work.device.type, dtype)}
            | {"extra GiB": extra_memory(work.step, work.device.type) / 2**30}
        )
    return rows


def ratio(rows: list[dict[str, Any]]) -> float | None:
    """How much faster a step is in fp32 than in bf16, where both were timed."""
    seconds = {row["case"]: float(row["step s"]) for row in rows if "step s" in row}
    return seconds["bf16"] / seconds["fp32"] if {"bf16", "fp32"} <= seconds.keys() else None


def main(argv: list[str]) -> int:
    """Prints a table."""
    own, run = argv, ["--config", "configs/quickstart.yaml"]
    if "--" in argv:
        own, run = argv[: argv.index("--")], argv[argv.index("--") + 1 :]
        run = run if "--config" in run else ["--config", "configs/quickstart.yaml", *run]
    options = cli.parse(Options, own, prog="benchmarks.train_step", description=__doc__ or "")
    config = cli.parse(RunConfig, run, prog="benchmarks.train_step", description="")
    found = cases(options, config)
    rows = measure(found, options)
    device = next(iter(found.values())).device.type
    gain = ratio(rows)
    result = {"rows": rows, "fp32_over_bf16": gain, "peak_resident_bytes": peak_resident()}
    if publish("train_step", result, options, device):
        print(device_line(device))
        for row in rows:
            print("\n".join(f"{name:<20}{value:,.4g}" if isinstance(value, float) else f"{name:<20}{value}"
                            for name, value in row.items()), end="\n\n")  # fmt: skip
        if gain:
            print(f"a step in fp32 is {gain:.2f}× as fast as in bf16")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(lambda: main(sys.argv[1:])))
