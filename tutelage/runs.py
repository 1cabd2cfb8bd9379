"""The layout of a run directory, known here alone: `RUN/config.yaml`, `RUN/checkpoints/step-N/student/`, …

A run is named by its directory; `RUN@STEP` and `RUN@best` name one of its checkpoints.
"""

import json
import logging
import re
from pathlib import Path

from tutelage.errors import UserError
from tutelage.store import fault

log = logging.getLogger(__name__)

CONFIG, ENVIRONMENT, METRICS = "config.yaml", "env.json", "metrics.jsonl"
STATE, STUDENT = "state.json", "student"
"""Of a checkpoint."""
FORMAT = "tutelage"
"""How a student directory calls itself in its config.json."""


def is_student(directory: Path) -> bool:
    """Whether the directory holds a student of ours (and not, say, a transformers checkpoint)."""
    try:
        record = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and record.get("format") == FORMAT


def checkpoint_path(run: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return run / "checkpoints" / f"step-{step}"


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint directory is named after."""
    return int(checkpoint.name.removeprefix("step-"))


def checkpoints(run: Path) -> list[Path]:
    """The checkpoint directories of a run, newest first, whole or not."""
    found = [path for path in (run / "checkpoints").glob("step-*") if path.name[5:].isdigit()]
    return sorted(found, key=step_of, reverse=True)


def newest_whole(run: Path) -> Path | None:
    """The newest checkpoint of a run whose hashes verify; says aloud which ones it passes over."""
    for path in checkpoints(run):
        reason = fault(path)
        if reason is None:
            return path
        log.warning("checkpoint %s is damaged (%s): trying the one before", path, reason)
    return None


def named(name: str) -> tuple[Path, str | None]:
    """The run and, where `name` is `RUN@STEP` or `RUN@best`, which checkpoint; a directory of that name goes first."""
    found = re.fullmatch(r"(.+)@(\d+|best)", name)
    if found is None or Path(name).exists():
        return Path(name), None
    return Path(found[1]), found[2]


def checkpoint(name: str) -> Path | None:
    """The checkpoint that a run's name means: the newest whole one, or the one named, which must be whole.

    None where the run has no whole one. Raises UserError where the one that is named is missing or damaged.
    """
    run, which = named(name)
    if which is None:
        return newest_whole(run)
    step = _best_step(run) if which == "best" else int(which)
    path = checkpoint_path(run, step)
    if not path.is_dir():
        steps = ", ".join(str(step_of(there)) for there in checkpoints(run)) or "none"
        raise UserError(f"{name}: no checkpoint of step {step} in {run}; there are: {steps}")
    if reason := fault(path):
        raise UserError(f"{name} is damaged ({reason}): choose another checkpoint")
    return path


def recorded_config(name: str) -> Path:
    """The configuration of the run that `--resume` names. Raises UserError where no run with a checkpoint is there."""
    run, _ = named(name)
    if not checkpoints(run) or not (run / CONFIG).is_file():
        raise UserError(f"--resume {name}: no checkpoints there")
    return run / CONFIG


def newest_run(root: Path = Path("runs")) -> Path:
    """The run whose last checkpoint is newest. Raises UserError where there is none."""
    runs = [run for run in root.glob("*") if checkpoints(run)]
    if not runs:
        raise UserError(f"no run in {root}/: train one (python train.py) or pass --model")
    return max(runs, key=lambda run: checkpoints(run)[0].stat().st_mtime)


def home(path: Path) -> Path | None:
    """The run that a directory is or lies in, as a checkpoint or a student of it does."""
    return next((home for home in (path, *path.parents) if (home / CONFIG).is_file()), None)


def _best_step(run: Path) -> int:
    newest = newest_whole(run)
    state = json.loads((newest / STATE).read_text()) if newest else {}
    if not state.get("best"):
        raise UserError(f"{run}@best: the run kept no best checkpoint: it needs --keep_best")
    return int(state["best"]["step"])
