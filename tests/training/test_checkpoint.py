"""A checkpoint brings back every bit, or says why it cannot."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tutelage.data.tokenizer import Tokenizer
from tutelage.errors import UserError
from tutelage.losses.config import LossConfig
from tutelage.losses.objective import Objective
from tutelage.runs import checkpoints
from tutelage.store import fault
from tutelage.student.config import StudentConfig
from tutelage.student.decoder import Decoder
from tutelage.student.weights import load_student
from tutelage.training.checkpoint import Saver, TrainingState, find_checkpoint, load_checkpoint, save_checkpoint
from tutelage.training.config import OptimConfig
from tutelage.training.distiller import Distiller
from tutelage.training.optim import make_optimizer
from tutelage.training.processes import Processes

SHAPE = StudentConfig(vocab_size=600, n_layers=1, n_heads=2, n_kv_heads=1, d_model=16, d_ff=32)
ORIGIN: dict[str, Any] = {"seed": 0, "student": {"n_layers": 1}, "tokenizer": "abc", "pair": (1, 2)}


def make(seed: int) -> tuple[Distiller, torch.optim.AdamW]:
    torch.manual_seed(seed)
    distiller = Distiller(Decoder(SHAPE), Objective(LossConfig(), 600))
    optimizer = make_optimizer(distiller, OptimConfig())
    for parameter in distiller.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return distiller, optimizer


def flat(optimizer: torch.optim.Optimizer) -> dict[tuple[int, str], torch.Tensor]:
    return {(i, key): value for i, entry in optimizer.state_dict()["state"].items() for key, value in entry.items()}


def parts(distiller: Distiller, optimizer: torch.optim.AdamW, tokenizer: Any = None, origin: Any = ORIGIN) -> Any:
    """As much of a run's parts as a checkpoint looks at."""
    return SimpleNamespace(
        distiller=distiller,
        student=distiller.student,
        optimizer=optimizer,
        tokenizer=tokenizer,
        processes=Processes("cpu"),
        origin=origin,
    )


def load(parts: Any, run: Path) -> TrainingState:
    return load_checkpoint(parts, find_checkpoint(parts.processes, str(run)))


def save(run: Path, step: int, tokenizer: Tokenizer, keep_last: int = 3) -> tuple[Distiller, torch.optim.AdamW]:
    distiller, optimizer = make(step)
    state = TrainingState(step, step * 10, 1.5, 2, dict(ORIGIN))
    save_checkpoint(parts(distiller, optimizer, tokenizer), state, run, keep_last)
    return distiller, optimizer


