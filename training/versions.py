"""The versions that configurations and training states were recorded under, and how an old one is read.

What an older version called otherwise goes through one table; what it did not have has its default.
"""

from collections.abc import Callable, Mapping
from typing import Any

from tutelage.errors import UserError

VERSION = 2
"""Of what is recorded now. Version 1, which nobody wrote down, knew no precision of three parts."""

RENAMED: dict[str, str] = {}
"""Fields of the configuration that had another name, dotted, and the one they have now."""
ADDED: dict[str, Any] = {"loss.rounding": 1}
"""Fields that version 1 did not have, and what it did, where that is not their default."""
REVALUED: dict[str, Callable[[Any], Any]] = {}
"""Fields, under the name they have now, whose old values mean a new one."""


def upgrade(tree: Mapping[str, Any], recorded: bool = False) -> dict[str, Any]:
    """A configuration as this version writes it. Raises UserError for one of a newer version.

    What somebody wrote by hand means today's defaults; one that a run `recorded` has all fields that its version had.
    """
    tree = dict(tree)
    recorded = recorded or "version" in tree or "resume" in tree
    version = tree.pop("version", 1)
    if not isinstance(version, int) or version > VERSION:
        raise UserError(
            f"configuration of version {version}: this is Tutelage's version {VERSION}, install a newer one"
        )
    for old, new in RENAMED.items():
        holder, leaf = _parent(tree, old)
        if leaf in holder:
            value = holder.pop(leaf)
            holder, leaf = _parent(tree, new, make=True)
            holder[leaf] = value
    for name, value in ADDED.items() if recorded and version < VERSION else ():
        holder, leaf = _parent(tree, name)
        if holder:
            holder.setdefault(leaf, value)
    for name, change in REVALUED.items():
        holder, leaf = _parent(tree, name)
        if leaf in holder:
            holder[leaf] = change(holder[leaf])
    return tree


def _parent(tree: dict[str, Any], name: str, make: bool = False) -> tuple[dict[str, Any], str]:
    """The mapping that a dotted name stands in, and its last part; a mapping that is not there is made, or is empty."""
    *parents, leaf = name.split(".")
    for part in parents:
        inner = tree.get(part, {} if make else None)
        if not isinstance(inner, dict):
            return {}, leaf
        tree[part] = inner = dict(inner)  # the caller's own tree stays as it is
        tree = inner
    return tree, leaf
