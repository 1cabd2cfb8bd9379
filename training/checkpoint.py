"""Checkpoints: everything a run needs to go on bit for bit, as safetensors and JSON, whole or absent.

`checkpoints/step-N/` holds `student/` (which `load_student` reads), `optimizer.safetensors`, `learned.safetensors`
(what losses learn), `rng.safetensors`, `state.json` and a manifest with the SHA-256 of every file. What several
processes share is written whole, by the first of them, so that a run may go on with any number of them.
"""

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tutelage.errors import UserError
from tutelage.runs import STATE, STUDENT, checkpoint, checkpoint_path, checkpoints, step_of
from tutelage.store import publish
from tutelage.student.weights import save_student
from tutelage.training.config import RunConfig
from tutelage.training.identity import compare
from tutelage.training.parts import Parts
from tutelage.training.processes import Processes
from tutelage.training.sharding import like, whole
from tutelage.training.versions import VERSION

log = logging.getLogger(__name__)
RANDOM = "rng.safetensors"


@dataclass
class TrainingState:
    """Where a run stands, and what it was made of."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    skipped: int = 0
    origin: dict[str, Any] = field(default_factory=dict)  # must be the same when the run goes on
    skipped_in_a_row: int = 0
    best: dict[str, float] | None = None  # the step with the lowest held-out loss that is kept, and its loss
    unscored: bool = False  # the evaluation of this step was given up
    version: int = VERSION

    @property
    def tokens_per_s(self) -> float:
        """Of training proper, since the run began."""
        return self.tokens / max(self.seconds, 1e-9)


def room(parts: Parts, config: RunConfig, state: TrainingState, run: Path) -> int:
    """Bytes that the run's checkpoints will take beyond those there are: the kept ones, and one that is written."""
    ahead = parts.steps - state.step
    saves = -(-ahead // config.checkpoint_every) + config.keep_best * (ahead // config.eval_every)
    one = 12 * sum(parameter.numel() for parameter in parts.distiller.parameters())  # fp32 weights and two moments
    there = len(checkpoints(run))
    more: int = one * (min(config.keep_last + config.keep_best + 1, there + saves) - there)
    return max(0, more)


def save_checkpoint(parts: Parts, state: TrainingState, run: Path, keep_last: int) -> Path:
    """Publishes `checkpoints/step-N` and then removes all but the newest `keep_last`, and the best one.

    Every process must come here; the first one writes. Raises OSError, and leaves the older ones as they are, where
    that cannot be done.
    """
    path = checkpoint_path(run, state.step)
    distiller, tell = parts.distiller, parts.processes.first
    weights = _whole(distiller.student.state_dict(), tell)
    learned = _whole(distiller.objective.state_dict(), tell)
    moments = _whole(_flat(parts.optimizer), tell)
    random = parts.processes.all_gather(_rng())
    if not tell:
        return path
    try:
        with publish(path) as aside:
            save_student(distiller.student, parts.tokenizer, aside / STUDENT, weights)
            save_file(moments, aside / "optimizer.safetensors")
            save_file(learned, aside / "learned.safetensors")
            save_file({f"{rank}.{k}": v for rank, own in enumerate(random) for k, v in own.items()}, aside / RANDOM)
            (aside / STATE).write_text(json.dumps(asdict(state), indent=1))
    except SafetensorError as error:  # how safetensors says that the disk is full
        raise OSError(str(error)) from error
    # What lies ahead of the step just saved is of another course: damaged, or left behind by --resume RUN@STEP.
    ahead = [old for old in checkpoints(run) if step_of(old) > state.step]
    for old in ahead + checkpoints(run)[len(ahead) + keep_last :]:
        if state.best is None or step_of(old) != state.best["step"]:
            shutil.rmtree(old, ignore_errors=True)  # what cannot be removed now is removed after the next save
    return path


class Saver:
    """Saves the steps of a run, which goes on where that fails: only a last step that is not saved is an error."""

    def __init__(self, parts: Parts, state: TrainingState, run: Path, keep_last: int) -> None:
        self.parts, self.state, self.run, self.keep_last = parts, state, run, keep_last
        self.saved, self._best = state.step, state.best
        self._failure: OSError | None = None

    def save(self) -> None:
        """Saves the step at hand; see `save_checkpoint`."""
        try:
            save_checkpoint(self.parts, self.state, self.run, self.keep_last)
            self.saved, self._best, self._failure = self.state.step, self.state.best, None
        except OSError as error:
            self._failure, self.state.best = error, self._best  # the best one is one that is there
            kept = f"step {self.saved} is kept" if self.saved else "none is kept yet"
            log.warning("step %d was not saved (%s): going on, %s", self.state.step, error, kept)

    def check(self) -> None:
        """Raises UserError where the newest step is not on disk."""
        if self._failure:
            kept = f"step {self.saved} is kept, make room and go on with --resume {self.run}"
            raise UserError(
                f"step {self.state.step} was not saved ({self._failure}):"
                f" {kept if self.saved else f'nothing is kept in {self.run}, make room and start again'}"
            )


def read_state(path: Path) -> TrainingState:
    """The state in a checkpoint, of this version or an older one. Raises UserError for a field it does not know."""
    tree = json.loads((path / STATE).read_text())
    if unknown := sorted(tree.keys() - {field.name for field in fields(TrainingState)}):
        raise UserError(f"{path} records {', '.join(unknown)}, which this version does not know: install a newer one")
    return TrainingState(**{"version": 1, **tree})


def load_checkpoint(parts: Parts, path: Path) -> TrainingState:
    """Restores the checkpoint at `path`, which `find_checkpoint` found, into the parts.

    Raises UserError, with the difference, where the run was made of something else.
    """
    state = read_state(path)
    run = path.parent.parent
    compare(state.origin, parts.origin, run)
    state.version = VERSION
    if state.best and not checkpoint_path(run, int(state.best["step"])).is_dir():
        state.best = None  # a better one took its place, after the step that the run goes back to
    for module, file in ((parts.student, f"{STUDENT}/model"), (parts.distiller.objective, "learned")):
        saved = load_file(path / f"{file}.safetensors")
        module.load_state_dict({name: like(saved[name], tensor) for name, tensor in module.state_dict().items()})
    _unflatten(load_file(path / "optimizer.safetensors"), parts.optimizer)
    _set_rng(load_file(path / RANDOM), parts.processes)
    return state


def find_checkpoint(processes: Processes, name: str) -> Path:
    """The checkpoint that rank 0 finds under a run's name. Raises UserError where it finds none."""
    path = processes.raise_together(lambda: checkpoint(name) if processes.first else None)
    path = processes.broadcast(path)
    if path is None:
        raise UserError(f"{name} has no whole checkpoint to resume from: start anew with another --output_dir")
    return path


def _whole(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """The tensors in one piece; every process helps to put them together, and those that do not write keep nothing."""
    together = ((name, whole(tensor)) for name, tensor in tensors.items())
    return {name: tensor.cpu() for name, tensor in together if keep}


def _flat(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """`{"PARAMETER.KEY": tensor}`; safetensors wants contiguous tensors, and its own copy of each."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{key}": value.contiguous() for index, entry in state.items() for key, value in entry.items()}


def _unflatten(tensors: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".")
        cut = like(tensor, parameters[int(index)]) if tensor.ndim else tensor  # the count of steps has no shape
        state.setdefault(int(index), {})[key] = cut
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _rng() -> dict[str, Tensor]:
    states = {f"cuda.{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return {"cpu": torch.get_rng_state(), **states}


def _set_rng(states: dict[str, Tensor], processes: Processes) -> None:
    if len({name.partition(".")[0] for name in states}) != processes.size:
        log.warning("saved by another number of processes: the rows go on in their order, dropout draws anew")
        return
    own = {name.partition(".")[2]: state for name, state in states.items() if name.startswith(f"{processes.rank}.")}
    torch.set_rng_state(own.pop("cpu"))
    if own and torch.cuda.device_count() == len(own):
        torch.cuda.set_rng_state_all([own[f"cuda.{i}"] for i in range(len(own))])
