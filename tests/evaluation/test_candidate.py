"""A student and a teacher behind one face."""

import pytest
import torch

from tutelage.errors import UserError
from tutelage.evaluation.candidate import load_candidate


def test_a_teacher_and_the_same_weights_as_a_student(teacher_dir, teacher_decoder):
    teacher, student = load_candidate(f"teacher:{teacher_dir}", "cpu"), load_candidate(str(teacher_dir), "cpu")
    assert teacher.name == f"teacher:{teacher_dir}"
    assert student.name == teacher_dir.name
    size = sum(parameter.numel() for parameter in teacher_decoder.parameters())
    for candidate in (teacher, student):
        assert candidate.n_parameters == size
        assert candidate.n_bytes == 2 * size  # bf16
    tokens = torch.tensor([[1, 2, 3]])
    ours, theirs = (c.generator.step(tokens, c.generator.new_cache(1, 4)) for c in (student, teacher))
    assert torch.equal(ours, theirs)


def test_a_student_in_fp32(teacher_dir, teacher_decoder):
    student = load_candidate(str(teacher_dir), "cpu", "fp32")
    assert student.dtype == "fp32"
    assert student.n_bytes == 4 * student.n_parameters
    tokens = torch.tensor([[1, 2, 3]])
    found = student.generator.step(tokens, student.generator.new_cache(1, 4))
    expected = teacher_decoder.step(tokens, teacher_decoder.new_cache(1, 4))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ["nowhere/at/all", "teacher:nobody"])
def test_what_is_not_there_is_named(name):
    with pytest.raises(UserError, match=name.removeprefix("teacher:")):
        load_candidate(name, "cpu")
