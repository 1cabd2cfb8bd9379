"""Teachers by name."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tutelage import distill, load_student
from tutelage.errors import UserError
from tutelage.teacher.decoder_teacher import DecoderTeacher
from tutelage.teacher.registry import CODE, EMBEDDED, TEACHERS, entry, load_teacher
from tutelage.training.config import RunConfig


def test_the_three_promised_names_are_known() -> None:
    assert {EMBEDDED, "starcoder2-3b", "codellama-7b"} <= set(TEACHERS)
    assert entry("codellama-7b").quantisation == "nf4"
    assert entry("starcoder2-3b").quantisation is None
    assert entry(EMBEDDED).download_bytes == 0
    assert (entry(EMBEDDED).data, entry("starcoder2-3b").data) == ("stdlib", CODE)


def test_memory_is_two_bytes_a_parameter_and_less_in_four_bit() -> None:
    assert entry("starcoder2-3b").memory_bytes == 2 * 3_030_371_328
    four_bit = entry("codellama-7b")
    assert 0.5 <= four_bit.memory_bytes / four_bit.n_parameters < 0.8


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(UserError, match=r"smollm2-135\b.*did you mean 'smollm2-135m'"):
        entry("smollm2-135")
    with pytest.raises(UserError, match=r"zzz.*codellama-7b.*smollm2-135m.*starcoder2-3b"):
        entry("zzz")


def test_a_hub_id_is_taken_as_it_is() -> None:
    assert entry("org/some-model").source == "org/some-model"


@pytest.mark.parametrize("name", ["./nowhere", "/no/where", "a/b/c", "~/model"])
def test_a_directory_that_is_not_there_is_no_hub_id(name: str) -> None:
    with pytest.raises(UserError, match="does not exist"):
        entry(name)


def test_a_directory_is_read(llama_dir: Path) -> None:
    found = entry(str(llama_dir))
    assert (found.source, found.d_model, found.vocab_size) == (str(llama_dir), 64, 600)
    assert found.n_parameters == pytest.approx(2 * 600 * 64 + 2 * 36_992, rel=0.1)
    assert found.download_bytes == 0


@pytest.mark.parametrize("content", [None, "{", "[]", '"text"'])
def test_a_directory_without_a_readable_config_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json"):
        entry(str(tmp_path))


def test_a_run_stands_for_its_newest_student(make_config: Callable[..., RunConfig]) -> None:
    run = distill(make_config(steps=2, checkpoint_every=1))
    newest = run.path / "checkpoints" / "step-2" / "student"
    found, student = entry(str(run.path)), load_student(newest).model
    assert (found.source, found.d_model) == (str(newest), student.config.d_model)
    assert found.n_parameters == pytest.approx(sum(p.numel() for p in student.parameters()), rel=0.02)
    teacher = load_teacher(str(run.path))
    assert isinstance(teacher, DecoderTeacher)
    assert torch.equal(teacher.decoder.head, student.head.bfloat16())


def test_a_student_directory_teaches(teacher_dir: Path) -> None:
    teacher = load_teacher(str(teacher_dir))
    assert isinstance(teacher, DecoderTeacher)
    assert json.loads((teacher_dir / "config.json").read_text())["format"] == "tutelage"
    assert entry(str(teacher_dir)).vocab_size == 600
