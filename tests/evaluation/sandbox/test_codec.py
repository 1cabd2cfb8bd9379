"""What may cross the pipe between a completion and its checker."""

from collections import Counter, OrderedDict, namedtuple
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.evaluation.sandbox.codec import DEPTH, RefusedError, decode, encode

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.binary()
    | st.complex_numbers(allow_nan=False) | st.text(st.characters()) | st.decimals(allow_nan=False) | st.fractions(),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.sets(st.integers())
    | st.dictionaries(st.text() | st.integers(), inner) | st.frozensets(st.text()),
    max_leaves=20,
)  # fmt: skip


def types_of(value: object) -> object:
    """The types of a value, all the way down: 1, True and 1.0 are equal but not the same."""
    if isinstance(value, dict):
        return dict, [types_of(part) for part in value.values()]
    if isinstance(value, (list, tuple)):
        return type(value), [types_of(part) for part in value]
    return type(value)


@given(PLAIN)
def test_codec_returns_what_it_was_given(value):
    data = encode(value)
    back, end = decode(data)
    assert end == len(data)
    assert back == value
    assert types_of(back) == types_of(value)


@given(st.binary(max_size=60))
def test_codec_survives_any_bytes(data):
    try:
        value, _ = decode(data)
    except (RefusedError, ValueError, TypeError, ArithmeticError):
        return
    encode(value)


def test_codec_takes_plain_containers_out_of_their_dress_and_refuses_the_rest():
    Point = namedtuple("Point", "x y")
    for value in (Counter("aab"), OrderedDict(a=1), Point(1, 2)):
        back = decode(encode(value))[0]
        assert back == value
        assert type(back) in (dict, tuple)
    for value in (
        object(),
        type("I", (int,), {})(1),
        type("D", (Decimal,), {})(1),
        range(3),
        iter([]),
        type("int", (int,), {}),
        Counter,
    ):
        with pytest.raises(RefusedError, match="is refused"):
            encode(value)


def test_codec_bounds_depth_on_both_sides():
    value: list = []
    for _ in range(DEPTH - 1):
        value = [value]
    data = encode(value)
    assert decode(data)[0] == value
    with pytest.raises(RefusedError, match="nested"):
        encode([value])
    with pytest.raises(RefusedError):
        decode(b"l\0\0\0\1" + data)


def test_codec_passes_the_built_in_types_themselves_and_numbers_of_numpy():
    assert decode(encode([int, str, type(None), dict]))[0] == [int, str, type(None), dict]
    back = decode(encode((np.float64(0.5), np.array([[1, 2]]), np.bool_(True))))[0]
    assert back == (0.5, [[1, 2]], True)
    assert types_of(back) == types_of((0.5, [[1, 2]], True))
    with pytest.raises(RefusedError):
        encode(np.array([object()]))
