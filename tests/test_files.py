"""`tutelage.files`: whole or absent, and checked."""

import logging
import os
from pathlib import Path

import pytest

from tutelage.files import MANIFEST, cache_directory, fault, newest_whole, publish, sha256, steps


def write(path: Path, text: str = "hello") -> Path:
    with publish(path) as aside:
        (aside / "sub").mkdir()
        (aside / "a.txt").write_text(text)
        (aside / "sub" / "b.bin").write_bytes(bytes(range(256)))
    return path


def test_what_is_published_is_whole(tmp_path: Path) -> None:
    path = write(tmp_path / "deep" / "dir")
    assert fault(path) is None
    assert (path / "a.txt").read_text() == "hello"
    assert [p.name for p in path.parent.iterdir()] == ["dir"]


def test_nothing_stands_at_the_path_before_the_end(tmp_path: Path) -> None:
    with publish(tmp_path / "x") as aside:
        (aside / "a").write_text("1")
        assert not (tmp_path / "x").exists()
    assert (tmp_path / "x" / "a").exists()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_leaves_nothing_new_and_the_old_as_it_was(tmp_path: Path, error: type[BaseException]) -> None:
    old = write(tmp_path / "x", "old")

    def half(path: Path) -> None:
        with publish(path) as aside:
            (aside / "a.txt").write_text("half")
            raise error

    for path in (old, tmp_path / "y"):
        with pytest.raises(error):
            half(path)
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    assert (old / "a.txt").read_text() == "old"
    assert fault(old) is None


def test_an_existing_directory_is_replaced_whole(tmp_path: Path) -> None:
    path = write(tmp_path / "x", "old")
    (path / "stray").write_text("?")
    write(path, "new")
    assert (path / "a.txt").read_text() == "new"
    assert not (path / "stray").exists()


def test_leftovers_of_a_killed_process_do_not_get_in_the_way(tmp_path: Path) -> None:
    aside = tmp_path / f".x.{os.getpid()}.partial"
    aside.mkdir()
    (aside / "junk").write_text("?")
    path = write(tmp_path / "x")
    assert not (path / "junk").exists()
    assert not aside.exists()


@pytest.mark.parametrize("at", [0, 100, 255])
def test_one_flipped_bit_is_a_fault(tmp_path: Path, at: int) -> None:
    path = write(tmp_path / "x")
    file = path / "sub" / "b.bin"
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)
    assert "b.bin" in str(fault(path))


def test_truncated_missing_and_unlisted_are_faults(tmp_path: Path) -> None:
    path = write(tmp_path / "x")
    content = (path / "a.txt").read_bytes()
    (path / "a.txt").write_bytes(content[:-1])
    assert "a.txt" in str(fault(path))
    (path / "a.txt").unlink()
    assert "a.txt" in str(fault(path))
    (path / "a.txt").write_bytes(content)
    assert fault(path) is None
    manifest = (path / MANIFEST).read_text()
    for broken in (manifest[:-20], "[]", "null", ""):
        (path / MANIFEST).write_text(broken)
        assert fault(path), broken
    (path / MANIFEST).unlink()
    assert fault(path)


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


def test_sha256_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TUTELAGE_CACHE", str(tmp_path))
    assert cache_directory() == tmp_path
    monkeypatch.delenv("TUTELAGE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_directory() == Path("/x/tutelage")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_directory() == Path.home() / ".cache" / "tutelage"
