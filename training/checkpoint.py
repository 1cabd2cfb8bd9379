"""Checkpoints: everything a run needs to go on bit for bit, as safetensors and JSON, whole or absent.

`checkpoints/step-N/` holds `student/` (which `load_student` reads), `optimizer.safetensors`, `learned.safetensors`
(what losses learn), `rng.safetensors`, `state.json` and a manifest with the SHA-256 of every file. What several
processes share is written whole, by the first of them, so that a run may go on with any number of them.
"""

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tutelage.errors import UserError
from tutelage.files import newest_whole, steps
from tutelage.store import publish
from tutelage.student.weights import save_student
from tutelage.training.config import RunConfig
from tutelage.training.parts import Parts
from tutelage.training.processes import Processes
from tutelage.training.run_directory import differences
from tutelage.training.sharding import like, whole

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


def room(parts: Parts, config: RunConfig, state: TrainingState, run: Path) -> int:
    """Bytes that the run's checkpoints will take beyond those there are: the kept ones, and one that is written."""
    saves = -(-(parts.steps - state.step) // config.checkpoint_every)
    one = 12 * sum(parameter.numel() for parameter in parts.distiller.parameters())  # fp32 weights and two moments
    there = len(steps(run))
    more: int = one * (min(config.keep_last + 1, there + saves) - there)
    return max(0, more)


def save_checkpoint(parts: Parts, state: TrainingState, run: Path, keep_last: int) -> Path:
    """Publishes `checkpoints/step-N` and then removes all but the newest `keep_last`.

    Every process must come here; the first one writes. Raises OSError, and leaves the older ones as they are, where
    that cannot be done.
    """
    path = run / "checkpoints" / f"step-{state.step}"
    distiller, tell = parts.distiller, parts.processes.first
    weights = _whole(distiller.student.state_dict(), tell)
    learned = _whole(distiller.objective.state_dict(), tell)
    moments = _whole(_flat(parts.optimizer), tell)
    random = parts.processes.gather(_rng())
    if not tell:
        return path
    try:
        with publish(path) as aside:
            save_student(distiller.student, parts.teacher.tokenizer, aside / "student", weights)
            save_file(moments, aside / "optimizer.safetensors")
            save_file(learned, aside / "learned.safetensors")
            save_file({f"{rank}.{k}": v for rank, own in enumerate(random) for k, v in own.items()}, aside / RANDOM)
            (aside / "state.json").write_text(json.dumps(asdict(state), indent=1))
    except SafetensorError as error:  # how safetensors says that the disk is full
        raise OSError(str(error)) from error
    # What lies ahead of the step just saved was damaged, or the run would have gone on from there.
    ahead = [old for old in steps(run) if int(old.name[5:]) > state.step]
    for old in ahead + steps(run)[len(ahead) + keep_last :]:
        shutil.rmtree(old, ignore_errors=True)  # what cannot be removed now is removed after the next save
    return path


class Saver:
    """Saves the steps of a run, which goes on where that fails: only a last step that is not saved is an error."""

    def __init__(self, parts: Parts, state: TrainingState, run: Path, keep_last: int) -> None:
        self.parts, self.state, self.run, self.keep_last = parts, state, run, keep_last
        self.saved = state.step
        self._failure: OSError | None = None

    def save(self) -> None:
        """Saves the step at hand; see `save_checkpoint`."""
        try:
            save_checkpoint(self.parts, self.state, self.run, self.keep_last)
            self.saved, self._failure = self.state.step, None
        except OSError as error:
            self._failure = error
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


def load_checkpoint(parts: Parts, run: Path) -> TrainingState:
    """Restores the newest whole checkpoint of `run` into the parts.

    Raises UserError where there is none, or, with the difference, where the run was made of something else.
    """
    path = parts.processes.told(newest_whole(run) if parts.processes.first else None)
    if path is None:
        raise UserError(f"{run} has no whole checkpoint to resume from: start anew with another --output_dir")
    state = TrainingState(**json.loads((path / "state.json").read_text()))
    _compare(state.origin, parts.origin, run)
    for module, file in ((parts.student, "student/model"), (parts.distiller.objective, "learned")):
        saved = load_file(path / f"{file}.safetensors")
        module.load_state_dict({name: like(saved[name], tensor) for name, tensor in module.state_dict().items()})
    _unflatten(load_file(path / "optimizer.safetensors"), parts.optimizer)
    _set_rng(load_file(path / RANDOM), parts.processes)
    return state


def _compare(then: Mapping[str, Any], now: Mapping[str, Any], run: Path) -> None:
    """One line with every field that differs: a run may not continue as another run."""
    if differ := differences(then, json.loads(json.dumps(now))):  # as JSON sees it: tuples are lists
        raise UserError(f"cannot resume {run}: {'; '.join(differ)}: restore these, or start another run")


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
