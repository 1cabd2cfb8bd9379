"""`tutelage.locks`: one holder at a time, where there are locks at all."""

import errno
import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tutelage import locks
from tutelage.locks import lock


def test_one_holds_it_until_it_lets_go(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with lock(path) as file:
        file.write("me\n")
        file.flush()
        with pytest.raises(BlockingIOError), lock(path):
            pass
        assert path.read_text() == "me\n"
    with lock(path) as file:
        file.seek(0)
        assert file.read() == "me\n"


def test_a_process_that_is_killed_lets_go(tmp_path: Path, root: Path) -> None:
    code = f"import time, pathlib, tutelage.locks as l\nwith l.lock(pathlib.Path({str(tmp_path / 'lock')!r})):\n"
    code += "    print(flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=root)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(BlockingIOError), lock(tmp_path / "lock"):
            pass
    finally:
        process.kill()
        process.wait()
    with lock(tmp_path / "lock"):
        pass


def test_where_python_has_no_locks_it_goes_on_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert locks.lack() is None
    monkeypatch.setattr(locks, "fcntl", None)
    monkeypatch.setattr(locks, "msvcrt", None)
    assert locks.lack() == "the modules fcntl and msvcrt"
    with caplog.at_level(logging.WARNING), lock(tmp_path / "lock"):
        pass
    [record] = caplog.records
    assert str(tmp_path / "lock") in record.getMessage()
    assert "fcntl" in record.getMessage()


@pytest.mark.parametrize(("code", "held"), [(errno.EAGAIN, True), (errno.EACCES, True), (errno.ENOLCK, False)])
def test_a_file_system_without_locks_is_told_from_one_that_is_held(
    tmp_path: Path, code: int, held: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(descriptor: int, operation: int, *rest: int) -> None:
        raise OSError(code, "refused")

    for system in ("fcntl", "msvcrt"):
        monkeypatch.setattr(locks, "fcntl", None)
        monkeypatch.setattr(
            locks, system, SimpleNamespace(flock=refuse, locking=refuse, LOCK_EX=2, LOCK_NB=4, LK_NBLCK=2)
        )
        if held:
            with pytest.raises(BlockingIOError), lock(tmp_path / "lock"):
                pass
        else:
            with caplog.at_level(logging.WARNING), lock(tmp_path / "lock"):
                pass
            assert "refused" in caplog.text
