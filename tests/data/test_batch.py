import pytest
import torch

from tutelage.data.batch import IGNORE, Batch, concatenate
from tutelage.kernels import reference


def make(rows: int, length: int = 3) -> Batch:
    tokens = torch.arange(rows * length).view(rows, length)
    return Batch(tokens, tokens + 1, tokens * 0, tokens % length, torch.arange(rows))


def test_count_leaves_out_ignored_targets_and_is_known_without_asking_a_device() -> None:
    batch = make(2)
    batch.targets[0, 1] = IGNORE
    batch.targets[1, 2] = IGNORE
    assert batch.count == 4
    assert batch.to("meta").count == 4  # whose values nobody can read


@pytest.mark.parametrize(("rows", "n", "sizes"), [(8, 3, [3, 3, 2]), (2, 5, [1, 1]), (4, 1, [4])])
def test_split_is_even_ordered_and_never_empty(rows: int, n: int, sizes: list[int]) -> None:
    batch = make(rows)
    parts = batch.split(n)
    assert [len(part.tokens) for part in parts] == sizes
    together = concatenate(parts)
    for name in ("tokens", "targets", "segments", "positions", "keys"):
        assert torch.equal(getattr(together, name), getattr(batch, name))


def test_take_reorders_every_field() -> None:
    taken = make(3).take(torch.tensor([2, 0]))
    assert taken.keys.tolist() == [2, 0]
    assert taken.tokens[:, 0].tolist() == [6, 0]


def test_to_moves_every_field_but_the_keys_which_the_host_reads() -> None:
    moved = make(2).to("meta")
    others = (moved.tokens, moved.targets, moved.segments, moved.positions)
    assert {tensor.device.type for tensor in others} == {"meta"}
    assert moved.keys.tolist() == [0, 1]
    assert [part.keys.tolist() for part in moved.split(2)] == [[0], [1]]


def test_there_is_one_ignore() -> None:
    assert IGNORE is reference.IGNORE
