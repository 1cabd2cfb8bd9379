"""A bar on a terminal; silence elsewhere."""

import sys
from collections.abc import Iterable
from typing import TypeVar

from rich.console import Console
from rich.progress import track

T = TypeVar("T")


def bar(items: Iterable[T], title: str, total: int) -> Iterable[T]:
    """The items, with a bar on standard error while they are used."""
    return track(items, title, total, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
