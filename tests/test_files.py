"""`tutelage.files`: what a run has and where derived files lie."""

import logging
from pathlib import Path

import pytest

from tutelage.files import cache_directory, newest_whole, steps
from tutelage.store import publish


def write(path: Path, text: str = "hello") -> Path:
    with publish(path) as aside:
        (aside / "a.txt").write_text(text)
    return path


def test_steps_are_ordered_by_number_and_skip_what_is_none(tmp_path: Path) -> None:
    for name in ("step-2", "step-10", "step-9", ".step-11.1.partial", "step-x"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert [path.name for path in steps(tmp_path)] == ["step-10", "step-9", "step-2"]
    assert steps(tmp_path / "nowhere") == []


def test_the_newest_whole_one_is_found_and_the_damaged_one_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = (write(tmp_path / "checkpoints" / f"step-{n}") for n in (5, 10))
    assert newest_whole(tmp_path) == new
    assert not caplog.records
    (new / "a.txt").write_text("hellp")
    with caplog.at_level(logging.WARNING):
        assert newest_whole(tmp_path) == old
    assert "step-10" in caplog.text
    assert "a.txt" in caplog.text
    (old / "a.txt").unlink()
    assert newest_whole(tmp_path) is None


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TUTELAGE_CACHE", str(tmp_path))
    assert cache_directory() == tmp_path
    monkeypatch.delenv("TUTELAGE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_directory() == Path("/x/tutelage")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_directory() == Path.home() / ".cache" / "tutelage"
