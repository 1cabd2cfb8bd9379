"""What happens to real runs: each misfortune injected, and the run that goes on none the wiser."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.failing_run import MISFORTUNES
from tutelage import distill
from tutelage.errors import UserError
from tutelage.runs import checkpoints, newest_whole
from tutelage.store import fault
from tutelage.training import loop
from tutelage.training.config import RunConfig
from tutelage.training.tracking import Tracker

Make = Callable[..., RunConfig]
Script = Callable[..., subprocess.CompletedProcess[str]]


def trained(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k.startswith(("step", "train/"))} for row in rows]


def ends(run: Path) -> tuple[bytes, bytes]:
    """The weights and the optimizer state that a run ended with."""
    last = checkpoints(run)[0]
    return (last / "student" / "model.safetensors").read_bytes(), (last / "optimizer.safetensors").read_bytes()


def leftovers(run: Path) -> list[str]:
    return [path.name for path in (run / "checkpoints").iterdir() if path.name.startswith(".")]


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, Path]:
    return {}


@pytest.fixture
def whole(make_config: Make, undisturbed: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of six steps that nothing happened to."""
    if "run" not in undisturbed:
        folder = tmp_path_factory.mktemp("whole")
        undisturbed["run"] = distill(make_config(steps=6, output_dir=str(folder / "run"))).path
    return undisturbed["run"]


SIX = ("--precision", "fp32", "--steps", "6", "--checkpoint_every", "2", "--keep_last", "1")


@pytest.mark.slow
@pytest.mark.parametrize("misfortune", [name for name in MISFORTUNES if name.startswith("kill")])
def test_kill_9_in_any_phase_of_saving_costs_no_bit(
    misfortune: str, whole: Path, run_script: Script, tiny_flags: list[str], tmp_path: Path, make_config: Make
) -> None:
    run = tmp_path / "run"
    done = run_script("tests/failing_run.py", misfortune, *tiny_flags, *SIX, "--output_dir", run)
    assert done.returncode == -signal.SIGKILL, done.stderr
    kept = newest_whole(run)
    assert kept is not None
    assert kept.name == ("step-4" if misfortune in ("kill-after-rename", "kill-removing") else "step-2")
    distill(make_config(steps=6, resume=str(run), output_dir=None, keep_last=1))
    assert ends(run) == ends(whole)
    assert trained(run) == trained(whole)
    assert [path.name for path in checkpoints(run)] == ["step-6"]
    assert leftovers(run) == []


@pytest.mark.slow
def test_a_second_sigterm_leaves_in_the_middle_of_the_save_and_the_older_step_stands(
    whole: Path, run_script: Script, tiny_flags: list[str], tmp_path: Path, make_config: Make
) -> None:
    run = tmp_path / "run"
    done = run_script("tests/failing_run.py", "sigterm-save", *tiny_flags, *SIX, "--output_dir", run)
    assert done.returncode == 130
    assert done.stderr.splitlines()[-1] == "interrupted"
    assert "Traceback" not in done.stderr
    assert [path.name for path in checkpoints(run)] == ["step-2"]
    assert fault(checkpoints(run)[0]) is None
    assert leftovers(run) == []
    distill(make_config(steps=6, resume=str(run), output_dir=None))
    assert ends(run) == ends(whole)


