"""Runs from end to end on a tiny teacher."""

import json
import logging
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from tutelage import distill, evaluate, load_student, train
from tutelage.data import tokenizer as vocabularies
from tutelage.data.batch import Batch
from tutelage.data.config import PackingConfig
from tutelage.data.tokenizer import Tokenizer
from tutelage.errors import UserError
from tutelage.kernels.linear_divergence import DenseTeacher
from tutelage.runs import checkpoints
from tutelage.store import fault
from tutelage.student.config import StudentOptions
from tutelage.teacher.signal import Signal, TeacherSpec
from tutelage.training.config import OptimConfig, RunConfig

Make = Callable[..., RunConfig]
Script = Callable[..., subprocess.CompletedProcess[str]]
SCALARS = {
    "train/loss", "train/ce", "train/kl", "train/perplexity", "train/lr", "train/grad_norm", "perf/tokens_per_s",
}  # fmt: skip
SCORES = {"eval/loss", "eval/perplexity", "eval/kl", "eval/agreement", "eval/acceptance", "eval/reference_loss"}


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def trained(run: Path) -> dict[int, dict[str, Any]]:
    """By step, the numbers that a resumed run must repeat."""
    return {row["step"]: {k: v for k, v in row.items() if k.startswith("train/")} for row in rows(run)}


def weights(run: Path, step: int) -> bytes:
    return (run / "checkpoints" / f"step-{step}" / "student" / "model.safetensors").read_bytes()


def listing(folder: Path) -> set[tuple[str, int]]:
    return {(str(path), path.stat().st_mtime_ns) for path in folder.rglob("*")}


def test_a_run_learns_and_explains_itself(make_config: Make) -> None:
    config = make_config(steps=30, eval_every=15, checkpoint_every=10, keep_last=2, tracker="tensorboard")
    run = distill(config)
    found = rows(run.path)
    assert [row["step"] for row in found] == list(range(1, 31))
    assert all(set(row) >= SCALARS for row in found)
    assert all(set(found[step - 1]) >= SCORES for step in (15, 30))
    losses = [row["train/loss"] for row in found]
    assert sum(losses[-5:]) < 0.95 * sum(losses[:5])
    assert found[29]["eval/kl"] < found[14]["eval/kl"]
    assert found[29]["train/perplexity"] == pytest.approx(math.exp(found[29]["train/ce"]))
    assert found[0]["train/lr"] == pytest.approx(0.005)
    mixed = 0.2 * found[3]["train/ce"] + 0.8 * found[3]["train/kl"]
    assert found[3]["train/loss"] == pytest.approx(mixed, rel=1e-4)
    assert run.metrics == {k: v for k, v in found[29].items() if k != "step"}
    assert [path.name for path in checkpoints(run.path)] == ["step-30", "step-20"]
    assert all(fault(path) is None for path in checkpoints(run.path))
    held = {path.name for path in run.path.iterdir()}
    assert held == {"config.yaml", "env.json", "metrics.jsonl", "checkpoints", "tensorboard", "samples", ".lock"}
    assert {path.name for path in (run.path / "samples").iterdir()} == {"step-15.md", "step-30.md"}
    student = load_student(run.path)
    text = student.complete("def f(", max_new_tokens=8)
    assert isinstance(text, str)
    assert text == student.complete("def f(", max_new_tokens=8)

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.path / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) >= SCALARS | SCORES
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 31))
    assert len(events.Tags()["tensors"]) == 4  # three samples and the settings


def test_micro_batches_change_nothing_but_rounding(make_config: Make, tmp_path: Path) -> None:
    runs = [distill(make_config(accumulate=n, output_dir=str(tmp_path / str(n)))) for n in (1, 4, 3)]
    states = [load_student(run.path).model.state_dict() for run in runs]
    for run, state in zip(runs[1:], states[1:], strict=True):
        for name, value in trained(runs[0].path)[3].items():
            assert trained(run.path)[3][name] == pytest.approx(value, rel=1e-4), name
        for name, tensor in states[0].items():
            torch.testing.assert_close(state[name], tensor, rtol=1e-3, atol=2e-4, msg=name)


