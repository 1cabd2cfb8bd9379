"""The run while it goes on: what it says, keeps, scores, and how it ends."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tutelage import distill, evaluate
from tutelage.errors import UserError
from tutelage.runs import STATE, checkpoint, checkpoints, step_of
from tutelage.store import fault
from tutelage.student.weights import load_student
from tutelage.teacher.decoder_teacher import DecoderTeacher
from tutelage.training import loop
from tutelage.training.config import OptimConfig, RunConfig
from tutelage.training.interrupt import Interrupt

Make = Callable[..., RunConfig]
SCORE = loop.score


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def kept(run: Path) -> list[int]:
    return [step_of(path) for path in checkpoints(run)]


def state(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((checkpoints(run)[0] / STATE).read_text())
    return found


def test_rows_say_what_a_run_is_tuned_by(make_config: Make) -> None:
    row = rows(distill(make_config(steps=2)).path)[0]
    assert {"perf/mfu", "perf/peak_memory_gib", "perf/tokens_per_s", "perf/share_teacher"} <= set(row)
    shares = [value for key, value in row.items() if key.startswith("perf/share_")]
    assert len(shares) == 5
    assert sum(shares) == pytest.approx(1)
    assert 0 < row["perf/mfu"] < 2


def test_the_headline_tells_text_epochs_and_precision(make_config: Make, capsys: pytest.CaptureFixture[str]) -> None:
    distill(make_config(steps=2, log_every=5))
    out = capsys.readouterr().out
    assert "matmuls in fp32" in out
    assert "tokens; an epoch is 729 rows, and this is 0.011 epochs" in out
    assert "warning" not in out
    assert "step 1/2 took" in out
    assert "left" in out.split("step 1/2 took")[1].splitlines()[0]


def test_more_than_four_epochs_are_warned_of(make_config: Make, capsys: pytest.CaptureFixture[str]) -> None:
    distill(make_config(steps=9, max_rows=8, log_every=9))
    assert "an epoch is 8 rows, and this is 4.5 epochs\nwarning: beyond 4 epochs" in capsys.readouterr().out


def losses(monkeypatch: pytest.MonkeyPatch, values: dict[int, float]) -> None:
    """Has the evaluations of these steps find these losses."""
    steps: Iterator[int] = iter(sorted(values))

    def changed(*args: Any) -> dict[str, float]:
        return {**SCORE(*args), "eval/loss": values[next(steps)]}

    monkeypatch.setattr(loop, "score", changed)


def test_the_best_checkpoint_is_kept(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    losses(monkeypatch, {2: 5.0, 4: 3.0, 6: 4.0, 8: 3.5})
    config = make_config(steps=8, eval_every=2, checkpoint_every=100, keep_last=1, keep_best=True)
    run = distill(config).path
    assert kept(run) == [8, 4]
    assert state(run)["best"] == {"step": 4, "loss": 3.0}
    assert checkpoint(f"{run}@best") == checkpoints(run)[1]
    assert load_student(f"{run}@best").model.config == load_student(run).model.config
    losses(monkeypatch, {10: 2.0, 12: 9.0})  # a better one takes its place, also in a run that goes on
    distill(replace(config, resume=str(run), output_dir=None, steps=12))
    assert kept(run) == [12, 10]


def test_a_run_goes_on_from_the_step_that_is_named(make_config: Make) -> None:
    config = make_config(steps=6, checkpoint_every=2)
    run = distill(config).path
    whole = rows(run)
    again = distill(replace(config, resume=f"{run}@2", output_dir=None))
    assert (again.path, again.step) == (run, 6)
    assert [{k: v for k, v in row.items() if k.startswith("train/")} for row in rows(run)] == [
        {k: v for k, v in row.items() if k.startswith("train/")} for row in whole
    ]
    assert kept(run) == [6, 4, 2]
    with pytest.raises(UserError, match="no checkpoint of step 3"):
        distill(replace(config, resume=f"{run}@3", output_dir=None))


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (RuntimeError("something"), RuntimeError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (torch.OutOfMemoryError("CUDA out of memory"), UserError),
    ],
)
@pytest.mark.parametrize("there", [False, True])
def test_a_run_that_dies_in_its_first_step_leaves_nothing(
    make_config: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, raised: Any, expected: Any, there: bool
) -> None:
    def die(*_: Any) -> Any:
        assert (tmp_path / "run" / "config.yaml").exists()
        raise raised

    monkeypatch.setattr(loop, "train_step", die)
    if there:
        (tmp_path / "run").mkdir()
    with pytest.raises(expected):
        distill(make_config(tracker="tensorboard"))
    assert [*tmp_path.rglob("*")] == ([tmp_path / "run"] if there else [])


def test_one_that_dies_later_or_goes_on_keeps_what_it_has(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(steps=4, stop_after=2)
    run = distill(config).path
    monkeypatch.setattr(loop, "train_step", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        distill(replace(config, resume=str(run), output_dir=None, stop_after=None))
    assert kept(run) == [2]


@pytest.fixture
def interrupted_in_evaluation(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Somebody asks for the end while the teacher reads the second batch of held-out rows; how many it read."""
    from tutelage.training.fidelity import fidelity

    read: list[int] = []

    def asked(model: Any, reference: Any, *rest: Any) -> Any:
        def signal(batch: Any) -> Any:
            read.append(1)
            if len(read) == 2:
                interrupts[-1].requested = "SIGTERM"
            return reference(batch)

        return fidelity(model, signal, *rest)

    interrupts: list[Interrupt] = []
    enter = Interrupt.__enter__
    monkeypatch.setattr(Interrupt, "__enter__", lambda self: interrupts.append(self) or enter(self))
    monkeypatch.setattr(loop, "fidelity", asked)
    return read


