"""Trains a preset for a few steps without a teacher: `python -m benchmarks.student --preset 125m --steps 20`.

Shows that the preset is a model one can train here, and what it takes: tokens/s, seconds per step, peak memory.
"""

import sys
import tempfile
from dataclasses import dataclass

from benchmarks.timing import Output, device_line, peak_resident, publish
from tutelage import cli, distill
from tutelage.losses.config import LossConfig
from tutelage.student.config import StudentOptions
from tutelage.training.config import OptimConfig, RunConfig


@dataclass(frozen=True)
class Options(Output):
    """What to run."""

    preset: str = "125m"
    """Student preset."""
    steps: int = 20
    """Optimizer steps."""
    batch_size: int = 4
    """Rows of 512 tokens per step."""
    teacher: bool = True
    """Distil from the embedded teacher; without, cross-entropy alone."""


def main(argv: list[str]) -> int:
    """Prints what the run needed."""
    options = cli.parse(Options, argv, prog="benchmarks.student", description=__doc__ or "")
    with tempfile.TemporaryDirectory() as directory:
        run = distill(
            RunConfig(
                steps=options.steps,
                batch_size=options.batch_size,
                output_dir=f"{directory}/run",
                eval_rows=8,
                log_every=5,
                student=StudentOptions(preset=options.preset),
                loss=LossConfig() if options.teacher else LossConfig(ce_weight=1.0, kd_weight=0.0),
                optim=OptimConfig(warmup_steps=5),
            )
        )
    result = {"preset": options.preset, "steps": run.step, "peak_resident_bytes": peak_resident(), **run.metrics}
    if not publish("student", result, options):
        return 0
    print(device_line())
    print(
        f"{options.preset}: {run.metrics['size/student']:,.0f} parameters, loss {run.metrics['train/loss']:.2f} after"
        f" {run.step} steps, {run.metrics['perf/mean_tokens_per_s']:,.0f} tokens/s,"
        f" peak {peak_resident() / 2**30:.2f} GiB"
    )
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(lambda: main(sys.argv[1:])))
