"""What one process sees of it; two real ones are in tests/test_distributed.py."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tutelage.data.batch import IGNORE, Batch
from tutelage.errors import UserError
from tutelage.training.config import RunConfig
from tutelage.training.processes import Mute, Processes


def rows(n: int) -> Batch:
    table = torch.arange(3 * n).view(n, 3)
    return Batch(table, table + 1, table * 0, table, torch.arange(n))


def placed(rank: int, size: int) -> Processes:
    """A process that believes to be one of several."""
    one = Processes(RunConfig(device="cpu"))
    one.rank, one.size = rank, size
    return one


@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 3))
def test_every_row_is_read_once(size: int, more: int, pieces: int) -> None:
    batch = rows(size + more)
    shares = [placed(rank, size).share(batch, pieces) for rank in range(size)]
    assert all(1 <= len(share) <= pieces for share in shares)
    keys = [[key for piece in share for key in piece.keys.tolist()] for share in shares]
    assert [key for own in keys for key in own] == batch.keys.tolist()
    assert max(map(len, keys)) - min(map(len, keys)) <= 1


@given(st.integers(1, 4), st.integers(1, 9))
def test_all_are_dealt_as_many_batches_and_each_target_counts_once(size: int, n: int) -> None:
    batches = [rows(2) for _ in range(n)]
    hands = [placed(rank, size).deal(batches) for rank in range(size)]
    assert len({len(hand) for hand in hands}) == 1
    counted = sum(int((batch.targets != IGNORE).sum()) for hand in hands for batch in hand)
    assert counted == sum(batch.targets.numel() for batch in batches)


def test_one_process_agrees_with_itself() -> None:
    one = Processes(RunConfig(device="cpu"))
    assert (one.rank, one.size, one.first, one.device) == (0, 1, True, torch.device("cpu"))
    value = torch.tensor(3.0)
    assert one.total(value) is value
    assert one.told("word") == "word"
    assert one.gather(1) == [1]
    assert one.agree(lambda: 5) == 5
    assert [one.anywhere(flag) for flag in (True, False)] == [True, False]
    with one.in_turn():
        pass

    def fail() -> None:
        raise UserError("no such thing")

    with pytest.raises(UserError, match="no such thing"):
        one.agree(fail)


def test_a_device_that_is_not_there() -> None:
    with pytest.raises(UserError, match="--device nonsense is not available"):
        Processes(RunConfig(device="nonsense"))


def test_fsdp_alone_is_pointless_and_goes_on(
    make_config: Callable[..., RunConfig], caplog: pytest.LogCaptureFixture
) -> None:
    from tutelage.training.parts import build

    parts = build(make_config(fsdp=True), None)
    assert "pointless with one process" in caplog.text
    assert all(type(p) is torch.nn.Parameter for p in parts.distiller.parameters())


def test_mute_takes_everything() -> None:
    assert Mute().log(3, {"a": 1.0}) is None
    assert Mute().say("text", anything=1) is None
