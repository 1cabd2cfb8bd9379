"""Locks that the system lets go of however their holder ends: `flock` on Unix, `msvcrt` on Windows."""

import errno
import importlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TextIO

log = logging.getLogger(__name__)


def _module(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


fcntl, msvcrt = _module("fcntl"), _module("msvcrt")
HELD = {errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK}
"""What systems say where another holds a lock."""
FAR = 1 << 30
"""The byte locked on Windows, where nobody can read what is locked: behind any content."""


def lack() -> str | None:
    """What this Python lacks for locks, or None."""
    return None if fcntl or msvcrt else "the modules fcntl and msvcrt"


@contextmanager
def lock(path: Path) -> Iterator[TextIO]:
    """Holds the file `path`, made where there is none, alone; gives it, open for reading and appending.

    Raises BlockingIOError where another holds it, in this process too, and OSError where it cannot be opened. Where
    Python or the file system has no locks it goes on without one, and warns.
    """
    with path.open("a+", encoding="utf-8") as file:  # closing it lets go
        if reason := try_lock(file.fileno()):
            log.warning("%s cannot be locked (%s): see to it that nobody else uses it", path, reason)
        yield file


def try_lock(descriptor: int) -> str | None:
    """Locks an open file, or on Unix a directory; returns None, or why no lock can be had on it.

    Raises BlockingIOError where another holds it.
    """
    try:
        if fcntl:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        elif msvcrt:
            os.lseek(descriptor, FAR, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    except OSError as error:
        if error.errno in HELD:
            raise BlockingIOError(error.errno, error.strerror) from error
        return error.strerror or type(error).__name__
    return f"Python lacks {lack()}" if lack() else None
