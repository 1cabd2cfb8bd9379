import pytest
import torch

from tutelage.student.cache import KVCache


def make(batch=3, max_len=10, layers=2):
    return KVCache(layers, batch, max_len, n_kv_heads=2, d_head=4, dtype=torch.float32, device="cpu")


def write(cache, k, counts=None):
    """Appends to every layer, layer l times (l + 1), and advances; returns what each layer saw."""
    seen = [cache.append(layer, k * (layer + 1), -k * (layer + 1)) for layer in range(len(cache.keys))]
    cache.advance(k.shape[2] if counts is None else counts)
    return seen


def random(T, batch=3, seed=0):
    return torch.randn(batch, 2, T, 4, generator=torch.Generator().manual_seed(seed))


def test_appended_keys_come_back_in_order():
    cache = make()
    first, second = random(3), random(2, seed=1)
    write(cache, first)
    for layer, (keys, values) in enumerate(write(cache, second)):
        expected = torch.cat((first, second), 2) * (layer + 1)
        assert torch.equal(keys, expected)
        assert torch.equal(values, -expected)
    assert cache.length.tolist() == [5, 5, 5]


def test_layers_write_to_the_same_place_until_the_rows_advance():
    cache = make()
    cache.append(0, random(2), random(2))
    cache.append(1, random(2), random(2))
    assert cache.length.tolist() == [0, 0, 0]
    assert cache.positions(1).flatten().tolist() == [0, 0, 0]


def test_ragged_rows_write_behind_their_own_tokens():
    cache = make()
    first, second = random(4), random(2, seed=1)
    write(cache, first, torch.tensor([4, 1, 2]))
    assert cache.length.tolist() == [4, 1, 2]
    assert cache.positions(2).tolist() == [[4, 5], [1, 2], [2, 3]]
    keys, _ = cache.append(0, second, second)
    for row, length in enumerate([4, 1, 2]):
        assert torch.equal(keys[row, :, :length], first[row, :, :length])
        assert torch.equal(keys[row, :, length : length + 2], second[row])


def test_visible_is_the_past_of_the_row_and_itself():
    cache = make()
    write(cache, random(4), torch.tensor([4, 1, 2]))
    visible = cache.visible(2).mask
    assert visible.shape == (3, 1, 2, 6)
    for row, length in enumerate([4, 1, 2]):
        for t in range(2):
            assert visible[row, 0, t].tolist() == [slot <= length + t for slot in range(6)]


def test_rewind_per_row_and_of_all_rows():
    cache = make()
    write(cache, random(5))
    cache.rewind(torch.tensor([0, 2, 5]))
    assert cache.length.tolist() == [5, 3, 0]
    cache.rewind(0)
    assert cache.length.tolist() == [5, 3, 0]
    write(cache, random(1), torch.tensor([1, 1, 1]))
    cache.rewind(1)
    assert cache.length.tolist() == [5, 3, 0]


@pytest.mark.parametrize("counts", [3, torch.tensor([0, 3, 0])])
def test_rewind_below_zero_is_refused_and_changes_nothing(counts):
    cache = make()
    write(cache, random(2))
    with pytest.raises(ValueError, match="rewind"):
        cache.rewind(counts)
    assert cache.length.tolist() == [2, 2, 2]


def test_rewinding_makes_room_again():
    cache = make(max_len=4)
    write(cache, random(4))
    with pytest.raises(ValueError, match=r"4 \+ 1 tokens exceed the cache of 4"):
        cache.positions(1)
    cache.rewind(2)
    assert cache.positions(2).tolist() == [[2, 3]] * 3


def test_overfull_cache_is_refused():
    cache = make(max_len=4)
    with pytest.raises(ValueError, match="exceed the cache of 4"):
        cache.append(0, random(5), random(5))


def test_select_keeps_rows_in_the_given_order():
    cache = make()
    tokens = random(4)
    write(cache, tokens, torch.tensor([4, 1, 2]))
    cache.select(torch.tensor([2, 1]))
    assert cache.length.tolist() == [2, 1]
    keys, _ = cache.append(0, random(1)[:2], random(1)[:2])
    assert torch.equal(keys[0, :, :2], tokens[2, :, :2])
    assert torch.equal(keys[1, :, :1], tokens[1, :, :1])


def test_select_may_repeat_a_row_and_the_copies_are_independent():
    cache = make()
    write(cache, random(2))
    cache.select(torch.tensor([1, 1]))
    new = random(1)[:2]
    keys, _ = cache.append(0, new, new)
    assert torch.equal(keys[0, :, :2], keys[1, :, :2])
    assert not torch.equal(keys[0, :, 2], keys[1, :, 2])


def test_room_after_select_is_that_of_the_rows_that_stay():
    cache = make(max_len=4)
    write(cache, random(4), torch.tensor([4, 1, 2]))
    cache.select(torch.tensor([1, 2]))
    assert cache.positions(2).tolist() == [[1, 2], [2, 3]]
