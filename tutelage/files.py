"""Directories that are whole or absent: written aside, hashed, flushed, renamed; and checked before they are read."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger(__name__)
MANIFEST = "manifest.json"


@contextmanager
def publish(path: Path) -> Iterator[Path]:
    """Yields an empty directory beside `path`; on leaving, hashes and flushes it and renames it to `path`.

    Nothing appears at `path` before everything is on disk; an exception removes what was written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        yield aside
        hashes = {str(file.relative_to(aside)): sha256(file) for file in _files(aside)}
        (aside / MANIFEST).write_text(json.dumps(hashes, indent=1))
        for file in [*_files(aside), *(d for d in aside.rglob("*") if d.is_dir()), aside]:
            _flush(file)
        if path.exists():  # an older, possibly broken version
            shutil.rmtree(path)
        aside.rename(path)
        _flush(path.parent)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def fault(path: Path) -> str | None:
    """Why the directory `path` is not what was published, or None where every file has its recorded SHA-256."""
    try:
        hashes = json.loads((path / MANIFEST).read_text())
        for name, expected in hashes.items():
            if sha256(path / name) != expected:
                return f"{name} does not have its recorded SHA-256"
    except (OSError, ValueError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def steps(run: Path) -> list[Path]:
    """The checkpoint directories of a run, newest first, whole or not."""
    found = [path for path in (run / "checkpoints").glob("step-*") if path.name[5:].isdigit()]
    return sorted(found, key=lambda path: int(path.name[5:]), reverse=True)


def newest_whole(run: Path) -> Path | None:
    """The newest checkpoint of a run whose hashes verify; says aloud which ones it passes over."""
    for path in steps(run):
        reason = fault(path)
        if reason is None:
            return path
        log.warning("checkpoint %s is damaged (%s): trying the one before", path, reason)
    return None


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_directory() -> Path:
    """Where derived files live between runs: `$TUTELAGE_CACHE`, or `tutelage` in the user's cache directory."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("TUTELAGE_CACHE") or Path(base) / "tutelage")


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file())


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
