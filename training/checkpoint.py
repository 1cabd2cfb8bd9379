"""Checkpoints: everything a run needs to go on bit for bit, as safetensors and JSON, whole or absent.

`checkpoints/step-N/` holds `student/` (which `load_student` reads), `optimizer.safetensors`, `learned.safetensors`
(what losses learn), `rng.safetensors`, `state.json` and a manifest with the SHA-256 of every file.
"""

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tutelage.data.tokenizer import Tokenizer
from tutelage.errors import UserError
from tutelage.files import newest_whole, publish, steps
from tutelage.student.weights import save_student
from tutelage.training.distiller import Distiller


@dataclass
class TrainingState:
    """Where a run stands, and what it was made of."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    skipped: int = 0
    origin: dict[str, Any] = field(default_factory=dict)  # must be the same when the run goes on


def save_checkpoint(
    run: Path,
    state: TrainingState,
    distiller: Distiller,
    optimizer: torch.optim.Optimizer,
    tokenizer: Tokenizer,
    keep_last: int,
) -> Path:
    """Publishes `checkpoints/step-N` and then removes all but the newest `keep_last`."""
    path = run / "checkpoints" / f"step-{state.step}"
    with publish(path) as aside:
        save_student(distiller.student, tokenizer, aside / "student")
        save_file(_flat(optimizer), aside / "optimizer.safetensors")
        save_file(dict(distiller.objective.state_dict()), aside / "learned.safetensors")
        save_file(_rng(), aside / "rng.safetensors")
        (aside / "state.json").write_text(json.dumps(asdict(state), indent=1))
    # What lies ahead of the step just saved was damaged, or the run would have gone on from there.
    ahead = [old for old in steps(run) if int(old.name[5:]) > state.step]
    for old in ahead + steps(run)[len(ahead) + keep_last :]:
        shutil.rmtree(old)
    return path


def load_checkpoint(
    run: Path, origin: dict[str, Any], distiller: Distiller, optimizer: torch.optim.Optimizer
) -> TrainingState:
    """Restores the newest whole checkpoint of `run` in place.

    Raises UserError where there is none, or, with the difference, where the run was made of something else.
    """
    path = newest_whole(run)
    if path is None:
        raise UserError(f"{run} has no whole checkpoint to resume from: start anew with another --output_dir")
    state = TrainingState(**json.loads((path / "state.json").read_text()))
    _compare(state.origin, origin, run)
    distiller.student.load_state_dict(load_file(path / "student" / "model.safetensors"))
    distiller.objective.load_state_dict(load_file(path / "learned.safetensors"))
    _unflatten(load_file(path / "optimizer.safetensors"), optimizer)
    _set_rng(load_file(path / "rng.safetensors"))
    return state


def _compare(then: dict[str, Any], now: dict[str, Any], run: Path) -> None:
    """One line with every field that differs: a run may not continue as another run."""
    now = json.loads(json.dumps(now))  # as JSON sees it: tuples are lists
    before, after = _leaves(then), _leaves(now)
    differ = [
        f"{key} was {before.get(key)}, is {after.get(key)}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]
    if differ:
        raise UserError(f"cannot resume {run}: {'; '.join(differ)}: restore these, or start another run")


def _leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _flat(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """`{"PARAMETER.KEY": tensor}`; safetensors wants contiguous tensors, and its own copy of each."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{key}": value.contiguous() for index, entry in state.items() for key, value in entry.items()}


def _unflatten(tensors: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".")
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _rng() -> dict[str, Tensor]:
    states = {f"cuda.{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return {"cpu": torch.get_rng_state(), **states}


def _set_rng(states: dict[str, Tensor]) -> None:
    torch.set_rng_state(states.pop("cpu"))
    if states and torch.cuda.device_count() == len(states):
        torch.cuda.set_rng_state_all([states[f"cuda.{i}"] for i in range(len(states))])