@pytest.mark.slow
@pytest.mark.parametrize("times", [2, pytest.param(10, marks=pytest.mark.long)])
def test_killed_at_random_moments_it_ends_with_the_same_bits(
    times: int, tiny_flags: list[str], script_env: dict[str, str], tmp_path: Path, root: Path
) -> None:
    """Forty steps a kill, with dropout and micro-batches, saved every third step."""
    flags = [*tiny_flags, "--steps", str(40 * times), "--checkpoint_every", "3", "--keep_last", "2"]
    flags += ["--accumulate", "2", "--student.dropout", "0.1", "--eval_every", "1000"]
    command = [sys.executable, str(root / "train.py")]
    whole, run = tmp_path / "whole", tmp_path / "run"
    subprocess.run([*command, *flags, "--output_dir", whole], env=script_env, check=True, stdout=subprocess.DEVNULL)
    chance = random.Random(5)
    kills = 0
    for number in range(1, times + 1):
        where = ["--resume", run] if newest_whole(run) else [*flags, "--output_dir", run]
        process = subprocess.Popen([*command, *map(str, where)], env=script_env, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        target = number * 18 + chance.randrange(9)
        for line in process.stdout:
            if line.startswith("step ") and int(line.split()[1].split("/")[0]) >= target:
                time.sleep(chance.random() * 0.03)  # a step takes about 0.01 s
                break
        process.kill()
        kills += process.wait() == -signal.SIGKILL
    assert kills == times
    subprocess.run([*command, "--resume", str(run)], env=script_env, check=True, stdout=subprocess.DEVNULL)
    assert ends(run) == ends(whole)
    assert trained(run) == trained(whole)
    assert leftovers(run) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts a disk of so many KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(kib: int) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("mounting a small disk needs root")
        return folder

    yield mount
    subprocess.run(["umount", str(folder)], capture_output=True, check=False)


@pytest.fixture
def no_room_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if others filled the disk after the run began."""
    monkeypatch.setattr("tutelage.training.loop.check_room", lambda path, room: None)


@pytest.mark.usefixtures("no_room_check")
def test_a_disk_that_is_full_in_the_middle_of_a_save_stops_nothing_but_the_last_save(
    make_config: Make, small_disk: Callable[[int], Path], caplog: pytest.LogCaptureFixture
) -> None:
    disk = small_disk(4096)  # a checkpoint of the tiny student takes about 1.4 MB
    config = make_config(steps=9, checkpoint_every=3, keep_last=1, eval_every=3, output_dir=str(disk / "run"))
    filler = disk / "filler"
    happened: list[str] = []
    step = loop.train_step

    def meddle(parts: Any, config: Any, state: Any, interrupted: bool) -> dict[str, float]:
        row = step(parts, config, state, interrupted)
        if state.step == 5:
            free = shutil.disk_usage(disk).free
            filler.write_bytes(bytes(free - 700_000))  # room for half a checkpoint
            happened.append("full")
        if state.step == 8:
            kept = [path.name for path in checkpoints(disk / "run")]
            assert kept == ["step-3"]
            assert fault(checkpoints(disk / "run")[0]) is None
            assert leftovers(disk / "run") == []
            filler.unlink()
            happened.append("room")
        return row

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train_step", meddle)
        run = distill(config)
    assert happened == ["full", "room"]
    assert run.step == 9
    assert "step 6 was not saved" in caplog.text
    assert "step 3 is kept" in caplog.text
    assert [path.name for path in checkpoints(run.path)] == ["step-9"]
    assert [row["step"] for row in trained(run.path)] == list(range(1, 10))


def test_a_last_step_that_is_not_saved_is_an_error_and_what_was_saved_goes_on(
    make_config: Make, small_disk: Callable[[int], Path], whole: Path
) -> None:
    disk = small_disk(4096)
    config = make_config(steps=6, checkpoint_every=2, keep_last=1, output_dir=str(disk / "run"))
    step = loop.train_step

    def fill(parts: Any, config: Any, state: Any, interrupted: bool) -> dict[str, float]:
        if state.step == 5:
            (disk / "filler").write_bytes(bytes(shutil.disk_usage(disk).free))
        return step(parts, config, state, interrupted)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train_step", fill)
        with pytest.raises(UserError, match=r"step 6 was not saved.*step 4 is kept.*--resume"):
            distill(config)
    with pytest.raises(UserError, match="0 MB free"):
        distill(replace(config, resume=str(disk / "run"), output_dir=None))
    (disk / "filler").unlink()
    distill(replace(config, resume=str(disk / "run"), output_dir=None))
    assert ends(disk / "run") == ends(whole)
    assert trained(disk / "run") == trained(whole)


def test_rows_that_a_full_disk_does_not_take_are_written_later_and_none_is_torn(
    small_disk: Callable[[int], Path], caplog: pytest.LogCaptureFixture
) -> None:
    disk = small_disk(64)
    with Tracker(disk, [], 0) as tracker:
        for step in range(1, 401):
            if step == 10:
                (disk / "filler").write_bytes(bytes(shutil.disk_usage(disk).free))
            if step == 150:
                assert 9 < len(trained(disk)) < 149
                (disk / "filler").unlink()
            tracker.log(step, {"train/loss": 1 / step, "train/kl": 2 / step})
    assert [row["step"] for row in trained(disk)] == list(range(1, 401))
    assert "takes no rows now" in caplog.text


def test_too_little_room_is_refused_before_the_first_step(
    make_config: Make, small_disk: Callable[[int], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    disk = small_disk(2048)
    with pytest.raises(UserError, match=r"2 MB free.*--keep_last"):
        distill(make_config(steps=6, checkpoint_every=1, output_dir=str(disk / "run")))
    assert list(disk.iterdir()) == []
    assert "step" not in capsys.readouterr().out


def test_a_read_only_disk_is_refused(make_config: Make, small_disk: Callable[[int], Path]) -> None:
    disk = small_disk(64)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(UserError, match=r"not writable|cannot be written"):
        distill(make_config(output_dir=str(disk / "run")))


def test_two_runs_in_one_directory_are_refused(make_config: Make, tiny_flags: list[str], tmp_path: Path) -> None:
    config = make_config(steps=6, stop_after=2)
    run = distill(config).path
    second: list[str] = []
    step = loop.train_step

    def another(parts: Any, settings: Any, state: Any, interrupted: bool) -> dict[str, float]:
        if state.step == 3:
            with pytest.raises(UserError, match=rf"in use by process {os.getpid()} on ") as caught:
                distill(replace(config, resume=str(run), output_dir=None, stop_after=None))
            second.append(str(caught.value))
        return step(parts, settings, state, interrupted)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train_step", another)
        done = distill(replace(config, resume=str(run), output_dir=None, stop_after=None))
    assert done.step == 6
    assert len(second) == 1


def test_data_that_changed_since_the_save_is_refused(make_config: Make, text_dir: Path, tmp_path: Path) -> None:
    text = shutil.copytree(text_dir, tmp_path / "text")
    config = make_config(steps=4, stop_after=2, data=str(text))
    run = distill(config)
    file = next(iter(sorted(text.glob("*.py"))))
    file.write_text(file.read_text() + "\nchanged = True\n")
    with pytest.raises(UserError, match=r"data\.fingerprint was \w+, is \w+"):
        distill(replace(config, resume=str(run.path), output_dir=None, stop_after=None))


def test_a_clock_that_goes_backwards_changes_nothing(
    make_config: Make, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter(range(10**9, 0, -1000))
    monkeypatch.setattr(time, "time", lambda: float(next(now)))
    config = make_config(steps=6, stop_after=3, tracker="tensorboard")
    run = distill(config)
    distill(replace(config, resume=str(run.path), output_dir=None, stop_after=None))
    assert ends(run.path) == ends(whole)
    assert trained(run.path) == trained(whole)


def test_what_is_logged_may_change_and_is_told(
    make_config: Make, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(steps=6, stop_after=3)
    run = distill(config)
    distill(replace(config, resume=str(run.path), output_dir=None, stop_after=None, log_every=3))
    assert "from here on: log_every was 1, is 3" in capsys.readouterr().out
    assert ends(run.path) == ends(whole)
    assert [row["step"] for row in trained(run.path)] == [1, 2, 3, 6]


def test_less_text_than_a_batch_is_enough_and_none_is_refused(make_config: Make, tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f"{number}.txt").write_text(f"def f{number}(x):\n    return x + {number}\n")
    data = f"{tmp_path / '0.txt'},{tmp_path / '1.txt'}"
    run = distill(make_config(steps=2, batch_size=64, data=data))
    assert run.step == 2
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(UserError, match=r"empty\.jsonl' is empty"):
        distill(make_config(data=str(tmp_path / "empty.jsonl"), output_dir=str(tmp_path / "none")))
    assert not (tmp_path / "none").exists()
