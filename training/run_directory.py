"""The run directory: where it is, that nothing else lives there, and what it says of itself."""

import json
import os
import platform
import sys
from dataclasses import asdict, replace
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import yaml

from tutelage.errors import UserError
from tutelage.files import steps
from tutelage.training.config import RunConfig

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
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"--output_dir {path} is not empty: pass --resume {path} to go on, or another directory")
    parent = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not os.access(parent, os.W_OK):
        raise UserError(f"--output_dir {path}: {parent} is not writable: choose another directory")
    return path


def open_run(path: Path, config: RunConfig) -> None:
    """Makes the directory, with the configuration to resume from and the environment, kept as first written."""
    # What ends this invocation is not part of what the run is.
    lasting = replace(config, resume=None, stop_after=None, dry_run=False, output_dir=None)
    record = yaml.safe_dump(asdict(lasting), sort_keys=False)
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not (path / "config.yaml").exists():
            (path / "config.yaml").write_text(record)
            (path / "env.json").write_text(json.dumps(environment(), indent=1))
    except OSError as error:
        raise UserError(f"--output_dir {path} cannot be written: {error.strerror}") from error


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
