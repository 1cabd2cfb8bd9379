"""Plain values as bytes: tag, length, body. Only exact types of Python's own, so that no foreign `__eq__` crosses."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

DEPTH = 100
MESSAGE = 1 << 16  # bytes read at a time
PACKAGES = "/packages"  # where those that were asked for stand, under the root


class RefusedError(Exception):
    """A value, or a message, that may not cross the pipe."""


_NAMED = {kind.__name__: kind for kind in (
    bool, int, float, complex, str, bytes, list, tuple, set, frozenset, dict, object, type(None),
)}  # fmt: skip
_LEAVES: dict[type, tuple[bytes, Callable[[Any], bytes], Callable[[bytes], object]]] = {
    type(None): (b"N", lambda _: b"", lambda _: None),
    bool: (b"B", lambda value: b"1" if value else b"", lambda body: body == b"1"),
    int: (b"I", lambda value: str(value).encode(), int),  # Python itself bounds the digits, both ways
    float: (b"F", lambda value: repr(value).encode(), float),
    Decimal: (b"D", lambda value: str(value).encode(), lambda body: Decimal(body.decode())),
    Fraction: (
        b"Q",
        lambda value: b"%d/%d" % (value.numerator, value.denominator),
        lambda body: Fraction(*map(int, body.split(b"/"))),
    ),
    complex: (b"C", lambda value: repr(value).encode(), lambda body: complex(body.decode())),
    str: (
        b"S",
        lambda text: text.encode("utf-8", "surrogatepass"),
        lambda body: body.decode("utf-8", "surrogatepass"),
    ),
    bytes: (b"Y", bytes, bytes),
    type: (b"T", lambda kind: _name(kind), lambda body: _NAMED[body.decode()]),
}
_BRANCHES: dict[type, tuple[bytes, Callable[[list[Any]], object]]] = {
    list: (b"l", list),
    tuple: (b"t", tuple),
    set: (b"s", set),
    frozenset: (b"z", frozenset),
    dict: (b"d", lambda items: dict(zip(items[::2], items[1::2], strict=True))),
}
_LOAD = {tag: load for tag, _, load in _LEAVES.values()}
_BUILD = dict(_BRANCHES.values())


def encode(value: Any, depth: int = DEPTH) -> bytes:
    """`value` as bytes; raises RefusedError for any but those types and beyond `depth` levels."""
    value = _downcast(value)
    if leaf := _LEAVES.get(type(value)):
        body = leaf[1](value)
        return leaf[0] + len(body).to_bytes(4, "big") + body
    if depth == 0:
        raise RefusedError("value nested too deeply")
    items = [part for pair in value.items() for part in pair] if type(value) is dict else list(value)
    tag = _BRANCHES[type(value)][0]
    return tag + len(items).to_bytes(4, "big") + b"".join([encode(item, depth - 1) for item in items])


def decode(data: bytes, at: int = 0, depth: int = DEPTH) -> tuple[Any, int]:
    """The value that starts at offset `at`, and the offset behind it; raises on anything malformed."""
    tag, size = data[at : at + 1], int.from_bytes(data[at + 1 : at + 5], "big")
    at += 5
    if tag in _LOAD:
        if at + size > len(data):
            raise RefusedError("message cut short")
        return _LOAD[tag](data[at : at + size]), at + size
    if depth == 0 or tag not in _BUILD:
        raise RefusedError("malformed message")
    items = []
    for _ in range(size):
        item, at = decode(data, at, depth - 1)
        items.append(item)
    return _BUILD[tag](items), at


def brief(error: BaseException) -> str:
    """Kind and last line of an error, at most 200 characters."""
    try:
        lines = str.splitlines(str.strip(str(error)))
    except BaseException:  # a hostile __str__, as its methods would be
        lines = []
    name = type.__dict__["__name__"].__get__(type(error))  # whatever a metaclass makes of it
    return ": ".join([name, *lines[-1:]])[:200]


def _downcast(value: Any) -> Any:
    """What stands behind a Counter, OrderedDict, defaultdict, namedtuple, or a number or array of numpy."""
    if type(value) in _LEAVES or type(value) in _BRANCHES:
        return value
    if isinstance(value, dict) and type(value).__module__ == "collections":
        return dict(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return tuple(value)
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        return value.tolist()
    raise RefusedError(f"a value of type {type(value).__name__!r} is refused")


def _name(kind: type) -> bytes:
    if _NAMED.get(kind.__name__) is not kind:
        raise RefusedError(f"the type {kind.__name__!r} is refused: it is not built in")
    return kind.__name__.encode()
