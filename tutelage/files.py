"""Where files of a run and derived files are found."""

import logging
import os
from pathlib import Path

from tutelage.store import fault

log = logging.getLogger(__name__)


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


def cache_directory() -> Path:
    """Where derived files live between runs: `$TUTELAGE_CACHE`, or `tutelage` in the user's cache directory."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("TUTELAGE_CACHE") or Path(base) / "tutelage")
