"""Where a run lives."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tutelage import cli
from tutelage.errors import UserError
from tutelage.training.config import RunConfig
from tutelage.training.run_directory import environment, newest_run, open_run, run_path


def test_a_new_run_gets_a_name_of_time_and_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = run_path(RunConfig(teacher="org/name"))
    assert path.parent == Path("runs")
    assert path.name.endswith("-name")
    assert list(tmp_path.iterdir()) == []  # finding a name makes nothing


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
        open_run(run_path(config), config)
    if os.geteuid():
        (tmp_path / "closed").mkdir(mode=0o500)
        with pytest.raises(UserError, match="not writable"):
            run_path(RunConfig(output_dir=str(tmp_path / "closed" / "run")))


def test_resuming_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--resume .*nowhere.*no checkpoints"):
        run_path(RunConfig(resume=str(tmp_path / "nowhere")))


def test_the_configuration_can_be_read_back(tmp_path: Path, make_config: Callable[..., RunConfig]) -> None:
    config = make_config(stop_after=3)
    open_run(tmp_path / "run", config)
    again = cli.parse(RunConfig, ["--config", str(tmp_path / "run/config.yaml")], prog="p", description="d")
    assert again == make_config(output_dir=None)  # what ends or places one invocation is not part of the run
    before = (tmp_path / "run/config.yaml").read_bytes()
    open_run(tmp_path / "run", make_config(steps=99))
    assert (tmp_path / "run/config.yaml").read_bytes() == before
    found = json.loads((tmp_path / "run/env.json").read_text())
    assert found["torch"]
    assert found["threads"] >= 1


def test_the_environment_names_what_decides_rounding() -> None:
    assert {"python", "machine", "threads", "torch", "numpy", "triton"} <= set(environment())


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
