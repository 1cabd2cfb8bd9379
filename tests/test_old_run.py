"""A run as it was recorded on 2026-11-26 goes on to the same bits and is evaluated, wherever its parts are now.

`tests/old_run/` holds it whole: six steps with checkpoints of the third and the last, made with `PINNED` and these
variables, so that its arithmetic is that of every x86-64; its teacher, and its text. It is never made again.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tutelage import evaluate
from tutelage.environment import processor
from tutelage.errors import UserError
from tutelage.runs import checkpoint_path, checkpoints
from tutelage.training.checkpoint import read_state

PINNED = """
import sys, torch
torch.backends.mkldnn.enabled = False
from tutelage.train import main
sys.exit(main(sys.argv[1:]))
"""
VARIABLES = {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "OMP_NUM_THREADS": "1"}
MADE_ON = ("2.13.0+cpu", "AMD EPYC avx2")
"""torch and processor: elsewhere its bits are the same as far as the libraries keep their word, and close at least."""
Old = tuple[Path, list[str]]


@pytest.fixture
def old(root: Path, tmp_path: Path) -> Old:
    """The run as it stood after three of its six steps, and the flags that say where its teacher and text are now."""
    for name in ("run", "teacher", "text"):
        shutil.copytree(root / "tests" / "old_run" / name, tmp_path / f"moved-{name}")
    run = tmp_path / "moved-run"
    shutil.rmtree(checkpoint_path(run, 6))
    return run, ["--teacher", str(tmp_path / "moved-teacher"), "--data", str(tmp_path / "moved-text")]


def go_on(old: Old, cache: Path, root: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    run, places = old
    env = {**os.environ, **VARIABLES, "TUTELAGE_CACHE": str(cache), "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", PINNED, "--resume", str(run), *places, *flags]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env, cwd=run.parent, timeout=120)


def trained(run: Path) -> list[dict[str, float]]:
    """What every step's row says of training and of held-out text."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = ("step", "train/", "eval/")
    return [{key: value for key, value in row.items() if key.startswith(kept)} for row in rows]


def test_it_goes_on_to_the_same_bits(old: Old, cache: Path, root: Path) -> None:
    first = root / "tests" / "old_run" / "run"
    done = go_on(old, cache, root, "--stop_after", "5")
    assert done.returncode == 0, done.stderr
    done = go_on(old, cache, root)
    assert done.returncode == 0, done.stderr
    run = old[0]
    assert [path.name for path in checkpoints(run)] == ["step-6", "step-5", "step-3"]
    files = [checkpoint_path(home, 6) / "student" / "model.safetensors" for home in (run, first)]
    if (torch.__version__, processor()) == MADE_ON:
        assert trained(run) == trained(first)
        assert files[0].read_bytes() == files[1].read_bytes()
    for now, then in zip(trained(run), trained(first), strict=True):
        assert now == pytest.approx(then, rel=1e-3)
    weights, wanted = map(load_file, files)
    for name, tensor in wanted.items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-2, atol=1e-3, msg=name)
    assert read_state(checkpoint_path(run, 6)).version > read_state(checkpoint_path(run, 3)).version == 1


def test_another_teacher_or_text_is_seen_as_such(old: Old, cache: Path, root: Path, tmp_path: Path) -> None:
    (tmp_path / "moved-text" / "ring.py").write_text("ring = None\n" * 50)
    done = go_on(old, cache, root)
    assert done.returncode == 2
    [line] = [line for line in done.stderr.splitlines() if "error" in line]
    assert "data.fingerprint was 3c861904b172b8d42d2ec973af9dbe70, is " in line
    assert "Traceback" not in done.stderr


def test_it_is_evaluated(old: Old, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, (_, teacher, _, text) = old
    rows = 10**6  # as many as there are
    found = evaluate(
        model=str(run), perplexity=True, fidelity=True, teacher=teacher, data=text, eval_rows=rows, device="cpu"
    )
    [measured] = found.values()
    recorded = trained(run)[2]
    assert measured.metrics["perplexity/loss"] == pytest.approx(recorded["eval/loss"], rel=0.02)
    assert measured.metrics["fidelity/kl"] == pytest.approx(recorded["eval/kl"], rel=0.05)


def test_a_checkpoint_of_a_newer_version_is_refused_by_name(old: Old) -> None:
    path = checkpoint_path(old[0], 3) / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "momentum": 1}))
    with pytest.raises(UserError, match="records momentum, which this version does not know"):
        read_state(path.parent)
