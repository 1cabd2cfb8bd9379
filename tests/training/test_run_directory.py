"""Where a run lives."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tutelage import cli
from tutelage.errors import UserError
from tutelage.training.config import RunConfig
from tutelage.training.run_directory import changes, check_room, open_run, run_path
from tutelage.training.versions import upgrade


def test_a_new_run_gets_a_name_of_time_and_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = run_path(RunConfig(teacher="org/name"))
    assert path.parent == Path("runs")
    assert path.name.endswith("-name")
    assert list(tmp_path.iterdir()) == []  # finding a name makes nothing


def enter(path: Path, config: RunConfig) -> None:
    with open_run(path, config):
        pass


@pytest.mark.parametrize("content", ["file", "directory"])
def test_another_ones_place_is_refused(tmp_path: Path, content: str) -> None:
    if content == "file":
        (tmp_path / "run").write_text("x")
    else:
        (tmp_path / "run" / "thing").mkdir(parents=True)
    with pytest.raises(UserError, match=r"run is not empty.*--resume"):
        run_path(RunConfig(output_dir=str(tmp_path / "run")))


def test_an_empty_directory_will_do(tmp_path: Path) -> None:
    assert run_path(RunConfig(output_dir=str(tmp_path))) == tmp_path


def test_a_place_that_cannot_be_written_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    config = RunConfig(output_dir=str(tmp_path / "file" / "run"))
    with pytest.raises(UserError, match="file"):
        enter(run_path(config), config)
    if os.geteuid():
        (tmp_path / "closed").mkdir(mode=0o500)
        with pytest.raises(UserError, match="not writable"):
            run_path(RunConfig(output_dir=str(tmp_path / "closed" / "run")))


def test_resuming_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--resume .*nowhere.*no checkpoints"):
        run_path(RunConfig(resume=str(tmp_path / "nowhere")))


def test_the_configuration_can_be_read_back(tmp_path: Path, make_config: Callable[..., RunConfig]) -> None:
    config = make_config(stop_after=3)
    enter(tmp_path / "run", config)
    again = cli.parse(
        RunConfig, ["--config", str(tmp_path / "run/config.yaml")], prog="p", description="d", upgrade=upgrade
    )
    assert again == make_config(output_dir=None)  # what ends or places one invocation is not part of the run
    before = (tmp_path / "run/config.yaml").read_bytes()
    enter(tmp_path / "run", make_config(steps=99, resume=str(tmp_path / "run")))
    assert (tmp_path / "run/config.yaml").read_bytes() == before
    found = json.loads((tmp_path / "run/env.json").read_text())
    assert found["torch"]
    assert found["threads"] >= 1


HOLDER = """
import sys, time
from pathlib import Path
from tutelage.training.config import RunConfig
from tutelage.training.run_directory import changes, check_room, open_run
with open_run(Path(sys.argv[1]), RunConfig()):
    print("held", flush=True)
    time.sleep(60)
"""


def test_one_process_holds_a_run_and_the_lock_of_a_dead_one_is_taken_over(tmp_path: Path, root: Path) -> None:
    run = tmp_path / "run"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(run)], stdout=subprocess.PIPE, text=True, cwd=root)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=rf"run is in use by process {holder.pid} on "):
        enter(run, RunConfig())
    holder.kill()
    holder.wait()
    assert str(holder.pid) in (run / ".lock").read_text()
    with open_run(run, RunConfig(resume=str(run))):
        assert str(os.getpid()) in (run / ".lock").read_text()


def test_too_little_room_is_refused_wherever_it_would_be(tmp_path: Path) -> None:
    check_room(tmp_path / "runs" / "run", 1000)
    with pytest.raises(UserError, match=r"MB free.*will take 1,000,000,000 MB.*--keep_last"):
        check_room(tmp_path / "runs" / "run", 10**15)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_was_made_there_meanwhile_is_not_taken_for_ones_own(tmp_path: Path) -> None:
    enter(tmp_path / "run", RunConfig())
    with pytest.raises(UserError, match="another run was made there meanwhile"):
        enter(tmp_path / "run", RunConfig())
    enter(tmp_path / "run", RunConfig(resume=str(tmp_path / "run")))


def test_a_lock_left_in_an_empty_directory_is_nobodys(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("process 1 on there\n")
    assert run_path(RunConfig(output_dir=str(tmp_path))) == tmp_path


def test_a_file_system_without_locks_is_told_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", refuse)
    enter(tmp_path / "run", RunConfig())
    assert "cannot be locked" in caplog.text


def test_changes_are_told_with_both_values(tmp_path: Path) -> None:
    enter(tmp_path, RunConfig(log_every=10))
    assert changes(tmp_path, RunConfig(stop_after=3, resume="x")) == []
    assert changes(tmp_path, RunConfig(log_every=5)) == ["from here on: log_every was 10, is 5"]
