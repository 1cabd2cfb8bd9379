"""The plan of a run."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tutelage.data.config import PackingConfig
from tutelage.errors import UserError
from tutelage.student.config import StudentOptions
from tutelage.teacher.registry import entry
from tutelage.training import plan as module
from tutelage.training.config import RunConfig
from tutelage.training.plan import plan, show
from tutelage.training.precision import Precision
from tutelage.training.processes import Processes

STEP = {"teacher": 4.0, "student": 3.0, "loss": 2.0, "optimizer": 1.0}


@pytest.fixture
def ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step takes ten seconds, of which the teacher has four."""
    monkeypatch.setattr(module, "measured", lambda *_: dict(STEP))
    monkeypatch.setattr(module, "choose_precision", lambda *_: Precision())


def lines(config: RunConfig, processes: int = 1) -> dict[str, str]:
    there = Processes("cpu")
    there.size = processes
    return plan(config, entry(config.teacher), there)


@pytest.mark.usefixtures("ten_seconds")
def test_the_lines_are_plausible() -> None:
    found = lines(RunConfig(teacher="starcoder2-3b", steps=1000))
    assert "3,030,371,328 parameters in bf16" in found["teacher"]
    assert "12.1 GB" in found["teacher"]
    assert "122," in found["student"]
    assert (
        f"{8 * 512:,} tokens: about 10.00 s (teacher 4, student 3, loss 2, optimizer 1), 410 tokens/s" in found["step"]
    )
    assert f"{1000 * 8 * 512:,} tokens, about 2.78 hours" in found["run"]
    total = float(re.search(r"about ([\d.]+) GiB", found["memory"])[1])  # type: ignore[index]
    assert 5.6 + 1.8 < total < 20  # the teacher in bf16, and sixteen bytes a student's weight
    assert "4-bit" in lines(RunConfig(teacher="codellama-7b"))["teacher"]
    assert "epochs" in lines(RunConfig())["run"]
    assert "about 18 steps" in lines(RunConfig(minutes=3.0))["run"]
    assert "known once it is downloaded" in lines(RunConfig(teacher="org/name"))["step"]


@pytest.mark.usefixtures("ten_seconds")
def test_a_teacher_is_paid_once_for_rows_that_it_remembers() -> None:
    once = RunConfig(steps=360, batch_size=4, max_rows=4 * 360)
    assert "1 epochs, about 1.00 hours" in lines(once)["run"]
    again = replace(once, max_rows=4 * 180)
    assert "2 epochs, about 0.80 hours" in lines(again)["run"]  # 180 steps of ten seconds, 180 of six
    assert "1.00 hours" in lines(replace(again, teacher_memory=0.0))["run"]
    assert "1.00 hours" in lines(replace(again, teacher_memory=0.001))["run"]  # they do not fit
    assert "1.00 hours" in lines(again, processes=2)["run"]
    answers = f"teacher's answers {(4 * 180 + 64) * 512 * 576 * 2 / 2**30:.2f}"
    assert answers in lines(again)["memory"]
    assert "answers" not in lines(once)["memory"]


def memory(config: RunConfig, processes: int = 1) -> dict[str, float]:
    line = lines(config, processes)["memory"]
    return {name: float(gib) for name, gib in re.findall(r"([a-z][a-z ]+) (\d+\.\d\d)(?:,|$)", line)}


@pytest.mark.usefixtures("ten_seconds")
def test_processes_share_rows_and_with_fsdp_weights_too() -> None:
    config = RunConfig(teacher="starcoder2-3b", batch_size=32)
    one, eight, cut = memory(config), memory(config, 8), memory(replace(config, fsdp=True), 8)
    assert eight["activations"] == pytest.approx(one["activations"] / 8, abs=0.01)
    assert cut["student and optimizer"] == pytest.approx(one["student and optimizer"] / 8, abs=0.01)
    head = 2 * 49_152 * 3072 / 2**30
    assert eight["teacher"] - cut["teacher"] == pytest.approx((5.64 - head) * 7 / 8, abs=0.02)
    lean = memory(replace(config, gradient_checkpointing=True))
    assert lean["activations"] < one["activations"] / 10


def test_the_time_is_that_of_steps_that_were_made(make_config: Callable[..., RunConfig]) -> None:
    config = make_config(steps=100)
    found = plan(config, entry(config.teacher), Processes("cpu"))["step"]
    whole, parts = re.search(r"about ([\d.]+) s \((.*?)\)", found).groups()  # type: ignore[union-attr]
    split = {part.split()[0]: float(part.split()[1]) for part in parts.split(", ")}
    assert set(split) == {"data", "teacher", "student", "loss", "optimizer"}
    assert sum(split.values()) == pytest.approx(float(whole), abs=0.01)
    assert "in fp32" in found


def test_showing_touches_nothing(
    make_config: Callable[..., RunConfig], capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TUTELAGE_CACHE", str(tmp_path / "cache"))
    show(make_config(steps=10, impl="eager"))
    assert list(tmp_path.iterdir()) == []
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        "teacher", "student", "data", "memory", "step", "run"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("teacher", "max_seq_len", "said"),
    [
        ("codellama-7b", None, "20000 is more than the student's context of 2048: "),
        ("codellama-7b", 30_000, "20000 is more than the context of teacher codellama-7b, which is 16384: "),
    ],
)
def test_rows_beyond_a_context_are_refused(teacher: str, max_seq_len: int | None, said: str) -> None:
    config = RunConfig(
        teacher=teacher, packing=PackingConfig(seq_len=20_000), student=StudentOptions(max_seq_len=max_seq_len)
    )
    with pytest.raises(UserError, match=f"^--packing.seq_len {said}lower it"):
        show(config)


@pytest.mark.usefixtures("ten_seconds")
def test_packed_weights_are_planned_as_they_are_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    show(RunConfig(teacher="codellama-7b", teacher_quantization="int8", steps=1))
    assert "6,738,415,616 parameters in 8 bits, download 13.5 GB" in capsys.readouterr().out


def test_a_student_that_cannot_be_is_refused(make_config: Callable[..., RunConfig]) -> None:
    with pytest.raises(UserError, match="multiple of n_heads"):
        show(make_config(student=StudentOptions(d_model=100, n_heads=3)))


@pytest.mark.usefixtures("ten_seconds")
def test_a_directory_is_planned_under_its_own_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], teacher_dir: Path
) -> None:
    odd = tmp_path / "[red]x[" / "]"
    odd.parent.mkdir()
    odd.symlink_to(teacher_dir)
    show(RunConfig(teacher=str(odd), steps=1, precision="fp32", packing=PackingConfig(seq_len=64)))
    assert f"{odd}: " in capsys.readouterr().out.replace(f" ({odd})", "")
