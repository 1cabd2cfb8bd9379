"""The plan of a run."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tutelage.errors import UserError
from tutelage.student.config import StudentOptions, resolve
from tutelage.teacher.registry import entry
from tutelage.training.config import RunConfig
from tutelage.training.plan import flops_per_token, matmul_rate, plan, show

CPU = torch.device("cpu")


def test_flops_are_six_per_student_weight_and_two_per_teacher_weight() -> None:
    known = entry("starcoder2-3b")
    student = resolve(StudentOptions(), 49_152, "125m")
    wanted = 6 * student.n_parameters + 2 * 3_030_371_328  # tied: the table works once, as the head
    assert flops_per_token(student, known) == pytest.approx(wanted, rel=0.01)
    untied = resolve(StudentOptions(tie_embeddings=False), 49_152, "125m")
    assert flops_per_token(untied, known) == flops_per_token(student, known)


def test_the_lines_are_plausible() -> None:
    config = RunConfig(teacher="starcoder2-3b", steps=1000)
    lines = plan(config, entry("starcoder2-3b"), CPU)
    assert "3,030,371,328" in lines["teacher"]
    assert "12.1 GB" in lines["teacher"]
    assert "122," in lines["student"]
    assert f"{8 * 512:,} tokens" in lines["step"]
    assert f"{1000 * 8 * 512:,} tokens" in lines["run"]
    total = float(re.search(r"about ([\d.]+) GiB", lines["memory"])[1])  # type: ignore[index]
    assert 5.6 + 1.8 < total < 20  # the teacher in bf16, and sixteen bytes a student's weight
    assert "4-bit" in plan(RunConfig(teacher="codellama-7b"), entry("codellama-7b"), CPU)["teacher"]
    assert "epochs" in plan(RunConfig(), entry("smollm2-135m"), CPU)["run"]


def test_a_teacher_that_remembers_costs_less_work_and_some_memory() -> None:
    known = entry("smollm2-135m")
    student = resolve(StudentOptions(), 49_152, "smollm2-6l")
    table = 49_152 * 576
    saved = flops_per_token(student, known) - flops_per_token(student, known, 1 / 3)
    assert saved == pytest.approx(2 * (known.n_parameters - table) * 2 / 3)
    once = RunConfig(steps=10, batch_size=4, max_rows=40)
    again = replace(once, steps=30)
    assert float(step_tflop(again)) < float(step_tflop(once))
    assert step_tflop(replace(again, teacher_memory=0.0)) == step_tflop(once)
    assert step_tflop(replace(once, steps=None, epochs=3.0)) == step_tflop(again)
    answers = f"teacher's answers {40 * 512 * 576 * 2 / 2**30:.2f}"
    assert answers in plan(again, known, CPU)["memory"]
    assert "answers" not in plan(once, known, CPU)["memory"]


def memory(config: RunConfig, processes: int) -> dict[str, float]:
    line = plan(config, entry("starcoder2-3b"), CPU, processes)["memory"]
    return {name: float(gib) for name, gib in re.findall(r"([a-z][a-z ]+) (\d+\.\d\d)(?:,|$)", line)}


def test_processes_share_rows_and_with_fsdp_weights_too() -> None:
    config = RunConfig(teacher="starcoder2-3b", batch_size=32)
    one, eight, cut = memory(config, 1), memory(config, 8), memory(replace(config, fsdp=True), 8)
    assert eight["activations"] == pytest.approx(one["activations"] / 8, abs=0.01)
    assert eight["teacher"] == one["teacher"]
    assert cut["student and optimizer"] == pytest.approx(one["student and optimizer"] / 8, abs=0.01)
    head = 2 * 49_152 * 3072 / 2**30
    assert cut["teacher"] == pytest.approx((one["teacher"] - head) / 8 + head, abs=0.01)


def step_tflop(config: RunConfig) -> str:
    found = re.search(r"([\d.]+) TFLOP,", plan(config, entry("smollm2-135m"), CPU)["step"])
    assert found
    return found[1]


def test_a_rate_is_measured() -> None:
    assert 1e9 < matmul_rate(CPU, size=128, repeats=2) < 1e16


def test_showing_touches_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TUTELAGE_CACHE", str(tmp_path / "cache"))
    show(RunConfig(teacher="starcoder2-3b", steps=10))
    assert list(tmp_path.iterdir()) == []
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        "teacher", "student", "data", "memory", "step", "run"
    ]  # fmt: skip


def test_a_student_that_cannot_be_is_refused(make_config: Callable[..., RunConfig]) -> None:
    with pytest.raises(UserError, match="multiple of n_heads"):
        plan(make_config(student=StudentOptions(d_model=100, n_heads=3)), entry("smollm2-135m"), CPU)


def test_a_directory_is_planned_under_its_own_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], teacher_dir: Path
) -> None:
    odd = tmp_path / "[red]x[" / "]"
    odd.parent.mkdir()
    odd.symlink_to(teacher_dir)
    show(RunConfig(teacher=str(odd), steps=1))
    assert f"{odd}: " in capsys.readouterr().out.replace(f" ({odd})", "")
