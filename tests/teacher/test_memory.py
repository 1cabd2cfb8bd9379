"""A teacher that is asked once per row."""

import gc
import weakref
from pathlib import Path

import pytest
import torch

from tutelage.data.batch import Batch
from tutelage.teacher.decoder_teacher import DecoderTeacher, load
from tutelage.teacher.memory import Memory, bytes_needed
from tutelage.teacher.signal import Teacher


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
    first = memory.signal(batch)
    assert torch.equal(first.dense.hidden, teacher.signal(batch).dense.hidden)
    assert runs == [3, 3]
    order = torch.tensor([2, 0, 1])
    again = memory.signal(batch.take(order))
    assert torch.equal(again.dense.hidden, first.dense.hidden[order])
    assert again.dense.head is first.dense.head
    assert runs == [3, 3]
    assert torch.equal(memory.signal(batch.take(order[:2])).dense.hidden, first.dense.hidden[order[:2]])


def test_a_batch_with_a_new_row_is_run_whole(teacher: DecoderTeacher, batch: Batch, runs: list[int]) -> None:
    memory = Memory(teacher, 2**20)
    memory.signal(batch.take(torch.tensor([0, 1])))
    mixed = memory.signal(batch.take(torch.tensor([1, 2])))
    assert runs == [2, 2]
    assert torch.equal(memory.signal(batch.take(torch.tensor([2, 1]))).dense.hidden, mixed.dense.hidden.flip(0))
    assert runs == [2, 2]


def test_memory_ends_where_its_bytes_end(teacher: DecoderTeacher, batch: Batch, runs: list[int]) -> None:
    row = teacher.signal(batch).dense.hidden[0].nbytes
    memory = Memory(teacher, 2 * row)
    expected = memory.signal(batch).dense.hidden
    runs.clear()
    assert torch.equal(memory.signal(batch.take(torch.tensor([1, 0]))).dense.hidden, expected[[1, 0]])
    assert runs == []
    assert torch.equal(memory.signal(batch).dense.hidden, expected)
    assert runs == [3]


def test_bytes_needed_are_those_that_are_taken(teacher: DecoderTeacher, batch: Batch, runs: list[int]) -> None:
    needed = bytes_needed(teacher.spec.d_model, 3, 16)
    assert needed == teacher.signal(batch).dense.hidden.nbytes == bytes_needed(64, 3, 16, torch.float32) // 2
    memory = Memory(teacher, needed)
    memory.signal(batch)
    runs.clear()
    memory.signal(batch)
    assert runs == []


def test_taps_are_those_of_the_batch_and_never_remembered(teacher: DecoderTeacher, batch: Batch) -> None:
    memory = Memory(teacher, 2**20)
    memory.signal(batch, (0,))
    memory.signal(batch)
    assert memory.signal(batch).taps == ()
    for rows in ([0, 1], [2, 0]):
        part = batch.take(torch.tensor(rows))
        [tap] = memory.signal(part, (1,)).taps
        assert torch.equal(tap, teacher.signal(part, (1,)).taps[0])


def test_nothing_of_a_signal_is_kept_but_its_rows(teacher: DecoderTeacher, batch: Batch) -> None:
    memory = Memory(teacher, 0)  # which has no room for a row
    states = weakref.ref(memory.signal(batch).dense.hidden.untyped_storage())
    gc.collect()
    assert states() is None


def test_it_is_the_teacher_in_everything_else(teacher: DecoderTeacher) -> None:
    memory: Teacher = Memory(teacher, 2**20)
    for name in ("spec", "tokenizer", "provides", "prompt_style", "decoder"):
        assert getattr(memory, name) is getattr(teacher, name)
    assert memory.generator() is teacher.generator()


def test_what_a_caller_does_to_the_answer_is_not_remembered(teacher: DecoderTeacher, batch: Batch) -> None:
    memory = Memory(teacher, 2**20)
    expected = memory.signal(batch).dense.hidden.clone()
    for _ in range(2):
        memory.signal(batch).dense.hidden.zero_()
    assert torch.equal(memory.signal(batch).dense.hidden, expected)
