"""Directories that are whole or absent: written aside, hashed, flushed, renamed; and checked before they are read.

In use::

    with publish(path) as aside:          # writes .NAME.PID.KEY.partial beside `path`, then renames it
        (aside / "weights").write_bytes(…)
    reason = fault(path)                  # None where every file has the SHA-256 that manifest.json records
"""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tutelage.locks import try_lock

MANIFEST = "manifest.json"
VERSION = 1
TRIES = 5
NO_FLUSH = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.ENOSYS}
"""What a file system says that cannot flush such a thing. Failures to write, such as EIO and ENOSPC, are others."""


@contextmanager
def publish(path: Path) -> Iterator[Path]:
    """Yields an empty directory beside `path`; on leaving, hashes and flushes it and renames it to `path`.

    Nothing appears at `path` before everything is on disk; an exception removes what was written. What stood there
    gives way, unless it is whole and the same: another process may be reading what it has just published. Raises
    OSError where the place cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent)
    with _aside(path) as aside:
        yield aside
        hashes = {file.relative_to(aside).as_posix(): sha256(file) for file in _files(aside)}
        manifest = json.dumps({"version": VERSION, "sha256": hashes}, indent=1)
        (aside / MANIFEST).write_text(manifest, encoding="utf-8")
        for file in [*_files(aside), *(d for d in aside.rglob("*") if d.is_dir()), aside]:
            _flush(file)
        _place(aside, path, hashes)
        _flush(path.parent)


def fault(path: Path) -> str | None:
    """Why the directory `path` is not what was published, or None where every file has its recorded SHA-256."""
    try:
        for name, expected in recorded(path).items():
            if sha256(path / name) != expected:
                return f"{name} does not have its recorded SHA-256"
    except (OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def recorded(path: Path) -> dict[str, str]:
    """The hashes in the manifest of `path` by name; before it had versions, it held nothing else.

    Raises OSError or ValueError where there is no manifest that can be read.
    """
    manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    version = manifest.get("version") if isinstance(manifest, dict) else None
    hashes = manifest.get("sha256") if isinstance(version, int) else manifest
    if isinstance(version, int) and version > VERSION:
        raise ValueError(f"{MANIFEST} has version {version}, and {VERSION} is the newest known here: update tutelage")
    if not isinstance(hashes, dict):
        raise ValueError(f"{MANIFEST} holds no hashes")
    return hashes


def sweep(directory: Path) -> None:
    """Removes what processes that are no more left unfinished in a directory."""
    for pattern in (".*.partial", ".writing-*"):
        for left in directory.glob(pattern):
            if _abandoned(left):
                shutil.rmtree(left, ignore_errors=True)


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _aside(path: Path) -> Iterator[Path]:
    """An empty directory beside `path` that is ours while we live, gone in the end unless it was renamed."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.partial")
    aside.mkdir()
    try:
        with _held(aside):
            yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _place(aside: Path, path: Path, hashes: dict[str, str]) -> None:
    """Renames `aside` to `path`, though another process may do the same at this moment."""
    for left in reversed(range(TRIES)):
        with suppress(OSError, ValueError):
            if recorded(path) == hashes and fault(path) is None:
                return
        try:
            if path.exists():
                _replace(aside, path)
            else:
                aside.rename(path)
            return
        except OSError:
            if not left or not (path.exists() and aside.exists()):
                raise


def _replace(aside: Path, path: Path) -> None:
    with _aside(path) as old:  # who has its files open may read on
        was = path.rename(old / path.name)
        try:
            aside.rename(path)
        except OSError:
            with suppress(OSError):  # somebody else was quicker
                was.rename(path)
            raise


@contextmanager
def _held(directory: Path) -> Iterator[bool | None]:
    """Whether the directory is locked by us while in here, or by another; None where there are no such locks."""
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except OSError:  # Windows opens no directories
        yield None
        return
    try:
        try:
            held = None if try_lock(descriptor) else True
        except BlockingIOError:
            held = False
        yield held
    finally:
        os.close(descriptor)


def _abandoned(aside: Path) -> bool:
    """Whether nobody alive writes there: nobody of its number is here, and nobody elsewhere holds the lock."""
    import psutil

    found = re.search(r"\.(\d+)(\.[0-9a-f]+)?\.partial$", aside.name)
    if not found and not aside.name.startswith(".writing-"):
        return False  # of another program
    owner = int(found[1]) if found else 0
    ours = owner == os.getpid()  # of another thread, or of a process before us that had our number
    if owner and not ours and psutil.pid_exists(owner):
        return False
    with _held(aside) as held:
        return held is True or (held is None and not ours)


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file())


def _flush(path: Path) -> None:
    folder = path.is_dir()
    try:
        # Windows flushes only what is open for writing, and opens no directories
        descriptor = os.open(path, os.O_RDWR if os.name == "nt" and not folder else os.O_RDONLY)
    except PermissionError:
        if folder:
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_FLUSH:
            raise
    finally:
        os.close(descriptor)
