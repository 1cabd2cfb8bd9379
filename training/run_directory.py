"""The run directory: where it is, that nothing else lives there, and what it says of itself."""

import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from tutelage.environment import environment
from tutelage.errors import UserError
from tutelage.locks import lock
from tutelage.runs import CONFIG, ENVIRONMENT, recorded_config
from tutelage.teacher.registry import OBJECT
from tutelage.training.config import RunConfig
from tutelage.training.identity import differences
from tutelage.training.versions import VERSION, upgrade

LOCK = ".lock"


def run_path(config: RunConfig) -> Path:
    """The directory of this run, which need not exist.

    Raises UserError where a new run would land on another one, or a resumed one has no checkpoint.
    """
    if config.resume:
        return recorded_config(config.resume).parent
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    path = Path(config.output_dir or Path("runs") / f"{stamp}-{Path(config.teacher.removeprefix(OBJECT)).name}")
    if path.exists() and (not path.is_dir() or {inside.name for inside in path.iterdir()} - {LOCK}):
        raise UserError(f"--output_dir {path} is not empty: pass --resume {path} to go on, or another directory")
    parent = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not os.access(parent, os.W_OK):
        raise UserError(f"--output_dir {path}: {parent} is not writable: choose another directory")
    return path


def changes(path: Path, config: RunConfig) -> list[str]:
    """What this invocation changes of the run's recorded configuration, a line each."""
    recorded = upgrade(yaml.safe_load((path / CONFIG).read_text(encoding="utf-8")))
    lasting = _lasting(config)
    return [f"from here on: {line}" for line in differences(_filled(recorded, lasting), lasting)]


def _filled(recorded: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """A recorded tree with today's value where it has no such field: that one is new, and has its default."""
    return {
        key: _filled(recorded[key], value) if isinstance(value, dict) and isinstance(recorded.get(key), dict)
        else recorded.get(key, value)
        for key, value in now.items()
    }  # fmt: skip


def _lasting(config: RunConfig) -> dict[str, Any]:
    """The configuration without what ends or places this invocation, which is not part of what the run is."""
    passing = {"resume": None, "stop_after": None, "dry_run": False, "output_dir": None, "profile": False}
    return asdict(replace(config, **passing))  # type: ignore[arg-type]


@contextmanager
def open_run(path: Path, config: RunConfig, begun: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """A context that holds the directory alone, with the configuration to resume from and the environment in it.

    Both are kept as first written. A new run that is not `begun` when an exception ends it leaves nothing. Raises
    UserError where another process holds the directory or made a run in it meanwhile, and where it cannot be written.
    """
    made = not path.exists()
    with ExitStack() as stack:
        try:
            path.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_hold(path))
            for partial in path.glob("checkpoints/.*.partial"):  # of a process that was killed: this one is alone here
                shutil.rmtree(partial)
            if not (path / CONFIG).exists():
                tree = {"version": VERSION, **_lasting(config)}
                (path / CONFIG).write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
                (path / ENVIRONMENT).write_text(json.dumps(environment(), indent=1), encoding="utf-8")
            elif not config.resume:
                raise UserError(f"--output_dir {path}: another run was made there meanwhile: choose another directory")
        except OSError as error:
            if made:  # a run that never began leaves nothing
                shutil.rmtree(path, ignore_errors=True)
            raise UserError(f"--output_dir {path} cannot be written: {error.strerror}") from error
        try:
            yield
        except BaseException:
            if not config.resume and not begun():
                _empty(path, remove=made)
            raise


def _empty(path: Path, remove: bool) -> None:
    """Removes what is in a run's directory, and the directory itself where it was not there before."""
    for inside in path.iterdir():
        if inside.is_dir() and not inside.is_symlink():
            shutil.rmtree(inside, ignore_errors=True)
        else:
            with suppress(OSError):  # Windows keeps what is open
                inside.unlink()
    if remove:
        with suppress(OSError):  # the error that ended the run is the one to be seen
            path.rmdir()


@contextmanager
def _hold(path: Path) -> Iterator[None]:
    """Holds the run's lock, which says who holds it; the system lets go of it however its process ends."""
    with ExitStack() as stack:
        try:
            file = stack.enter_context(lock(path / LOCK))
        except BlockingIOError as error:
            holder = (path / LOCK).read_text(encoding="utf-8").strip() or "another process"
            raise UserError(
                f"{path} is in use by {holder}: wait for it, stop it, or choose another directory"
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def check_room(path: Path, room: int) -> None:
    """Raises UserError where fewer than `room` bytes are free at `path`, which need not exist."""
    free = shutil.disk_usage(next(p for p in (path, *path.absolute().parents) if p.exists())).free
    if free < room:
        raise UserError(
            f"{path} has {free / 1e6:,.0f} MB free and its checkpoints will take {room / 1e6:,.0f} MB:"
            " make room, lower --keep_last, raise --checkpoint_every, or choose another --output_dir"
        )
