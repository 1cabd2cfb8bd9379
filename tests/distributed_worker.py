"""What two processes do in the tests: `torchrun … distributed_worker.py CONFIG.yaml OUT SCENARIO…`.

Every scenario is a run of its own in OUT/SCENARIO; what a process found out goes to OUT/SCENARIO-RANK.json.
"""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tutelage import cli, distill
from tutelage.errors import UserError
from tutelage.training.config import RunConfig
from tutelage.training.distiller import Distiller

RANK = int(os.environ["RANK"])
forward = Distiller.forward


def poisoned(self: Distiller, batch: Any, signal: Any, counts: Any, progress: Any) -> Any:
    """The second process alone finds a loss of NaN in step 2 and an infinite gradient in step 3."""
    loss, logs = forward(self, batch, signal, counts, progress)
    factor = {2: float("nan"), 3: float("inf")}.get(progress.step, 1.0) if RANK == 1 else 1.0
    return loss * factor, logs if progress.step == 3 else {name: value * factor for name, value in logs.items()}


def dying(self: Distiller, batch: Any, signal: Any, counts: Any, progress: Any) -> Any:
    """The second process breaks in step 2."""
    if RANK == 1 and progress.step == 2:
        raise ZeroDivisionError("this process had enough")
    return forward(self, batch, signal, counts, progress)


SCENARIOS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulated": {"accumulate": 2},
    "fsdp": {"fsdp": True, "accumulate": 2},
    "fsdp-huggingface": {"fsdp": True, "teacher": "huggingface"},
    "half": {"fsdp": True, "accumulate": 2, "stop_after": 3},
    "poisoned": {},
    "dying": {},
    "greedy": {"accumulate": 5},
}
FORWARD = {"poisoned": poisoned, "dying": dying}


def main(config: RunConfig, out: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    os.chdir(out)
    for name in names:
        Distiller.forward = FORWARD.get(name, forward)  # type: ignore[method-assign]
        seen: dict[str, Any] = {}
        try:
            run = distill(replace(config, output_dir=str(out / name), **SCENARIOS[name]))
            seen = {"path": str(run.path), "step": run.step, "metrics": run.metrics}
        except UserError as error:
            seen = {"error": str(error)}
        (out / f"{name}-{RANK}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(
        cli.parse(RunConfig, ["--config", sys.argv[1]], prog="worker", description=""), Path(sys.argv[2]), sys.argv[3:]
    )
