"""What must be true after every completion."""

import os
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tutelage.evaluation.sandbox.pool import BOOT, UIDS, layers

LIMITS = [name for name in dir(resource) if name.startswith("RLIMIT_")]


def processes() -> set[int]:
    """The sandbox's processes but for warm helpers: forks of a helper, and whatever runs as a user of its."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            ours = BOOT.encode() in (entry / "cmdline").read_bytes() or entry.stat().st_uid in UIDS
            found[int(entry.name)] = int((entry / "stat").read_text().rsplit(")")[1].split()[1]) if ours else None
        except OSError:  # it ended meanwhile
            continue
    return {pid for pid, parent in found.items() if parent is not None and parent != os.getpid()}


def host() -> tuple[object, ...]:
    """What a completion must not change: limits, identity, directories, the library that all share."""
    files = [Path(os.__file__).parent, Path.home(), Path("/")]
    return (
        {name: resource.getrlimit(getattr(resource, name)) for name in LIMITS},
        (os.getuid(), os.umask(os.umask(0o22)), os.getcwd(), os.getsid(0)),
        [sorted(path.name for path in folder.iterdir()) for folder in files],
        Path("/proc/self/mountinfo").read_text(),
    )


@pytest.fixture
def private(tmp_path, monkeypatch) -> Iterator[Path]:
    """Where private directories are made; afterwards no file, no process and no change of the host may be left."""
    layers()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = host()
    yield tmp_path
    assert list(tmp_path.iterdir()) == []
    assert processes() == set()
    assert host() == before
