import pytest
import torch

from tutelage.data.batch import IGNORE, Batch, concatenate


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


def test_to_moves_every_field() -> None:
    moved = make(2).to("meta")
    assert {moved.tokens.device.type, moved.targets.device.type, moved.keys.device.type} == {"meta"}
