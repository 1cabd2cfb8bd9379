"""Each tracker, read back with its own reader; and what none of them may write."""

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from accelerate import PartialState

from tutelage.errors import UserError
from tutelage.training.samples import Sample
from tutelage.training.trackers import chosen
from tutelage.training.tracking import Tracker

SETTINGS = {"seed": 0, "teacher": "tiny", "optim.lr": 0.01, "resume": None, "env.torch": "2"}
SAMPLE = Sample("def f():\n", "<script>teacher</script>", "student said")


@pytest.fixture(autouse=True)
def nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_ALLOW_FILE_STORE", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    PartialState(cpu=True)  # accelerate's trackers want to know which process they are in


def track(run: Path, name: str, first: int, last: int, goes_on_from: int = 0) -> None:
    run.mkdir(exist_ok=True)
    with Tracker(run, [name], goes_on_from, SETTINGS) as tracker:
        for step in range(first, last + 1):
            tracker.log(step, {"train/loss": 10.0 - step, "eval/kl": float("nan")})
        tracker.log_samples(last, [SAMPLE])
        [aside] = tracker.asides
    assert not aside.dropped


def test_a_run_that_goes_on_hides_what_came_after_in_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util import tensor_util

    track(tmp_path / "run", "tensorboard", 1, 5)
    track(tmp_path / "run", "tensorboard", 4, 6, goes_on_from=3)
    found = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in found.Scalars("train/loss")] == [(n, 10.0 - n) for n in range(1, 7)]
    shown = tensor_util.make_ndarray(found.Tensors("settings/text_summary")[0].tensor_proto)[0].decode()
    assert "    optim.lr: 0.01" in shown.splitlines()


@pytest.mark.slow
def test_mlflow_keeps_one_run_in_the_runs_directory(tmp_path: Path) -> None:
    import mlflow

    track(tmp_path / "run", "mlflow", 1, 3)
    track(tmp_path / "run", "mlflow", 4, 6, goes_on_from=3)
    client = mlflow.MlflowClient((tmp_path / "run" / "mlflow").as_uri())
    [experiment] = [e for e in client.search_experiments() if e.name == "tutelage"]
    [found] = client.search_runs([experiment.experiment_id])
    assert found.info.run_name == "run"
    assert found.info.status == "FINISHED"
    assert found.data.params["optim.lr"] == "0.01"
    assert found.data.params["env.torch"] == "2"
    history = client.get_metric_history(found.info.run_id, "train/loss")
    assert [(m.step, m.value) for m in history] == [(n, 10.0 - n) for n in range(1, 7)]
    [shown] = [Path(client.download_artifacts(found.info.run_id, f"samples/0/step-{n}.md")) for n in (6,)]
    assert all(line.startswith("    ") for line in shown.read_text().splitlines() if line)


def leveldb_records(log: bytes, block: int = 32768, head: int = 7) -> Iterator[bytes]:
    """What a log in LevelDB's format holds: blocks of chunks (CRC, length, type: whole, first, middle, last)."""
    at, record = head, b""
    log = bytes(head) + log
    while at + head <= len(log):
        if block - at % block < head:  # too little is left of a block for another chunk
            at += block - at % block
            continue
        length, kind = struct.unpack("<HB", log[at + 4 : at + 7])
        record += log[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield record
            record = b""


@pytest.mark.slow
def test_wandb_stays_offline_in_the_runs_directory(tmp_path: Path) -> None:
    import wandb
    from wandb.proto import wandb_internal_pb2

    track(tmp_path / "run", "wandb", 1, 3)
    wandb.teardown()  # its service writes the file after finish() has returned; a process waits for that at its end
    [file] = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    losses, config = {}, {}
    for data in leveldb_records(file.read_bytes()[7:]):  # after the head that names the format
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        items = {"/".join(i.nested_key) or i.key: i.value_json for i in record.history.item}
        if "train/loss" in items:
            losses[json.loads(items["_step"])] = json.loads(items["train/loss"])
        config |= {i.key: json.loads(i.value_json) for i in record.config.update if i.key}
    assert losses == {n: 10.0 - n for n in range(1, 4)}
    assert config["optim.lr"] == 0.01
    [table] = (tmp_path / "run" / "wandb").rglob("*.table.json")
    assert "student said" in table.read_text()


@pytest.mark.slow
def test_two_mlflow_runs_of_one_process_have_a_store_each(tmp_path: Path) -> None:
    import mlflow

    for name in ("a", "b"):
        track(tmp_path / name, "mlflow", 1, 1)
        client = mlflow.MlflowClient((tmp_path / name / "mlflow").as_uri())
        [experiment] = [e for e in client.search_experiments() if e.name == "tutelage"]
        assert [run.info.run_name for run in client.search_runs([experiment.experiment_id])] == [name]
    assert "MLFLOW_TRACKING_URI" not in os.environ


@pytest.mark.slow
def test_a_secret_is_written_nowhere(
    tiny_flags: list[str], run_script: Callable[..., subprocess.CompletedProcess[str]], script_env: dict[str, str],
    tmp_path: Path,
) -> None:  # fmt: skip
    """Once from the environment, once from a .env file, with every tracker."""
    secrets = {"WANDB_API_KEY": "a1b2c3d4" * 5, "HF_TOKEN": "hf_plantedPlantedPlanted"}
    (tmp_path / ".env").write_text(f"WANDB_API_KEY={secrets['WANDB_API_KEY']}\n# a remark\n\nMLFLOW_X='y z'\n")
    env = {**script_env, "HF_TOKEN": secrets["HF_TOKEN"], "HOME": str(tmp_path / "home")}
    flags = [*tiny_flags, "--output_dir", tmp_path / "run", "--tracker", "tensorboard,mlflow,wandb"]
    done = run_script("train.py", *flags, env=env)
    assert done.returncode == 0, done.stderr
    assert "dropped" not in done.stderr
    assert {"tensorboard", "mlflow", "wandb"} <= {path.name for path in (tmp_path / "run").iterdir()}
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 4
    places = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".env"]
    assert len(places) > 20
    for path in places:
        content = path.read_bytes()
        assert not [name for name, secret in secrets.items() if secret.encode() in content], path
    assert not [name for name, secret in secrets.items() if secret in done.stdout + done.stderr]


def test_names_are_chosen() -> None:
    assert chosen("none") == []
    assert chosen("tensorboard, tensorboard") == ["tensorboard"]
    with pytest.raises(UserError, match="unknown tracker 'tensorbord': did you mean 'tensorboard'"):
        chosen("mlflow,tensorbord")


def test_one_that_is_not_installed_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tutelage.training.trackers.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--tracker wandb is not installed: pip install -e '\.\[track\]'"):
        chosen("wandb")


def test_choosing_loads_no_tracker() -> None:
    code = "import sys; from tutelage.training.trackers import chosen; chosen('mlflow,wandb')"
    code += "; assert not {'mlflow', 'wandb'} & set(sys.modules), 'loaded'"
    done: Any = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
