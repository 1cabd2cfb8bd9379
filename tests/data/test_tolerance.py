import logging

import pytest

from tutelage.data.tolerance import LOGGED, PATIENCE, BadRows
from tutelage.errors import UserError


def test_within_the_share_it_warns_with_the_location(caplog: pytest.LogCaptureFixture) -> None:
    bad = BadRows("x.jsonl", 0.01)
    for _ in range(99):
        bad.accept()
    with caplog.at_level(logging.WARNING):
        bad.reject("x.jsonl:7", "not JSON")
        bad.judge()
    assert "x.jsonl:7: not JSON" in caplog.text
    assert "skipped 1 of 100 rows" in caplog.text


def test_beyond_the_share_it_stops_at_the_end_naming_the_first() -> None:
    bad = BadRows("x.jsonl", 0.01)
    bad.reject("x.jsonl:1", "not JSON")
    bad.reject("x.jsonl:2", "other")
    with pytest.raises(UserError, match=r"2 of the first 2 rows of 'x.jsonl'.*first x.jsonl:1: not JSON.*0\.01"):
        bad.judge()


def test_a_source_of_rubbish_stops_before_its_end(caplog: pytest.LogCaptureFixture) -> None:
    bad = BadRows("x", 0.5)
    for _ in range(PATIENCE):
        bad.reject("x:1", "not JSON")
    assert caplog.text.count("not JSON") == LOGGED
    with pytest.raises(UserError):
        bad.reject("x:101", "not JSON")
