"""Named arrays kept on disk under a key, memory-mapped when they are read."""

import logging
import os
from collections.abc import Callable, Mapping
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.store import fault, publish, recorded

logger = logging.getLogger(__name__)

Arrays = Mapping[str, NDArray[Any]]


def digest(array: NDArray[Any]) -> str:
    """A 128-bit BLAKE2b hash of an array's dtype, shape and content, in hex."""
    content = blake2b(f"{array.dtype.str} {array.shape} ".encode(), digest_size=16)
    content.update(np.ascontiguousarray(array).data.cast("B") if array.size else b"")
    return content.hexdigest()


def cached(directory: Path | None, key: str, build: Callable[[], Arrays]) -> Arrays:
    """The arrays stored under `directory/key`, or what `build` makes, which is then stored there.

    A damaged entry is logged and built again. Nothing is stored without a directory, or, with a warning, where it
    cannot be written.
    """
    if directory is None:
        return build()
    entry = directory / key
    try:
        if os.path.isdir(entry):  # Path.is_dir raises where the way there is closed
            return _load(entry)
    except (OSError, ValueError) as error:
        logger.warning("cache entry %s is damaged (%s): building it again", entry, error)
    arrays = build()
    try:
        with publish(entry) as aside:
            for name, array in arrays.items():
                np.save(aside / f"{name}.npy", array, allow_pickle=False)
    except OSError as error:  # the arrays are at hand
        _say_uncached(directory, error.strerror or str(error))
    return arrays


@cache
def _say_uncached(directory: Path, reason: str) -> None:
    logger.warning("tokenised text is not kept: %s cannot be written (%s); see TUTELAGE_CACHE", directory, reason)


def _load(entry: Path) -> Arrays:
    hashes = recorded(entry)
    by_file = all(name.endswith(".npy") for name in hashes)  # and before manifests had versions, by array
    if by_file and (reason := fault(entry)):
        raise ValueError(reason)
    names = {name.removesuffix(".npy"): expected for name, expected in hashes.items()}
    arrays = {name: np.load(entry / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in names}
    if not by_file and (wrong := [name for name, array in arrays.items() if digest(array) != names[name]]):
        raise ValueError(f"{wrong[0]}.npy does not match its hash")
    return arrays