def test_every_bit_comes_back(tmp_path: Path, tokenizer: Tokenizer) -> None:
    distiller, optimizer = save(tmp_path, 7, tokenizer)
    drawn = torch.rand(5)
    other, other_optimizer = make(99)
    torch.manual_seed(12345)
    state = load(parts(other, other_optimizer), tmp_path)
    assert torch.equal(torch.rand(5), drawn)
    assert (state.step, state.tokens, state.seconds, state.skipped) == (7, 70, 1.5, 2)
    for a, b in zip(distiller.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    assert len(flat(optimizer)) == 3 * len(list(distiller.parameters()))
    restored = flat(other_optimizer)
    assert all(torch.equal(value, restored[key]) for key, value in flat(optimizer).items())
    assert {name: value.dtype for name, value in restored.items()} == {k: v.dtype for k, v in flat(optimizer).items()}


def test_it_is_a_student_without_pickles(tmp_path: Path, tokenizer: Tokenizer) -> None:
    distiller, _ = save(tmp_path, 1, tokenizer)
    path = tmp_path / "checkpoints" / "step-1"
    assert fault(path) is None
    assert torch.equal(load_student(path).model.head, distiller.student.head)
    suffixes = {file.suffix for file in path.rglob("*") if file.is_file()}
    assert suffixes == {".json", ".safetensors"}


def test_only_the_newest_are_kept(tmp_path: Path, tokenizer: Tokenizer) -> None:
    for step in (1, 2, 9, 10):
        save(tmp_path, step, tokenizer, keep_last=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-10", "step-9"]


def test_what_was_just_saved_is_never_thrown_away(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Going on from step 5 because step 10 is damaged must not keep step 10 and drop step 6."""
    for step in (5, 10):
        save(tmp_path, step, tokenizer)
    (tmp_path / "checkpoints" / "step-10" / "state.json").write_text("{}")
    save(tmp_path, 6, tokenizer, keep_last=1)
    assert any(path.name == "step-6" for path in checkpoints(tmp_path))


def test_a_damaged_one_is_passed_over_aloud(
    tmp_path: Path, tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2):
        save(tmp_path, step, tokenizer)
    weights = tmp_path / "checkpoints" / "step-2" / "student" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 4
    weights.write_bytes(content)
    state = load(parts(*make(0)), tmp_path)
    assert state.step == 1
    assert "step-2" in caplog.text
    assert "model.safetensors" in caplog.text


def test_none_that_is_whole_is_a_user_error(tmp_path: Path, tokenizer: Tokenizer) -> None:
    save(tmp_path, 1, tokenizer)
    (tmp_path / "checkpoints" / "step-1" / "rng.safetensors").unlink()
    with pytest.raises(UserError, match="no whole checkpoint"):
        load(parts(*make(0)), tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("seed", 3, "seed was 0, is 3"),
        ("student", {"n_layers": 2}, r"student\.n_layers was 1, is 2"),
        ("tokenizer", "xyz", "tokenizer was abc, is xyz"),
        ("pair", (1, 3), r"pair was \[1, 2\], is \[1, 3\]"),
    ],
)
def test_another_run_is_refused_with_both_values(
    tmp_path: Path, tokenizer: Tokenizer, key: str, value: object, line: str
) -> None:
    save(tmp_path, 1, tokenizer)
    distiller, optimizer = make(0)
    before = distiller.student.head.detach().clone()
    with pytest.raises(UserError, match=line):
        load(parts(distiller, optimizer, origin={**ORIGIN, key: value}), tmp_path)
    assert torch.equal(distiller.student.head, before)


def test_an_interrupted_save_leaves_the_older_one(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1, tokenizer)
    monkeypatch.setattr("tutelage.training.checkpoint._rng", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save(tmp_path, 2, tokenizer)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-1"]


def test_runs_of_the_tiny_teacher_record_what_they_are(make_config: Callable[..., Any]) -> None:
    from tutelage.training.parts import build

    origin = build(make_config(), None).origin
    assert {"teacher", "student", "data", "tokenizer", "seed", "loss", "precision", "batch_size"} <= set(origin)
    other = build(replace(make_config(), seed=1), None).origin
    assert {key for key in origin if origin[key] != other[key]} == {"seed"}


def test_a_best_one_that_is_not_there_is_forgotten(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Going back to a step from before a better one took its place."""
    distiller, optimizer = make(1)
    state = TrainingState(3, origin=dict(ORIGIN), best={"step": 1, "loss": 2.0})
    save_checkpoint(parts(distiller, optimizer, tokenizer), state, tmp_path, 3)
    assert load(parts(*make(0)), tmp_path).best is None
    save(tmp_path, 1, tokenizer)
    save_checkpoint(parts(distiller, optimizer, tokenizer), state, tmp_path, 3)
    assert load(parts(*make(0)), tmp_path).best == {"step": 1, "loss": 2.0}


def test_a_best_one_that_could_not_be_saved_is_none(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {"step": 1, "loss": 2.0}
    state = TrainingState(1, origin=dict(ORIGIN), best=before)
    saver = Saver(parts(*make(1), tokenizer), state, tmp_path, 1)
    saver.save()
    state.step, state.best = 2, {"step": 2, "loss": 1.0}
    with monkeypatch.context() as patch:
        patch.setattr("tutelage.training.checkpoint.save_checkpoint", full)
        saver.save()
    assert state.best == before
    state.step = 3
    saver.save()
    assert [path.name for path in checkpoints(tmp_path)] == ["step-3", "step-1"]


def full(*_: Any) -> None:
    raise OSError(28, "No space left on device")
