"""The layout of a run."""

import json
import os
import time
from pathlib import Path

import pytest

from tutelage.errors import UserError
from tutelage.runs import checkpoint, checkpoint_path, checkpoints, home, named, newest_run, newest_whole
from tutelage.store import publish


def save(run: Path, step: int, best: int | None = None) -> Path:
    with publish(checkpoint_path(run, step)) as aside:
        state = {"step": step, "best": None if best is None else {"step": best, "loss": 1.0}}
        (aside / "state.json").write_text(json.dumps(state))
    return checkpoint_path(run, step)


def test_checkpoints_are_newest_first(tmp_path: Path) -> None:
    for step in (9, 100, 20):
        save(tmp_path, step)
    (tmp_path / "checkpoints" / "step-x").mkdir()
    assert [path.name for path in checkpoints(tmp_path)] == ["step-100", "step-20", "step-9"]


def test_a_name_may_say_which(tmp_path: Path) -> None:
    assert named("runs/x") == (Path("runs/x"), None)
    assert named("runs/x@20") == (Path("runs/x"), "20")
    assert named("runs/x@best") == (Path("runs/x"), "best")
    assert named("runs/x@y") == (Path("runs/x@y"), None)
    odd = tmp_path / "x@20"
    odd.mkdir()
    assert named(str(odd)) == (odd, None)
    assert named(f"{odd}@3") == (odd, "3")


def test_the_checkpoint_that_a_name_means(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = tmp_path / "run"
    assert checkpoint(str(run)) is None
    for step in (10, 20, 30):
        save(run, step, best=10)
    assert checkpoint(str(run)) == checkpoint_path(run, 30)
    assert checkpoint(f"{run}@20") == checkpoint_path(run, 20)
    assert checkpoint(f"{run}@best") == checkpoint_path(run, 10)
    (checkpoint_path(run, 30) / "state.json").write_text("{}")
    assert newest_whole(run) == checkpoint(str(run)) == checkpoint_path(run, 20)
    assert "step-30" in caplog.text
    with pytest.raises(UserError, match=r"run@30 is damaged \(state.json does not have its recorded SHA-256\)"):
        checkpoint(f"{run}@30")
    with pytest.raises(UserError, match=r"run@25: no checkpoint of step 25 in .*; there are: 30, 20, 10"):
        checkpoint(f"{run}@25")


def test_best_is_kept_only_where_it_was_asked_for(tmp_path: Path) -> None:
    save(tmp_path, 1)
    with pytest.raises(UserError, match="needs --keep_best"):
        checkpoint(f"{tmp_path}@best")


def test_the_newest_run_is_the_one_saved_last(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run"):
        newest_run(tmp_path)
    now = time.time()
    for name, step, age in (("b", 5, 10), ("a", 1, 0), ("c", 900, 20)):
        folder = tmp_path / name / "checkpoints" / f"step-{step}"
        folder.mkdir(parents=True)
        os.utime(folder, (now - age, now - age))
    (tmp_path / "empty").mkdir()
    assert newest_run(tmp_path) == tmp_path / "a"


def test_a_checkpoint_and_its_student_are_at_home_in_their_run(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("{}")
    student = save(tmp_path / "run", 1) / "student"
    assert home(student) == home(tmp_path / "run") == tmp_path / "run"
    assert home(tmp_path / "elsewhere") is None
