from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.errors import UserError
from tutelage.evaluation.passk import pass_at_k, score
from tutelage.evaluation.sandbox import Verdict

P, F, T = Verdict.PASS, Verdict.FAIL, Verdict.TLE


@st.composite
def counts(draw):
    n = draw(st.integers(1, 8))
    return n, draw(st.integers(0, n)), draw(st.integers(1, n))


@given(counts())
def test_pass_at_k_is_the_share_of_subsets_with_a_pass(case):
    n, c, k = case
    subsets = list(combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@pytest.mark.parametrize(("n", "c", "k"), [(1, 0, 2), (5, 1, 0), (5, 6, 1), (5, -1, 1)])
def test_impossible_counts_are_refused(n, c, k):
    with pytest.raises(UserError, match=str(n)):
        pass_at_k(n, c, k)


def test_scores_of_a_small_table():
    scores = score({"a": [P, F], "b": [F, T], "c": [P, P]}, ks=[1, 2])
    assert scores.metrics == pytest.approx({"pass@1": 0.5, "pass@2": 2 / 3})
    assert scores.verdicts == {"FAIL": 2, "PASS": 3, "TLE": 1}
    assert scores.solved == ["a", "c"]


@given(st.lists(st.booleans(), min_size=2, max_size=60))
def test_interval_covers_the_mean_and_is_reproducible(passed):
    results = {str(i): [P if ok else F] for i, ok in enumerate(passed)}
    scores = score(results, ks=[1])
    low, high = scores.intervals["pass@1"]
    assert 0 <= low <= scores.metrics["pass@1"] <= high <= 1
    assert (low < high) == (len(set(passed)) > 1)
    assert score(results, ks=[1]) == scores


def test_interval_has_the_binomial_width():
    results = {str(i): [P if i % 2 else F] for i in range(400)}
    low, high = score(results, ks=[1], resamples=4000).intervals["pass@1"]
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.25 / 400), rel=0.1)


def test_nothing_to_score_and_too_few_samples_are_refused():
    with pytest.raises(UserError, match="no results"):
        score({}, ks=[1])
    with pytest.raises(UserError, match="pass@10 from 2 samples"):
        score({"a": [P, F]}, ks=[10])
