"""`tutelage.store`: whole or absent, and checked."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tutelage import store
from tutelage.store import MANIFEST, fault, publish, recorded, sha256, sweep


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


def test_sha256_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_the_manifest_has_a_version_and_names_with_slashes(tmp_path: Path) -> None:
    path = write(tmp_path / "x")
    manifest = json.loads((path / MANIFEST).read_text())
    assert manifest["version"] == 1
    assert manifest["sha256"] == {name: sha256(path / name) for name in ("a.txt", "sub/b.bin")}
    (path / MANIFEST).write_text(json.dumps({**manifest, "version": 2}))
    assert "version 2" in str(fault(path))


def test_a_manifest_of_before_is_read_and_verified(tmp_path: Path) -> None:
    path = write(tmp_path / "x")
    (path / MANIFEST).write_text(json.dumps(recorded(path)))
    assert fault(path) is None
    (path / "a.txt").write_text("hellp")
    assert fault(path) == "a.txt does not have its recorded SHA-256"


def published_twice(path: Path, text: str) -> Path:
    """`path`, at which a second process has published `text` while the first was writing "hello"."""
    with publish(path) as aside:
        (aside / "a.txt").write_text("hello")
        with publish(path) as other:
            (other / "a.txt").write_text(text)
        before.append((path / "a.txt").stat().st_ino)
    return path


before: list[int] = []


def test_of_two_that_publish_the_same_the_first_stays(tmp_path: Path) -> None:
    path = published_twice(tmp_path / "x", "hello")
    assert (path / "a.txt").stat().st_ino == before[-1]  # who loads it meanwhile is not disturbed
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_of_two_that_publish_something_else_the_last_stays(tmp_path: Path) -> None:
    path = published_twice(tmp_path / "x", "another")
    assert (path / "a.txt").read_text() == "hello"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_rename_that_fails_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "x", "old")
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if target == path and self.name.startswith("."):
            raise OSError(errno.EIO, "broken")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="broken"):
        write(path, "new")
    assert (path / "a.txt").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


WRITER = """
import sys, time
from pathlib import Path
from tutelage.store import publish
with publish(Path(sys.argv[1])) as aside:
    (aside / "half").write_text("?")
    print(aside.name, flush=True)
    time.sleep(60)
"""


def writer(path: Path, root: Path) -> tuple[subprocess.Popen[str], Path]:
    """A process in the middle of publishing, and where it writes."""
    environment = {**os.environ, "PYTHONPATH": str(root)}
    process = subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    return process, path.with_name(process.stdout.readline().strip())


def test_what_a_killed_process_left_goes_and_what_a_living_one_writes_stays(tmp_path: Path, root: Path) -> None:
    process, aside = writer(tmp_path / "x", root)
    try:
        write(tmp_path / "y")
        assert (aside / "half").exists()
        # a process of the same number on another machine, or in another container
        elsewhere = aside.rename(aside.with_name(".x.999999999.partial"))
        sweep(tmp_path)
        assert (elsewhere / "half").exists()
    finally:
        process.kill()
        process.wait()
    write(tmp_path / "y")
    assert [p.name for p in tmp_path.iterdir()] == ["y"]


def test_leftovers_of_before_go_and_those_of_others_stay(tmp_path: Path) -> None:
    for name in (".writing-abc", ".x.999999999.partial", ".download.partial", ".hidden"):
        (tmp_path / name).mkdir()
    sweep(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".download.partial", ".hidden"]


def cannot_flush(kind: int, applies: Callable[[int], bool]) -> Callable[[int], None]:
    def fsync(descriptor: int) -> None:
        if applies(descriptor):
            raise OSError(kind, os.strerror(kind))

    return fsync


def folder(descriptor: int) -> bool:
    return os.path.isdir(f"/proc/self/fd/{descriptor}")


@pytest.mark.parametrize("kind", [errno.EINVAL, errno.ENOTSUP, errno.EBADF])
def test_a_file_system_that_flushes_no_folders_still_saves(
    tmp_path: Path, kind: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", cannot_flush(kind, folder))
    assert fault(write(tmp_path / "x")) is None


@pytest.mark.parametrize("kind", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("of", [folder, lambda descriptor: not folder(descriptor)], ids=["folder", "file"])
def test_a_disk_that_fails_is_a_failure(
    tmp_path: Path, kind: int, of: Callable[[int], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", cannot_flush(kind, of))
    with pytest.raises(OSError, match=os.strerror(kind)):
        write(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_a_system_that_opens_no_folders_still_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = os.open

    def files_only(path: str, flags: int, *rest: int) -> int:
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(path, flags, *rest)

    monkeypatch.setattr(store.os, "open", files_only)
    assert fault(write(tmp_path / "x")) is None
