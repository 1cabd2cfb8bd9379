"""A teacher that is asked once per row."""

from pathlib import Path

import pytest
import torch

from tutelage.data.batch import Batch
from tutelage.teacher.decoder_teacher import DecoderTeacher, load
from tutelage.teacher.memory import Memory


@pytest.fixture
def teacher(teacher_dir: Path) -> DecoderTeacher:
    return load("mine", teacher_dir, device="cpu")


@pytest.fixture
def runs(teacher: DecoderTeacher, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of each pass that the teacher really made."""
    seen: list[int] = []
    decoder = type(teacher.decoder)
    forward = decoder.forward
    monkeypatch.setattr(decoder, "forward", lambda self, x, **rest: (seen.append(len(x)), forward(self, x, **rest))[1])
    return seen


def test_rows_that_come_again_have_the_same_bits_and_cost_nothing(
    teacher: DecoderTeacher, batch: Batch, runs: list[int]
) -> None:
    memory = Memory(teacher, 2**20)
    first = memory(batch)
    assert torch.equal(first.hidden, teacher.signal(batch).hidden)
    assert runs == [3, 3]
    order = torch.tensor([2, 0, 1])
    again = memory(batch.take(order))
    assert torch.equal(again.hidden, first.hidden[order])
    assert again.head is first.head
    assert runs == [3, 3]
    assert torch.equal(memory(batch.take(order[:2])).hidden, first.hidden[order[:2]])


def test_a_batch_with_a_new_row_is_run_whole(teacher: DecoderTeacher, batch: Batch, runs: list[int]) -> None:
    memory = Memory(teacher, 2**20)
    memory(batch.take(torch.tensor([0, 1])))
    mixed = memory(batch.take(torch.tensor([1, 2])))
    assert runs == [2, 2]
    assert torch.equal(memory(batch.take(torch.tensor([2, 1]))).hidden, mixed.hidden.flip(0))
    assert runs == [2, 2]


def test_memory_ends_where_its_bytes_end(teacher: DecoderTeacher, batch: Batch, runs: list[int]) -> None:
    row = teacher.signal(batch).hidden[0].nbytes
    memory = Memory(teacher, 2 * row)
    expected = memory(batch).hidden
    runs.clear()
    assert torch.equal(memory(batch.take(torch.tensor([1, 0]))).hidden, expected[[1, 0]])
    assert runs == []
    assert torch.equal(memory(batch).hidden, expected)
    assert runs == [3]


def test_what_a_caller_does_to_the_answer_is_not_remembered(teacher: DecoderTeacher, batch: Batch) -> None:
    memory = Memory(teacher, 2**20)
    expected = memory(batch).hidden.clone()
    for _ in range(2):
        memory(batch).hidden.zero_()
    assert torch.equal(memory(batch).hidden, expected)
