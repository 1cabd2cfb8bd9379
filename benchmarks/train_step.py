"""A training step and its parts: `python -m benchmarks.train_step [flags] [-- train.py's flags]`.

    python -m benchmarks.train_step --precision both                           # the quickstart's, bf16 beside fp32
    python -m benchmarks.train_step --compile both -- --student.preset 125m    # with and without compiled blocks
    python -m benchmarks.train_step --random_teacher starcoder2-3b -- --config configs/one-gpu.yaml --data stdlib

All cases run in one process, in turn, on the same rows. `step` is what training calls. Its parts are timed in a run of
their own that waits for the device after each of them, so their sum is a little more than a step. MFU is the step's
matmul FLOP (the teacher once, the student three times) over its time and the data sheet's peak, or `of matmul`, over
what a large matmul reaches here in the same dtype.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import numpy as np
import torch
from jsonargparse.typing import NonNegativeFloat, PositiveInt

from benchmarks.ceilings import matmul_rate, peak_flops
from benchmarks.random_teacher import random_teacher
from benchmarks.timing import Lap, Output, device_line, extra_memory, laps, peak_resident, publish
from benchmarks.workload import STEP_PARTS, Workload
from tutelage import cli
from tutelage.teacher.registry import load_teacher
from tutelage.training.config import RunConfig

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class Options(Output):
    """What to run."""

    precision: Literal["run", "bf16", "fp32", "both"] = "run"
    """The run's, another, or both and their ratio."""
    compile: Literal["no", "yes", "both"] = "no"
    """The student's blocks compiled, as they stand, or both."""
    random_teacher: str | None = None
    """A teacher of this shape with random weights, and of the run's teacher its vocabulary alone."""
    repeats: PositiveInt = 5
    """Timed rounds."""
    seconds: NonNegativeFloat = 3600.0
    """Rounds end, but for one, after so long."""


def cases(options: Options, config: RunConfig) -> dict[str, Workload | str]:
    """What is timed by name, or the reason why it is not."""
    known = {"run": [str(config.precision)], "both": ["fp32", "bf16"]}
    precisions = known.get(options.precision, [str(options.precision)])
    blocks = {"no": [False], "yes": [True], "both": [False, True]}[options.compile]
    found: dict[str, Workload | str] = {}
    teacher: Any = None
    if options.random_teacher is not None:
        vocabulary = load_teacher(config.teacher).tokenizer
        device = "cpu" if config.device == "cpu" or not torch.cuda.is_available() else "cuda"
        teacher = random_teacher(options.random_teacher, vocabulary, device)
    for precision in precisions:
        for by_block in blocks:
            name = f"{precision}, blocks compiled" if by_block else precision
            try:
                found[name] = Workload(replace(config, precision=cast(Any, precision)), teacher, by_block=by_block)
            except NotImplementedError as error:
                found[name] = str(error)
    return found


def measure(found: dict[str, Workload | str], options: Options) -> list[dict[str, Any]]:
    """A row per case."""
    ready = {name: work for name, work in found.items() if isinstance(work, Workload)}
    runs: dict[str, Callable[[Lap], object]] = {}
    for name, work in ready.items():
        runs[name] = lambda lap, work=work: (lap(), work.step(), lap())
        runs[f"{name}, parts"] = work.by_part
    times = laps(runs, options.repeats, until=time.monotonic() + options.seconds)
    rows: list[dict[str, Any]] = []
    for name, case in found.items():
        if isinstance(case, str):
            rows.append({"case": name, "note": case})
            continue
        step = float(np.median(times[name]))
        parts = np.median(times[f"{name}, parts"], 0)
        rows.append(
            {"case": name, "teacher": case.parts.teacher.spec.name, "student": case.parts.student.config.n_parameters}
            | {"step s": step, "tokens/s": case.tokens / step}
            | {f"{part} %": 100 * float(s) / float(parts.sum()) for part, s in zip(STEP_PARTS, parts, strict=True)}
            | {"parts / step": float(parts.sum()) / step, "TFLOP": case.flops / 1e12}
            | utilisation(case, step)
        )
    return rows


def utilisation(case: Workload, step: float) -> dict[str, float | None]:
    """The share of what the device could do at most, and the memory that a step takes and gives back."""
    device = case.device.type
    dtype = DTYPES.get(str(case.config.precision), torch.bfloat16)
    rate, peak = case.flops / step, peak_flops(device)
    return {
        "MFU": rate / peak if peak else None,
        "of matmul": rate / matmul_rate(device, dtype),
        "extra GiB": extra_memory(case.step, device) / 2**30,
    }


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
    device = next((case.device.type for case in found.values() if isinstance(case, Workload)), "cpu")
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
