from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tutelage.data.batch import Batch
from tutelage.data.corpus import Corpus
from tutelage.data.loader import Loader, heldout_batches
from tutelage.data.packing import PackedTokens, pack
from tutelage.errors import UserError

T = 4


def source(first: int, rows: int) -> PackedTokens:
    """Rows that can be told apart: row r begins with token first + r."""
    return pack([[first + r, 1, 2] for r in range(rows)], 0, T)


def corpus(sizes: list[int], weights: list[float]) -> Corpus:
    train = tuple(source(1000 * (n + 1), size) for n, size in enumerate(sizes))
    return Corpus(train, tuple(weights), source(9000, 10), "f", sum(sizes) + 10)


def names(batch: Batch) -> list[int]:
    return batch.tokens[:, 0].tolist()


def epoch(loader: Loader, number: int) -> list[int]:
    """Row names of one epoch, read through batches of any size."""
    rows, first = loader.rows_per_epoch, number * loader.rows_per_epoch
    steps = range(first // loader.batch_size, -(-(first + rows) // loader.batch_size))
    flat = [name for step in steps for name in names(loader.batch(step))]
    skip = first - steps[0] * loader.batch_size
    return flat[skip : skip + rows]


SIZES = st.lists(st.integers(0, 9), min_size=1, max_size=4).filter(any)


@given(SIZES, st.integers(1, 3), st.integers(1, 30), st.integers(0, 5))
def test_an_epoch_shows_every_row_weight_times(sizes: list[int], weight: int, batch_size: int, seed: int) -> None:
    loader = Loader(corpus(sizes, [weight] * len(sizes)), batch_size, seed)
    expected = Counter({1000 * (n + 1) + r: weight for n, size in enumerate(sizes) for r in range(size)})
    for number in (0, 1, 2):
        assert Counter(epoch(loader, number)) == expected


def test_a_fraction_is_a_new_subset_of_constant_size() -> None:
    loader = Loader(corpus([10, 10], [1.5, 0.3]), 7, 0)
    assert loader.rows_per_epoch == 18
    epochs = [Counter(epoch(loader, number)) for number in range(4)]
    for shown in epochs:
        assert sum(n for row, n in shown.items() if row < 2000) == 15
        assert {shown[1000 + r] for r in range(10)} == {1, 2}
        assert sum(n for row, n in shown.items() if row >= 2000) == 3
        assert max(n for row, n in shown.items() if row >= 2000) == 1
    assert len({tuple(sorted(shown.elements())) for shown in epochs}) == 4


def test_a_tiny_weight_still_shows_something() -> None:
    assert Loader(corpus([10, 3], [1, 0.01]), 2, 0).rows_per_epoch == 11


@given(SIZES, st.integers(1, 30), st.integers(0, 5))
def test_a_limit_shows_the_same_rows_in_every_epoch(sizes: list[int], limit: int, seed: int) -> None:
    data = corpus(sizes, [1.0] * len(sizes))
    loader = Loader(data, 3, seed, limit)
    used = sum(size > 0 for size in sizes)  # every source keeps a row, and shares are rounded
    assert loader.rows_per_epoch == sum(sizes) if limit >= sum(sizes) else abs(loader.rows_per_epoch - limit) <= used
    first, second = Counter(epoch(loader, 0)), Counter(epoch(loader, 1))
    assert first == second
    assert max(first.values()) == 1
    assert epoch(Loader(data, 3, seed, limit), 0) == epoch(loader, 0)


def test_a_limit_keeps_the_weights_and_follows_the_seed() -> None:
    data = corpus([60, 60], [1.0, 2.0])
    loader = Loader(data, 4, 0, 30)
    shown = Counter(epoch(loader, 0))
    assert [sum(n for row, n in shown.items() if row // 1000 == k) for k in (1, 2)] == [10, 20]
    assert set(shown) != set(epoch(Loader(data, 4, 1, 30), 0))


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.integers(0, 9))
def test_a_batch_is_a_pure_function_of_seed_and_step(steps: list[int], seed: int) -> None:
    data = corpus([5, 3], [1, 2])
    one = Loader(data, 4, seed)
    for step in steps:  # in any order, with any history
        fresh = Loader(data, 4, seed).batch(step)
        for name in ("tokens", "targets", "segments", "positions", "keys"):
            assert torch.equal(getattr(one.batch(step), name), getattr(fresh, name))


def test_batches_are_whole_rows_of_their_source() -> None:
    batch = Loader(corpus([6, 6], [1, 1]), 12, 3).batch(0)
    assert batch.tokens[:, 1:].tolist() == [[1, 2, 0]] * 12
    assert sorted(names(batch)) == [*range(1000, 1006), *range(2000, 2006)]
    mixed = [name < 2000 for name in names(batch)]
    assert mixed != sorted(mixed, reverse=True)  # sources are shuffled together, not one after the other


def test_order_depends_on_seed_and_epoch() -> None:
    data = corpus([50], [1])
    orders = [epoch(Loader(data, 10, seed), number) for seed in (0, 1) for number in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4


def test_the_order_of_a_seed_never_changes() -> None:
    expected = 1000 + np.random.Generator(np.random.PCG64([7, 0])).permutation(np.arange(8))
    assert epoch(Loader(corpus([8], [1]), 8, 7), 0) == expected.tolist()


def test_a_corpus_smaller_than_a_batch() -> None:
    loader = Loader(corpus([3], [1]), 8, 0)
    assert loader.steps_per_epoch == 1
    assert Counter(names(loader.batch(0))).total() == 8
    assert set(Counter(names(loader.batch(0)) + names(loader.batch(1)) + names(loader.batch(2))).values()) == {8}


def test_steps_per_epoch_cover_the_epoch() -> None:
    assert Loader(corpus([9], [1]), 4, 0).steps_per_epoch == 3
    assert Loader(corpus([8], [1]), 4, 0).steps_per_epoch == 2


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(UserError, match="--seed -1"):
        Loader(corpus([8], [1]), 4, -1)


@pytest.mark.parametrize(
    ("limit", "expected"), [(5, [0, 2, 4, 6, 8]), (10, [*range(10)]), (99, [*range(10)]), (1, [0])]
)
def test_heldout_rows_are_evenly_spaced(limit: int, expected: list[int]) -> None:
    batches = list(heldout_batches(corpus([3], [1]), 4, limit))
    assert [name - 9000 for batch in batches for name in names(batch)] == expected
    assert all(len(batch.tokens) <= 4 for batch in batches)
