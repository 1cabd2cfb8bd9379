"""Where derived files are found."""

import os
from pathlib import Path


def cache_directory() -> Path:
    """Where derived files live between runs: `$TUTELAGE_CACHE`, or `tutelage` in the user's cache directory."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("TUTELAGE_CACHE") or Path(base) / "tutelage")
