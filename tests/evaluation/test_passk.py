from itertools import combinations
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.errors import UserError
from tutelage.evaluation.passk import compare, kind, pass_at_k, score
from tutelage.evaluation.sandbox.pool import Verdict

P, F, T = Verdict.PASS, Verdict.FAIL, Verdict.TLE


def told(results):
    """What a ledger says of these verdicts, by problem."""
    return {
        (task, n): {"verdict": verdict, "detail": "AssertionError", "oracle": "split"}
        for task, verdicts in results.items()
        for n, verdict in enumerate(verdicts)
    }


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
    scores = score(told({"a": [P, F], "b": [F, T], "c": [P, P]}), ks=[1, 2])
    assert scores.metrics == pytest.approx({"pass@1": 0.5, "pass@2": 2 / 3})
    assert scores.verdicts == {"FAIL": 2, "PASS": 3, "TLE": 1}
    assert scores.solved == ["a", "c"]


@given(st.lists(st.booleans(), min_size=2, max_size=60))
def test_interval_covers_the_mean_and_is_reproducible(passed):
    results = {str(i): [P if ok else F] for i, ok in enumerate(passed)}
    scores = score(told(results), ks=[1])
    low, high = scores.intervals["pass@1"]
    assert 0 <= low <= scores.metrics["pass@1"] <= high <= 1
    assert low < high
    assert score(told(results), ks=[1]) == scores


def test_interval_has_the_binomial_width():
    results = {str(i): [P if i % 2 else F] for i in range(400)}
    low, high = score(told(results), ks=[1]).intervals["pass@1"]
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.25 / 400), rel=0.1)


def test_none_of_164_may_be_two_in_a_hundred():
    assert greedy([]).intervals["pass@1"] == (0.0, pytest.approx(0.0222, abs=1e-4))
    assert greedy(range(164)).intervals["pass@1"] == (pytest.approx(0.9778, abs=1e-4), 1.0)


def test_nothing_to_score_and_too_few_samples_are_refused():
    with pytest.raises(UserError, match="no results"):
        score({}, ks=[1])
    with pytest.raises(UserError, match="pass@10 from 2 samples"):
        score(told({"a": [P, F]}), ks=[10])


@pytest.mark.parametrize(
    ("verdict", "detail", "expected"),
    [
        (F, "AssertionError", "wrong answer"),
        (F, "AssertionError: test 3", "wrong answer"),
        (F, "NameError: name 'x' is not defined", "NameError"),
        (F, "UnicodeDecodeError: …", "UnicodeDecodeError"),
        (F, "a value of type 'generator' is refused", "refused answer"),
        (T, "more than 5 s of CPU time", "TLE"),
    ],
)
def test_failures_are_counted_by_what_went_wrong(verdict, detail, expected):
    one = {"verdict": verdict, "detail": detail, "oracle": "split"}
    assert kind(one) == expected
    assert score({("a", 0): one}, ks=[1]).failures == {expected: 1}


def greedy(solved, of=164):
    """Scores of a model that solves the problems of these numbers."""
    return score(told({str(i): [P if i in solved else F] for i in range(of)}), ks=[1])


def test_two_models_are_compared_problem_by_problem():
    told = compare(greedy(range(20)), greedy(range(10)), samples=1)
    assert told.difference == pytest.approx(10 / 164)
    assert told.interval[0] < told.difference < told.interval[1]
    assert told.p_value == pytest.approx(2 / 2**10, abs=2e-3)  # McNemar: ten problems, all of them one way


def test_models_that_solve_as_many_others_do_not_differ():
    told = compare(greedy(range(10)), greedy(range(10, 20)), samples=1)
    assert told.difference == 0
    assert told.p_value == 1


@given(st.sets(st.integers(0, 30)), st.sets(st.integers(0, 30)))
def test_a_comparison_the_other_way_round_is_its_mirror(first, second):
    forth, back = (compare(greedy(a, 31), greedy(b, 31), 1) for a, b in ((first, second), (second, first)))
    assert forth.difference == -back.difference
    assert forth.p_value == pytest.approx(back.p_value, abs=0.02)
    only_first, only_second = len(first - second), len(second - first)
    n, k = only_first + only_second, max(only_first, only_second)
    exact = min(1, 2 * sum(comb(n, i) for i in range(k, n + 1)) / 2**n) if only_first != only_second else 1
    assert forth.p_value == pytest.approx(exact, abs=0.02)


def test_scores_on_other_problems_are_not_compared():
    with pytest.raises(UserError, match="same problems"):
        compare(greedy([1], of=5), greedy([1], of=6), samples=1)
