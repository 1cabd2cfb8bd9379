"""Two real processes, started once: what they exchange, and a teacher that one has loaded and both hold."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import HF_SHAPE, ROOT
from tutelage.data.packing import pack
from tutelage.teacher.registry import load_teacher

Found = tuple[dict[str, Any], dict[str, Any]]
TEACHERS = ["ours", "llama", "olmo"]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def olmo_dir(tmp_path_factory: pytest.TempPathFactory, save_model: Any) -> Path:
    """An arithmetic that is not ours (norms without weights), with a head that is tied to its embedding."""
    from transformers import OlmoConfig, OlmoForCausalLM

    torch.manual_seed(0)
    model = OlmoForCausalLM(OlmoConfig(**HF_SHAPE, tie_word_embeddings=True))
    path: Path = save_model(model, tmp_path_factory.mktemp("olmo"))
    return path


@pytest.fixture(scope="module")
def found(
    tmp_path_factory: pytest.TempPathFactory, teacher_dir: Path, llama_dir: Path, olmo_dir: Path, cache_dir: Path
) -> Found:
    """What the two found out. The second one's teachers have no weight files."""
    out = tmp_path_factory.mktemp("two")
    for name, folder in zip(TEACHERS, (teacher_dir, llama_dir, olmo_dir), strict=True):
        shutil.copytree(folder, out / "0" / name)
        shutil.copytree(folder, out / "1" / name, ignore=shutil.ignore_patterns("*.safetensors"))
    worker = ROOT / "tests" / "training" / "group_worker.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", worker, out, *TEACHERS]
    env = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TUTELAGE_CACHE": str(cache_dir), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [*map(str, command)], env=env, capture_output=True, text=True, check=False, timeout=180, cwd=out
    )
    assert done.returncode == 0, done.stderr[:4000]
    first, second = (json.loads((out / f"{rank}.json").read_text()) for rank in (0, 1))
    return first, second


def test_what_they_exchange(found: Found) -> None:
    for rank, seen in enumerate(one["collectives"] for one in found):
        own = [0.0 + rank, 1.0 + rank, 2.0 + rank]
        assert seen["place"] == [rank, 2, "cpu"]
        assert seen["all_reduce"] == [[1.0, 3.0, 5.0], own]  # and one's own value stays
        assert seen["any"] == [False, True, True]
        assert seen["broadcast"] == ["rank 0", [0.0, 1.0, 2.0], own]
        assert seen["all_gather"] == [{"rank": 0}, {"rank": 1}]
        assert seen["raise_together"] == "the second process alone has no room"
    first, second = (one["collectives"] for one in found)
    assert first["left"] <= second["entered"]


def test_gradients_are_averaged_when_they_are_asked_for(found: Found) -> None:
    assert found[0]["gradients"] == [[1.0], [1.5], [3.0]]
    assert found[1]["gradients"] == [[2.0], [1.5], [3.0]]


def test_the_timeout_falls_and_the_group_is_closed(found: Found) -> None:
    assert all(one["timeout"] and one["closed"] for one in found)


@pytest.mark.parametrize("name", TEACHERS)
def test_a_teacher_loaded_once_is_held_by_both_and_says_the_same(
    found: Found, name: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue({"ours": "teacher_dir"}.get(name, f"{name}_dir"))
    alone: Any = load_teacher(str(folder), dtype=torch.float32)
    random = np.random.default_rng(0)
    documents = [random.integers(1, 600, size).tolist() for size in (5, 3, 20, 1, 9, 4)]
    signal = alone.signal(pack(documents, 0, 16).batch(np.arange(3)))
    model = getattr(alone, "model", None) or alone.decoder
    total, head = sum(p.numel() for p in model.parameters()), signal.dense.head.numel()
    for seen in (one[name] for one in found):
        torch.testing.assert_close(torch.tensor(seen["hidden"]), signal.dense.hidden, rtol=1e-5, atol=1e-5)
        logits = signal.dense.hidden @ signal.dense.head.T
        assert seen["logits"] == pytest.approx(logits.sum().item(), rel=1e-3, abs=1e-2)
        assert seen["hidden again"]
        assert seen["head is whole"]
        assert seen["on meta"] == 0
        assert seen["here"] == head + (total - head) / 2  # all but the head is cut in two
        assert seen["weights"] == alone.spec.weights
    first, second = (one[name] for one in found)
    assert first["student"] == second["student"]  # drawn from other seeds, and then the first one's
    assert first["generated"] == second["generated"]
    assert any(len(row) == 4 for row in first["generated"])
