"""Two real processes: the same numbers as one, one voice, and a common end."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tutelage import distill, load_student
from tutelage.files import steps
from tutelage.store import fault
from tutelage.training.config import RunConfig

pytestmark = pytest.mark.slow
Make = Callable[..., RunConfig]
FIELDS = {"batch_size": 8, "steps": 6, "eval_rows": 12, "checkpoint_every": 100, "device": "cpu"}


def launch(*command: Any) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", *map(str, command)]


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if k.startswith(("train/", "eval/"))} for row in rows(run)]


def assert_same_run(one: Path, other: Path) -> None:
    """To fp32 rounding: every logged number, and the weights."""
    for a, b in zip(losses(one), losses(other), strict=True):
        assert a == pytest.approx(b, rel=2e-4)
    states = [load_student(run).model.state_dict() for run in (one, other)]
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, rtol=1e-3, atol=2e-4, msg=name)


@pytest.fixture
def config_file(make_config: Make, tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(asdict(make_config(**FIELDS))))
    return path


@pytest.fixture
def run_worker(
    config_file: Path, tmp_path: Path, root: Path, script_env: dict[str, str]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(*names: str) -> subprocess.CompletedProcess[str]:
        command = launch(root / "tests" / "distributed_worker.py", config_file, tmp_path, *names)
        return subprocess.run(command, env=script_env, capture_output=True, text=True, check=False, timeout=180)

    return run


def test_two_processes_do_what_one_does(
    run_worker: Callable[..., subprocess.CompletedProcess[str]], make_config: Make, tmp_path: Path, llama_dir: Path
) -> None:
    (tmp_path / "huggingface").symlink_to(llama_dir)
    names = ["plain", "accumulated", "fsdp", "fsdp-huggingface", "half", "poisoned", "greedy"]
    done = run_worker(*names)
    assert done.returncode == 0, done.stderr
    alone = distill(make_config(**FIELDS, output_dir=str(tmp_path / "alone")))
    for name in ("plain", "accumulated", "fsdp"):
        assert_same_run(alone.path, tmp_path / name)
        both = [json.loads((tmp_path / f"{name}-{rank}.json").read_text()) for rank in (0, 1)]
        assert [seen["path"] for seen in both] == [str(tmp_path / name)] * 2
        assert both[0]["metrics"]["eval/loss"] == both[1]["metrics"]["eval/loss"]
        assert [row["step"] for row in rows(tmp_path / name)] == [1, 2, 3, 4, 5, 6]
        assert fault(steps(tmp_path / name)[0]) is None
    assert done.stdout.count("teaches a student") == 6
    other = distill(make_config(**FIELDS, teacher=str(llama_dir), output_dir=str(tmp_path / "other")))
    assert_same_run(other.path, tmp_path / "fsdp-huggingface")

    # a loss of NaN and then a gradient of Inf in one process: both skip the step, and stay together
    found = rows(tmp_path / "poisoned")
    assert found[2]["train/loss"] is None
    assert found[3]["train/loss"] is not None
    assert found[3]["train/grad_norm"] is None
    state = json.loads((steps(tmp_path / "poisoned")[0] / "state.json").read_text())
    assert state["skipped"] == 2
    weights = load_student(tmp_path / "poisoned").model.state_dict()
    assert all(tensor.isfinite().all() for tensor in weights.values())

    # 5 micro-batches on 2 processes want 10 rows, and both processes say so
    errors = [json.loads((tmp_path / f"greedy-{rank}.json").read_text())["error"] for rank in (0, 1)]
    assert errors[0] == errors[1]
    assert re.search("2 processes.*8 rows.*--batch_size to 10", errors[0])
    assert not (tmp_path / "greedy").exists()

    # what two processes saved in pieces, one goes on with; the rows keep their order
    resumed = distill(RunConfig(**{**vars(make_config()), **FIELDS, "resume": str(tmp_path / "half")}))
    assert resumed.step == 6
    assert_same_run(alone.path, tmp_path / "half")


def test_one_that_dies_ends_all_within_seconds(run_worker: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    started = time.monotonic()
    done = run_worker("dying")
    assert done.returncode != 0
    assert time.monotonic() - started < 60  # most of it is starting
    assert "ZeroDivisionError: this process had enough" in done.stderr


@pytest.fixture
def flags(tiny_flags: list[str], tmp_path: Path) -> list[str]:
    return [*tiny_flags, "--device", "cpu", "--output_dir", str(tmp_path / "run")]


def test_accelerate_launches_it_too(flags: list[str], root: Path, script_env: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", str(root / "train.py")]
    done = subprocess.run([*command, *flags], env=script_env, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("held-out text") == 1
    assert [row["step"] for row in rows(tmp_path / "run")] == [1, 2, 3, 4]


def test_bad_input_is_one_line_of_one_process(flags: list[str], root: Path, script_env: dict[str, str]) -> None:
    command = launch(root / "train.py", *flags, "--batch_size", "1")
    done = subprocess.run(command, env=script_env, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode != 0
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "2 processes cannot share 1 rows" in line
    assert "exitcode  : 2" in done.stderr


@pytest.fixture
def long_run(flags: list[str], root: Path, script_env: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    command = launch(root / "train.py", *flags, "--steps", "100000")
    process = subprocess.Popen(command, env=script_env, stdout=subprocess.PIPE, text=True, start_new_session=True)
    yield process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def test_sigterm_saves_the_same_step_everywhere(long_run: subprocess.Popen[str], tmp_path: Path) -> None:
    assert long_run.stdout is not None
    for line in long_run.stdout:
        if line.startswith("step 3/"):
            break
    long_run.send_signal(signal.SIGTERM)
    rest, _ = long_run.communicate(timeout=60)
    [saved] = steps(tmp_path / "run")
    assert fault(saved) is None
    assert f"saved step {saved.name[5:]}; go on with --resume" in rest
