"""Named arrays kept on disk under a key: written aside and renamed, memory-mapped when read, and checked."""

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

Arrays = Mapping[str, NDArray[Any]]
MANIFEST = "manifest.json"


def digest(array: NDArray[Any]) -> str:
    """A 128-bit BLAKE2b hash of an array's dtype, shape and content, in hex."""
    content = blake2b(f"{array.dtype.str} {array.shape} ".encode(), digest_size=16)
    content.update(np.ascontiguousarray(array).data.cast("B") if array.size else b"")
    return content.hexdigest()


def cached(directory: Path | None, key: str, build: Callable[[], Arrays]) -> Arrays:
    """The arrays stored under `directory/key`, or what `build` makes, which is then stored there.

    A damaged entry is logged and built again. Without a directory nothing is stored.
    """
    if directory is None:
        return build()
    entry = directory / key
    if entry.is_dir():
        try:
            return _load(entry)
        except (OSError, ValueError, KeyError) as error:
            logger.warning("cache entry %s is damaged (%s): building it again", entry, error)
            shutil.rmtree(entry, ignore_errors=True)
    arrays = build()
    _store(entry, arrays)
    return arrays


def _load(entry: Path) -> Arrays:
    manifest: dict[str, str] = json.loads((entry / MANIFEST).read_text())
    arrays = {name: np.load(entry / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in manifest}
    for name, expected in manifest.items():
        if digest(arrays[name]) != expected:
            raise ValueError(f"{name}.npy does not match its hash")
    return arrays


def _store(entry: Path, arrays: Arrays) -> None:
    entry.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=".writing-", dir=entry.parent))
    try:
        for name, array in arrays.items():
            np.save(aside / f"{name}.npy", array, allow_pickle=False)
        (aside / MANIFEST).write_text(json.dumps({name: digest(array) for name, array in arrays.items()}))
        os.rename(aside, entry)
    except OSError as error:
        # Another process may have stored the same entry first, or the disk is full: the arrays are at hand.
        logger.warning("%s was not cached: %s", entry, error)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
