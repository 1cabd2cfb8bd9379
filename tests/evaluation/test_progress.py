"""A bar must not be in the way."""

import sys

from tutelage.evaluation.progress import bar


def test_where_nobody_looks_only_the_items_come_through(capsys):
    assert list(bar(iter("abc"), "spelling", 3)) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "")


def test_on_a_terminal_it_is_seen_and_standard_output_stays_clean(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert list(bar("abc", "spelling", 3)) == ["a", "b", "c"]
    out, err = capsys.readouterr()
    assert out == ""
    assert "spelling" in err
