"""`tutelage.numbers`: what is left of them when a run diverges."""

import json
import math

import pytest

from tutelage.numbers import finite, perplexity, to_json


@pytest.mark.parametrize("loss", [709.78, 710.0, 1e3, 1e6, 1e308, math.inf])
def test_a_huge_loss_has_infinite_perplexity_or_nearly(loss: float) -> None:
    assert perplexity(loss) > 1e308


def test_perplexity_is_the_exponential() -> None:
    assert perplexity(2.5) == math.exp(2.5)
    assert perplexity(0.0) == 1.0
    assert perplexity(-math.inf) == 0.0
    assert math.isnan(perplexity(math.nan))


def test_json_has_null_for_what_is_not_finite() -> None:
    tree = {"a": [1, 2.5, math.inf], "b": (math.nan, "NaN", None, True), "c": {"d": -math.inf}}
    expected = {"a": [1, 2.5, None], "b": [None, "NaN", None, True], "c": {"d": None}}
    assert finite(tree) == expected
    assert json.loads(to_json(tree), parse_constant=pytest.fail) == expected
