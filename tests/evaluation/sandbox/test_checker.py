"""The trusted side: what a test and a completion can do to it."""

import pytest

from tests.evaluation.sandbox.test_hostile import RIGHT, SHORT, TEST, body
from tutelage.evaluation.sandbox.pool import Case, Limits, Verdict, layers, run_one


def test_a_stuck_checker_is_killed_from_outside(private, monkeypatch):
    monkeypatch.setattr("tutelage.evaluation.sandbox.pool.GRACE", 0.5)
    test = "def check(candidate):\n    while True: pass"
    assert run_one(Case(RIGHT, test, "add"), Limits(wall_seconds=0.5)).verdict == Verdict.TLE


def test_a_test_that_swallows_errors_cannot_hide_a_death(private):
    test = "def check(candidate):\n    try:\n        candidate(1, 2)\n    except Exception:\n        pass"
    assert run_one(Case(body("os._exit(0)"), test, "add"), SHORT).verdict == Verdict.CRASH
    assert run_one(Case(body("raise ValueError"), test, "add"), SHORT).verdict == Verdict.PASS


def test_keywords_and_mutated_arguments_stay_on_their_side(private):
    source = "def f(xs, *, reverse=False):\n    xs.sort(reverse=reverse)\n    return xs"
    test = "def check(f):\n    xs = [1, 3, 2]\n    assert f(xs, reverse=True) == [3, 2, 1] and xs == [1, 3, 2]"
    assert run_one(Case(source, test, "f")).verdict == Verdict.PASS


@pytest.mark.skipif(layers().grade != "strong", reason="needs namespaces")
def test_the_checker_cannot_be_killed(private):
    text = "try:\n    os.kill(os.getppid(), 9)\nexcept OSError: pass\nreturn a + b"
    assert run_one(Case(body(text), TEST, "add"), SHORT).verdict == Verdict.PASS