def poison(monkeypatch: pytest.MonkeyPatch, bad: set[int]) -> list[list[torch.Tensor]]:
    """Makes the loss of these steps NaN; returns the weights before each step, as they come."""
    from tutelage.training.distiller import Distiller

    forward = Distiller.forward
    seen: list[list[torch.Tensor]] = []

    def changed(self: Distiller, batch: Any, signal: Any, counts: Any, progress: Any) -> Any:
        seen.append([p.detach().clone() for p in self.parameters()])
        loss, logs = forward(self, batch, signal, counts, progress)
        factor = float("nan") if progress.step in bad else 1.0
        return loss * factor, {**logs, "loss": logs["loss"] * factor}

    monkeypatch.setattr(Distiller, "forward", changed)
    return seen


def test_a_step_that_is_not_finite_is_skipped_and_counted(
    make_config: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seen = poison(monkeypatch, {2})
    run = distill(make_config(steps=5, max_skipped=1))
    same = [all(torch.equal(a, b) for a, b in zip(*pair, strict=True)) for pair in pairwise(seen)]
    assert same == [False, False, True, False]
    assert json.loads((checkpoints(run.path)[0] / "state.json").read_text())["skipped"] == 1
    assert rows(run.path)[2]["train/loss"] is None
    assert "step 2 skipped" in caplog.text
    assert all(torch.isfinite(p).all() for p in load_student(run.path).model.parameters())


def test_too_many_of_them_stop_the_run_and_name_the_rows(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from tutelage.training.parts import build

    poison(monkeypatch, {1, 2, 3})
    config = make_config(steps=5, max_skipped=1)
    keys = build(config, None).loader.batch(2).keys
    with pytest.raises(UserError) as caught:
        distill(config)
    assert all(f"{key & (2**64 - 1):016x}" in str(caught.value) for key in keys.tolist())
    assert "--optim.lr" in str(caught.value)


class Uniform:
    """The teacher one writes for oneself: it finds every token equally likely."""

    provides = frozenset({"full"})

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.head = torch.zeros(tokenizer.vocab_size, 8)
        self.spec = TeacherSpec("uniform", "mine", None, None, 0, tokenizer.vocab_size, 8, 0, tokenizer.fingerprint)

    def signal(self, batch: Batch, taps: Any = ()) -> Signal:
        return Signal(DenseTeacher(torch.zeros(*batch.tokens.shape, 8), self.head))


def test_a_teacher_of_ones_own(make_config: Make, tokenizer: Tokenizer, teacher_dir: Path, tmp_path: Path) -> None:
    """It says a distribution, and nothing else: it has no vocabulary, no decoder, and generates nothing."""
    with pytest.raises(UserError, match="teacher uniform brings no tokenizer: pass --tokenizer"):
        distill(make_config(), teacher=Uniform(tokenizer))
    run = distill(make_config(steps=2, tokenizer=str(teacher_dir)), teacher=Uniform(tokenizer))
    assert "(this teacher does not generate)" in (run.path / "samples" / "step-2.md").read_text()
    assert run.metrics["eval/reference_loss"] == pytest.approx(math.log(600), rel=1e-3)
    state = json.loads((checkpoints(run.path)[0] / "state.json").read_text())
    assert state["origin"]["teacher"]["name"] == "uniform"


def test_another_vocabulary_than_the_teachers_is_refused(make_config: Make, tmp_path: Path) -> None:
    vocabularies.train(["ab" * 300, "cd" * 300], 257).save(tmp_path / "other")
    with pytest.raises(UserError, match=r"--tokenizer .*other uses another tokenizer"):
        distill(make_config(tokenizer=str(tmp_path / "other")))


@pytest.mark.parametrize("kind", ["llama", "olmo"])
def test_transformers_teachers_train_whatever_their_arithmetic(
    make_config: Make, tmp_path: Path, tokenizer: Tokenizer, kind: str
) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        kind, vocab_size=600, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=256, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "teacher")
    tokenizer.save(tmp_path / "teacher")
    run = distill(make_config(teacher=str(tmp_path / "teacher"), steps=2, eval_rows=2))
    assert math.isfinite(run.metrics["eval/kl"])
    assert (run.path / "samples" / "step-2.md").exists()


def test_cross_entropy_alone_asks_the_teacher_nothing_in_training(make_config: Make, tokenizer: Tokenizer) -> None:
    from tutelage.losses.config import LossConfig

    teacher = Uniform(tokenizer)
    teacher.tokenizer = tokenizer  # type: ignore[attr-defined]
    teacher.provides = frozenset()  # type: ignore[misc]
    run = distill(make_config(steps=1, loss=LossConfig(ce_weight=1, kd_weight=0)), teacher=teacher)
    assert run.metrics["train/kl"] == 0
    with pytest.raises(UserError, match="full"):
        distill(make_config(steps=1, output_dir=str(run.path) + "2"), teacher=teacher)
    assert not Path(str(run.path) + "2").exists()


def test_a_damaged_newest_checkpoint_is_passed_over_aloud(make_config: Make, caplog: pytest.LogCaptureFixture) -> None:
    config = make_config(steps=6, checkpoint_every=2, stop_after=4)
    run = distill(config)
    whole = distill(make_config(steps=6, output_dir=f"{run.path}-whole"))
    file = run.path / "checkpoints" / "step-4" / "optimizer.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        again = distill(replace(config, resume=str(run.path), output_dir=None, stop_after=None))
    assert "step-4" in caplog.text
    assert again.step == 6
    assert fault(file.parent) is None
    assert weights(run.path, 6) == weights(whole.path, 6)
    assert trained(run.path) == trained(whole.path)


def test_only_what_may_change_changes_on_resume(make_config: Make) -> None:
    config = make_config(steps=4, stop_after=2)
    run = distill(config)
    resumed = replace(config, resume=str(run.path), output_dir=None, stop_after=None)
    for fields, line in (
        ({"seed": 5}, "seed was 0, is 5"),
        ({"student": StudentOptions(preset="nano", n_layers=1)}, r"student\.n_layers was 2, is 1"),
        ({"packing": PackingConfig(seq_len=16, heldout=0.2)}, r"packing\.seq_len was 32, is 16"),
        ({"packing": PackingConfig(seq_len=32, heldout=0.3)}, r"data\.fingerprint was"),
    ):
        with pytest.raises(UserError, match=line):
            distill(replace(resumed, **fields))  # type: ignore[arg-type]
    done = distill(replace(resumed, log_every=2, optim=OptimConfig(lr=1e-3, warmup_steps=2), steps=6))
    assert done.step == 6


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        ("--teacher smollm2-136m", "did you mean 'smollm2-135m'"),
        ("--teacher ./no-such-directory", "./no-such-directory"),
        ("--student.preset nanoo", "did you mean 'nano'"),
        ("--student.init layer", "did you mean 'layers'"),
        ("--student.initt layers", "did you mean '--student.init'"),
        ("--steps -3", "--steps -3"),
        ("--data no/such/data", "no/such/data"),
        ("--resume no-such-run", "no checkpoints"),
        ("--loss.terms nothing", "divergence"),
        ("--batch_size 2 --accumulate 4", "--accumulate 4"),
    ],
)
def test_bad_input_is_one_line_and_2_and_leaves_nothing(
    flags: str,
    part: str,
    tiny_flags: list[str],
    cache: Path,
    one_thread: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train.main([*tiny_flags, *flags.split()]) == 2
    captured = capsys.readouterr()
    [line] = captured.err.splitlines()
    assert line.startswith("error: ")
    assert part in line
    assert list(tmp_path.iterdir()) == []


def test_who_says_when_to_end_is_the_command_line_then_the_run_then_a_recipe(make_config: Make, tmp_path: Path) -> None:
    run = distill(make_config(steps=2)).path
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("minutes: 5\n")

    def ends(*argv: str) -> tuple[Any, Any, Any]:
        config = train.parse(list(argv))
        return config.steps, config.epochs, config.minutes

    assert ends("--config", str(recipe)) == (None, None, 5)
    assert ends("--config", str(recipe), "--steps=114") == (114, None, None)
    assert ends("--resume", str(run)) == ends("--config", str(recipe), "--resume", str(run)) == (2, None, None)
    assert ends("--resume", str(run), "--epochs", "3") == (None, 3, None)
    assert ends("--resume", f"{run}@2", "--minutes", "1") == (None, None, 1)
    assert ends("--steps", "3", "--epochs", "2") == (3, 2, None)  # which is refused


def test_bad_input_in_a_process_of_its_own(run_script: Script, tiny_flags: list[str], tmp_path: Path) -> None:
    for flags in (["--stepz", "3"], [*tiny_flags, "--teacher", "smollm2-136m"]):
        done = run_script("train.py", *flags)
        assert done.returncode == 2
        assert done.stderr.count("error: ") == 1
        assert "Traceback" not in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("teacher", ["starcoder2-3b", "smollm2-135m", None])
def test_a_dry_run_writes_nothing(
    teacher: str | None,
    tiny_flags: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TUTELAGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    before = listing(Path(tiny_flags[1])) | listing(Path(tiny_flags[3]))
    flags = ["--teacher", teacher, "--steps", "10", "--precision", "fp32"] if teacher else tiny_flags
    assert train.main([*flags, "--dry_run"]) == 0
    assert list(tmp_path.iterdir()) == []
    assert listing(Path(tiny_flags[1])) | listing(Path(tiny_flags[3])) == before
    shown = capsys.readouterr().out
    assert "parameters" in shown
    assert "GiB" in shown
    assert "tokens" in shown


FINE = [
    "--steps=12", "--accumulate=2", "--precision=bf16", "--student.dropout=0.1", "--checkpoint_every=100",
    "--max_rows=14",  # three and a half epochs, so that the teacher's memory takes part
]  # fmt: skip


@pytest.mark.slow
def test_a_resumed_run_is_bit_identical(run_script: Script, tiny_flags: list[str], tmp_path: Path) -> None:
    """Twelve steps at once, and in three processes."""

    def go(*flags: str) -> None:
        done = run_script("train.py", *flags)
        assert done.returncode == 0, done.stderr

    go(*tiny_flags, *FINE, "--output_dir", "whole")
    go(*tiny_flags, *FINE, "--output_dir", "parts", "--stop_after", "5")
    assert [path.name for path in checkpoints(tmp_path / "parts")] == ["step-5"]
    go("--resume", "parts", "--stop_after", "9")
    assert [path.name for path in checkpoints(tmp_path / "parts")] == ["step-9", "step-5"]
    go("--resume", "parts")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert sorted(trained(whole)) == list(range(1, 13))
    assert trained(parts) == trained(whole)
    assert weights(parts, 12) == weights(whole, 12)
    optimizers = [(run / "checkpoints" / "step-12" / "optimizer.safetensors").read_bytes() for run in (parts, whole)]
    assert optimizers[0] == optimizers[1]


def test_sigterm_saves_and_leaves_and_the_run_goes_on(
    script_env: dict[str, str], tiny_flags: list[str], tmp_path: Path, root: Path, make_config: Make
) -> None:
    command = [sys.executable, str(root / "train.py"), *tiny_flags, "--steps", "100000", "--output_dir", "run"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=script_env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    try:
        deadline = time.monotonic() + 60
        while not (metrics.exists() and metrics.read_text()) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, "Traceback" in err) == (0, False), err
    [saved] = checkpoints(tmp_path / "run")
    step = int(saved.name[5:])
    assert fault(saved) is None
    assert f"saved step {step}" in out
    assert "--resume run" in out
    done = distill(make_config(resume=str(tmp_path / "run"), output_dir=None, steps=step + 2, precision="auto"))
    assert done.step == step + 2


@pytest.mark.long
def test_the_real_teacher_teaches_and_both_are_scored(tmp_path: Path) -> None:
    run = distill(
        RunConfig(
            data="stdlib",
            batch_size=2,
            steps=8,
            log_every=1,
            eval_every=4,  # samples are the slow part of it
            eval_rows=8,
            output_dir=str(tmp_path / "run"),
            precision="fp32",
            student=StudentOptions(init="layers"),
            optim=OptimConfig(warmup_steps=2),
            packing=PackingConfig(seq_len=128, max_documents=40, heldout=0.1),
        )
    )
    losses = [row["eval/loss"] for row in rows(run.path) if "eval/loss" in row]
    assert len(losses) == 2
    assert losses[-1] < losses[0] - 0.1
    assert run.metrics["eval/reference_loss"] < losses[-1]
    text = load_student(run.path, dtype=torch.bfloat16).complete("import os\n\ndef list_files(path):\n")
    assert text
    names = f"{run.path},teacher:smollm2-135m"
    # of what training computed in, which is quick wherever this runs
    wanted: dict[str, Any] = {"perplexity": True, "fidelity": True, "humaneval": True, "precision": "fp32"}
    scored = evaluate(model=names, **wanted, limit=1, max_new_tokens=16, eval_rows=8, allow_weak_sandbox=True)
    student, teacher = (measured.metrics for measured in scored.values())
    assert student["perplexity/loss"] == pytest.approx(run.metrics["eval/loss"], rel=0.02)  # bf16 weights now
    assert student["fidelity/acceptance"] == pytest.approx(run.metrics["eval/acceptance"], abs=0.02)
    assert teacher["perplexity/loss"] == pytest.approx(run.metrics["eval/reference_loss"], rel=5e-3)
    assert 0 <= student["humaneval/pass@1"] <= teacher["humaneval/pass@1"] <= 1
