"""What ends lower on held-out text? `python -m benchmarks.variants --which objective --seeds 3 --steps 60`.

Runs the quickstart's configuration with one thing varied, on the same rows in the same order:
`objective` distillation against cross-entropy alone; `init` the three initialisations; `preset` a smaller student.
"""

import sys
import tempfile
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from benchmarks.timing import Output, device_line, publish
from tutelage import cli, distill
from tutelage.errors import UserError
from tutelage.losses.config import LossConfig
from tutelage.student.config import StudentOptions
from tutelage.training.config import OptimConfig, RunConfig

VARIANTS = {
    "objective": {
        "distillation": {},
        "cross-entropy alone": {"loss": LossConfig(ce_weight=1.0, kd_weight=0.0)},
    },
    "init": {
        "smollm2-6l, random": {"student": StudentOptions(preset="smollm2-6l")},
        "smollm2-6l, embeddings": {"student": StudentOptions(preset="smollm2-6l", init="embeddings")},
        "smollm2-6l, layers": {"student": StudentOptions(preset="smollm2-6l", init="layers")},
    },
    "preset": {
        "smollm2-6l, random": {"student": StudentOptions(preset="smollm2-6l")},
        "30m, random": {"student": StudentOptions(preset="30m"), "optim": OptimConfig(lr=1e-3, warmup_steps=10)},
    },
}


@dataclass(frozen=True)
class Options(Output):
    """What to run."""

    which: Literal["objective", "init", "preset"] = "objective"
    """What is varied."""
    seeds: int = 3
    """Runs per variant, each with its own order of rows and initial weights."""
    steps: int = 60
    """Optimizer steps of each run."""
    run: str = "configs/quickstart.yaml"
    """Configuration they share."""


def main(argv: list[str]) -> int:
    """Prints held-out loss, acceptance and speed of each variant."""
    options = cli.parse(Options, argv, prog="benchmarks.variants", description=__doc__ or "")
    if options.seeds < 1:
        raise UserError(f"--seeds {options.seeds}: at least one run per variant")
    base = cli.parse(RunConfig, ["--config", options.run], prog="benchmarks.variants", description="")
    every = {"steps": options.steps, "minutes": None} | dict.fromkeys(("eval_every", "checkpoint_every"), options.steps)
    base = replace(base, **every, eval_rows=32, tracker="none")
    results: dict[str, list[dict[str, float]]] = {}
    for name, fields in VARIANTS[options.which].items():
        for seed in range(options.seeds):
            with tempfile.TemporaryDirectory() as directory:
                run = distill(replace(base, seed=seed, output_dir=f"{directory}/run", **fields))
            results.setdefault(name, []).append(run.metrics)
    if not publish("variants", {"which": options.which, "steps": options.steps, "results": results}, options):
        return 0
    print(f"{device_line()}, {options.steps} steps of {base.batch_size} × {base.packing.seq_len} tokens")
    for name, rows in results.items():
        loss, acceptance, speed = (
            [row[key] for row in rows] for key in ("eval/loss", "eval/acceptance", "perf/mean_tokens_per_s")
        )
        print(
            f"{name:<26} held-out loss {np.mean(loss):.3f} (by seed {', '.join(f'{value:.3f}' for value in loss)})"
            f"  acceptance {np.mean(acceptance):.3f}  {np.mean(speed):,.0f} tokens/s"
        )
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(lambda: main(sys.argv[1:])))