def test_an_interruption_is_answered_during_an_evaluation(
    make_config: Make, interrupted_in_evaluation: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(steps=4, eval_rows=40)
    run = distill(config)
    assert len(interrupted_in_evaluation) == 2  # of ten batches
    assert (run.step, kept(run.path), state(run.path)["unscored"]) == (4, [4], True)
    assert not (run.path / "samples").exists()
    assert f"SIGTERM: saved step 4; go on with --resume {run.path}" in capsys.readouterr().out
    again = distill(replace(config, resume=str(run.path), output_dir=None))
    assert again.step == 4
    assert math.isfinite(again.metrics["eval/loss"])
    assert (run.path / "samples" / "step-4.md").exists()
    assert state(run.path)["unscored"] is False
    assert [row["step"] for row in rows(run.path)] == [1, 2, 3, 4, 4]


def test_a_diverged_student_is_said_saved_and_scored(make_config: Make, capsys: pytest.CaptureFixture[str]) -> None:
    optim = OptimConfig(lr=50.0, warmup_steps=0, clip=1e9)
    run = distill(make_config(steps=6, optim=optim))
    assert run.step == 6
    assert fault(checkpoints(run.path)[0]) is None
    assert "the student has diverged (held-out loss " in capsys.readouterr().out
    last = json.loads((run.path / "metrics.jsonl").read_text().splitlines()[-1], parse_constant=pytest.fail)
    assert last["eval/perplexity"] is None
    assert last["eval/loss"] > 700


def test_a_run_that_ends_in_its_warm_up_says_so(make_config: Make, caplog: pytest.LogCaptureFixture) -> None:
    distill(make_config(steps=2, optim=OptimConfig(warmup_steps=20)))
    assert "--optim.warmup_steps 20: the run of 2 steps ends in its warm-up: lower it, or raise --steps" in caplog.text


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"precision": "fp16"}, "--precision"),
        ({"batch_size": 0}, "--batch_size 0"),
        ({"steps": -1}, "--steps -1"),
        ({"steps": 2.5}, "--steps"),
        ({"optim": OptimConfig(lr=-1.0)}, r"--optim\.lr -1"),
        ({"seed": 2**64}, "--seed"),
    ],
)
def test_python_is_checked_as_the_command_line_is(make_config: Make, fields: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line):
        distill(make_config(**fields))


@pytest.fixture
def mine(make_config: Make) -> DecoderTeacher:
    """An object of somebody's own, whose name happens to be known."""
    from tutelage.teacher.registry import load_teacher

    teacher = load_teacher(make_config().teacher)
    assert isinstance(teacher, DecoderTeacher)
    return replace(teacher, spec=replace(teacher.spec, name="smollm2-135m"))


def test_the_record_says_who_taught(make_config: Make, mine: DecoderTeacher, tmp_path: Path) -> None:
    """An object is not taken for the teacher that is called like it: it is wanted again, by resume and by evaluate."""
    run = distill(make_config(steps=2, stop_after=1), teacher=mine)
    recorded = yaml.safe_load((run.path / "config.yaml").read_text())
    assert recorded["teacher"] == "object:smollm2-135m"
    assert recorded["version"] == 2
    wanted = r"the object 'smollm2-135m' of your own: pass it again, with distill\(teacher=…\), or name another"
    again = make_config(steps=2, resume=str(run.path), teacher=recorded["teacher"])
    with pytest.raises(UserError, match=wanted):
        distill(again)
    for measure in ("fidelity", "report"):
        with pytest.raises(UserError, match=wanted):
            evaluate(model=str(run.path), output_dir=str(tmp_path / "e"), **{measure: True})
    assert not (tmp_path / "e").exists()
    assert distill(again, teacher=mine).step == 2
    assert evaluate(model=str(run.path), perplexity=True, output_dir=str(tmp_path / "e"), eval_rows=2, device="cpu")
    teacher = make_config().teacher
    assert evaluate(
        model=str(run.path), fidelity=True, teacher=teacher, output_dir=str(tmp_path / "e"), eval_rows=2, device="cpu"
    )
