"""The trackers that a run can write to, through accelerate: TensorBoard, MLflow, Weights & Biases.

Locally by default, in the run's own directory; a server is what the tracker's own environment variables name
(MLFLOW_TRACKING_URI, WANDB_MODE=online), which a `.env` file may hold.
"""

import os
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from accelerate import PartialState
from accelerate.tracking import MLflowTracker, TensorBoardTracker, WandBTracker

from tutelage.errors import UserError, unknown

PROJECT = "tutelage"


class Sink(Protocol):
    """A tracker: made without touching anything, started, written to in the order of steps, finished."""

    def start(self) -> None:
        """Opens it; raises whatever the tracker raises."""

    def describe(self, settings: Mapping[str, Any]) -> None:
        """The run's configuration and environment, flat."""

    def log(self, values: dict[str, float], step: int) -> None:
        """A row of scalars."""

    def text(self, tag: str, text: str, step: int) -> None:
        """Markdown in which nothing is alive (see `tracking.indent`)."""

    def finish(self) -> None:
        """Flushes and closes it."""


class TensorBoard(TensorBoardTracker):  # type: ignore[misc]
    """Event files in RUN/tensorboard; a run that goes on hides what came after the step it goes on from."""

    def __init__(self, run: Path, step: int) -> None:
        super().__init__("tensorboard", str(run), purge_step=step + 1)

    def describe(self, settings: Mapping[str, Any]) -> None:
        """See `Sink`."""
        self.text("settings", "\n".join(f"    {name}: {value}" for name, value in settings.items()), 0)

    def text(self, tag: str, text: str, step: int) -> None:
        """See `Sink`."""
        self.writer.add_text(tag, text, step)


class MLflow(MLflowTracker):  # type: ignore[misc]
    """The store at MLFLOW_TRACKING_URI, or RUN/mlflow; a run that goes on is the same MLflow run."""

    def __init__(self, run: Path, step: int) -> None:
        self.directory, self.known = run, run / ".mlflow-run"
        known = self.known.read_text() if step and self.known.exists() else None
        super().__init__(PROJECT, run_id=known, run_name=run.name)

    def start(self) -> None:
        """See `Sink`."""
        import mlflow

        os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # it may hold a password
        if "MLFLOW_TRACKING_URI" not in os.environ:
            os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
            mlflow.set_tracking_uri((self.directory / "mlflow").absolute().as_uri())
            os.environ.pop("MLFLOW_TRACKING_URI", None)  # mlflow may set it; another run of this process has its own
        super().start()
        self.known.write_text(self.active_run.info.run_id)

    def describe(self, settings: Mapping[str, Any]) -> None:
        """See `Sink`; what a run was first given stays."""
        if not self.run_id:
            self.store_init_configuration(dict(settings))

    def text(self, tag: str, text: str, step: int) -> None:
        """See `Sink`."""
        import mlflow

        mlflow.log_text(text, f"{tag}/step-{step}.md")


class WandB(WandBTracker):  # type: ignore[misc]
    """W&B, offline in RUN/wandb unless WANDB_MODE says otherwise: `wandb sync` sends it later."""

    def __init__(self, run: Path, step: int) -> None:
        super().__init__(PROJECT, name=run.name, group=run.name, dir=str(run))

    def start(self) -> None:
        """See `Sink`."""
        import wandb

        # git remotes may hold passwords, and the terminal belongs to the bar
        settings = wandb.Settings(disable_git=True, save_code=False, console="off", silent=True)
        self.init_kwargs |= {"mode": os.environ.get("WANDB_MODE", "offline"), "settings": settings}
        super().start()

    def describe(self, settings: Mapping[str, Any]) -> None:
        """See `Sink`."""
        self.store_init_configuration(dict(settings))

    def text(self, tag: str, text: str, step: int) -> None:
        """See `Sink`."""
        import wandb

        self.run.log({tag: wandb.Table(columns=["step", "text"], data=[[step, text]])}, step=step)


TRACKERS: dict[str, Callable[[Path, int], Sink]] = {"tensorboard": TensorBoard, "mlflow": MLflow, "wandb": WandB}


def chosen(names: str) -> list[str]:
    """The trackers in `--tracker NAME,NAME`; "none" is none.

    Raises UserError for an unknown one, with the nearest name, and for one that is not installed.
    """
    PartialState(cpu=True)  # accelerate's trackers ask it which process they are in
    found = [name.strip() for name in names.split(",") if name.strip() != "none"]
    for name in found:
        if name not in TRACKERS:
            raise unknown("tracker", name, [*TRACKERS, "none"])
        if find_spec(name) is None:
            raise UserError(f"--tracker {name} is not installed: pip install -e '.[track]', or leave it out")
    return list(dict.fromkeys(found))
