"""The run directory: where it is, that nothing else lives there, and what it says of itself."""

import fcntl
import json
import logging
import os
import platform
import shutil
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TextIO

import yaml

from tutelage.errors import UserError
from tutelage.files import steps
from tutelage.training.config import RunConfig

log = logging.getLogger(__name__)
LOCK = ".lock"
PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "datasets", "accelerate", "numpy", "triton")


def run_path(config: RunConfig) -> Path:
    """The directory of this run, which need not exist.

    Raises UserError where a new run would land on another one, or a resumed one has no checkpoint.
    """
    if config.resume:
        path = Path(config.resume)
        if not steps(path):
            raise UserError(f"--resume {path}: no checkpoints there")
        return path
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    path = Path(config.output_dir or Path("runs") / f"{stamp}-{Path(config.teacher).name}")
    if path.exists() and (not path.is_dir() or {inside.name for inside in path.iterdir()} - {LOCK}):
        raise UserError(f"--output_dir {path} is not empty: pass --resume {path} to go on, or another directory")
    parent = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not os.access(parent, os.W_OK):
        raise UserError(f"--output_dir {path}: {parent} is not writable: choose another directory")
    return path


def changes(path: Path, config: RunConfig) -> list[str]:
    """What this invocation changes of the run's recorded configuration, a line each."""
    recorded = yaml.safe_load((path / "config.yaml").read_text())
    return [f"from here on: {line}" for line in differences(recorded, _lasting(config))]


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The fields of two trees that differ, dotted, with both values."""
    before, after = leaves(then), leaves(now)
    return [
        f"{key} was {before.get(key)}, is {after.get(key)}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]


def leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A tree of dictionaries as one with dotted names."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _lasting(config: RunConfig) -> dict[str, Any]:
    """The configuration without what ends this invocation, which is not part of what the run is."""
    return asdict(replace(config, resume=None, stop_after=None, dry_run=False, output_dir=None))


@contextmanager
def open_run(path: Path, config: RunConfig) -> Iterator[None]:
    """A context that holds the directory alone, with the configuration to resume from and the environment in it.

    Both are kept as first written. Raises UserError where another process holds the directory or made a run in it
    meanwhile, and where it cannot be written.
    """
    made = not path.exists()
    with ExitStack() as stack:
        try:
            path.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_lock(path))
            for partial in path.glob("checkpoints/.*.partial"):  # of a process that was killed: this one is alone here
                shutil.rmtree(partial)
            if not (path / "config.yaml").exists():
                (path / "config.yaml").write_text(yaml.safe_dump(_lasting(config), sort_keys=False))
                (path / "env.json").write_text(json.dumps(environment(), indent=1))
            elif not config.resume:
                raise UserError(f"--output_dir {path}: another run was made there meanwhile: choose another directory")
        except OSError as error:
            if made:  # a run that never began leaves nothing
                shutil.rmtree(path, ignore_errors=True)
            raise UserError(f"--output_dir {path} cannot be written: {error.strerror}") from error
        yield


def _lock(path: Path) -> TextIO:
    """A file that is locked while it is open: the system lets go of it however its process ends."""
    file = (path / LOCK).open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        raise UserError(f"{path} is in use by {holder}: wait for it, stop it, or choose another directory") from error
    except OSError as error:
        log.warning("%s is on a file system without locks (%s): see to it that no other run uses it", path, error)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file


def check_room(path: Path, room: int) -> None:
    """Raises UserError where fewer than `room` bytes are free at `path`, which need not exist."""
    free = shutil.disk_usage(next(p for p in (path, *path.absolute().parents) if p.exists())).free
    if free < room:
        raise UserError(
            f"{path} has {free / 1e6:,.0f} MB free and its checkpoints will take {room / 1e6:,.0f} MB:"
            " make room, lower --keep_last, raise --checkpoint_every, or choose another --output_dir"
        )


def environment() -> dict[str, str | int | None]:
    """Versions and machine, as far as they decide speed or rounding."""
    import torch

    found: dict[str, str | int | None] = {"python": platform.python_version(), "machine": platform.machine()}
    found |= {"threads": torch.get_num_threads(), "command": " ".join(Path(sys.argv[0]).name.split())}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def newest_run(root: Path = Path("runs")) -> Path:
    """The run whose last checkpoint is newest. Raises UserError where there is none."""
    runs = [run for run in root.glob("*") if steps(run)]
    if not runs:
        raise UserError(f"no run in {root}/: train one (python train.py) or pass --model")
    return max(runs, key=lambda run: steps(run)[0].stat().st_mtime)
