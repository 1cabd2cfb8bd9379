"""The one exception that means "what you gave me cannot work": scripts print it as a line and exit with 2."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """Bad input. The message names the thing, the values and the way out."""


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """An error for `name`, which is none of the `known` names of this `kind`; suggests the nearest."""
    names = sorted(known)
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else "choose one of " + ", ".join(names)
    return UserError(f"unknown {kind} '{name}': {hint}")
