"""How many steps fit."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tutelage import distill
from tutelage.errors import UserError
from tutelage.training import sizing as module
from tutelage.training.config import RunConfig
from tutelage.training.parts import build
from tutelage.training.processes import Processes
from tutelage.training.sizing import evaluation_seconds, fitting, timed_steps
from tutelage.training.step import rehearse

STEP = {"data": 0.1, "teacher": 2.0, "student": 1.5, "loss": 1.0, "optimizer": 0.4}  # 5 s


def parts(remembers: bool, per_epoch: int = 10) -> Any:
    loader = SimpleNamespace(steps_per_epoch=per_epoch)
    return SimpleNamespace(remembers=remembers, loader=loader, processes=Processes("cpu"))


def spent(steps: int, remembers: bool, config: RunConfig) -> float:
    """The time of so many steps, step by step."""
    total = 0.0
    for step in range(1, steps + 1):
        total += 5.0 if not remembers or step <= 10 else 3.0
        if step % config.eval_every == 0 or step == steps:
            total += evaluation_seconds(STEP, config)
    return total


@given(st.floats(0, 3000), st.booleans(), st.integers(1, 50), st.integers(1, 64))
def test_as_many_as_fit_and_not_one_more(seconds: float, remembers: bool, eval_every: int, eval_rows: int) -> None:
    config = RunConfig(eval_every=eval_every, eval_rows=eval_rows)
    steps = fitting(STEP, parts(remembers), config, seconds)
    if steps:
        assert spent(steps, remembers, config) <= seconds + 1e-6
    assert spent(steps + 1, remembers, config) > seconds - 1e-6


def test_timing_changes_nothing(make_config: Callable[..., RunConfig]) -> None:
    config = make_config()
    made = build(config, None)
    before = [parameter.detach().clone() for parameter in made.distiller.parameters()]
    random = torch.get_rng_state()
    found = rehearse(made, config, 0)
    assert set(found) == {"data", "teacher", "student", "loss", "optimizer"}
    assert all(seconds > 0 for seconds in found.values())
    assert all(torch.equal(a, b) for a, b in zip(before, made.distiller.parameters(), strict=True))
    assert torch.equal(torch.get_rng_state(), random)
    assert not made.optimizer.state
    assert all(parameter.grad is None for parameter in made.distiller.parameters())


def test_timing_does_not_spread_what_is_not_finite(
    make_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config()
    made = build(config, None)
    monkeypatch.setattr("tutelage.training.step.clip", lambda *_: torch.tensor(torch.nan))
    rehearse(made, config, 0)
    assert all(parameter.isfinite().all() for parameter in made.distiller.parameters())


def test_the_first_step_is_not_counted_unless_there_is_time_for_no_other(
    make_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    laps = iter([{"student": 9.0}, {"student": 2.0}, {"student": 1.0}, {"student": 3.0}])
    monkeypatch.setattr(module, "rehearse", lambda *_: next(laps))
    assert timed_steps(parts(False), make_config(), 60.0) == {"student": 1.0}
    laps = iter([{"student": 9.0}])
    monkeypatch.setattr(module, "rehearse", lambda *_: next(laps))
    assert timed_steps(parts(False), make_config(), 0.0) == {"student": 9.0}


def test_minutes_become_steps_that_are_written_down(
    make_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "timed_steps", lambda *_: {"student": 1.0})
    run = distill(make_config(steps=None, minutes=0.2, eval_rows=1))
    recorded = yaml.safe_load((run.path / "config.yaml").read_text())
    assert recorded["minutes"] is None
    assert 2 < recorded["steps"] == run.step < 12
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    again = distill(make_config(steps=run.step, eval_rows=1, output_dir=str(tmp_path / "again")))
    repeated = [json.loads(line) for line in (again.path / "metrics.jsonl").read_text().splitlines()]
    assert [row["train/loss"] for row in rows] == [row["train/loss"] for row in repeated]


def test_too_little_time_is_one_line(make_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--minutes 1e-05 is too short: starting took .* s, a step takes"):
        distill(make_config(steps=None, minutes=1e-5))
    assert not (tmp_path / "run").exists()


def test_it_excludes_steps_and_epochs(make_config: Callable[..., RunConfig]) -> None:
    with pytest.raises(UserError, match="--steps 4 and --minutes 2 each say when to end"):
        build(make_config(minutes=2.0), None)
