"""`tutelage.files`: where derived files lie."""

from pathlib import Path

import pytest

from tutelage.files import cache_directory


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TUTELAGE_CACHE", str(tmp_path))
    assert cache_directory() == tmp_path
    monkeypatch.delenv("TUTELAGE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_directory() == Path("/x/tutelage")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_directory() == Path.home() / ".cache" / "tutelage"
