"""What becomes of numbers when a run diverges: exponentials overflow, and JSON has no word for infinity."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any


def perplexity(loss: float) -> float:
    """e^loss, of a loss in nats per token: infinite where it overflows, NaN of NaN."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def finite(tree: Any) -> Any:
    """The same tree of dictionaries and lists, with None in place of every number that is infinite or NaN."""
    if isinstance(tree, float):
        return tree if math.isfinite(tree) else None
    if isinstance(tree, Mapping):
        return {key: finite(value) for key, value in tree.items()}
    if isinstance(tree, Sequence) and not isinstance(tree, str | bytes):
        return [finite(value) for value in tree]
    return tree


def to_json(tree: Any, indent: int | None = None) -> str:
    """JSON that every reader takes: null for what is infinite or NaN."""
    return json.dumps(finite(tree), indent=indent, allow_nan=False)
