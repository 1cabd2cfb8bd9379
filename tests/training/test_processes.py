"""What one process sees of it; two real ones are in test_two_processes.py and tests/test_distributed.py."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tutelage.data.batch import IGNORE, Batch
from tutelage.errors import UserError
from tutelage.training.config import RunConfig
from tutelage.training.processes import Processes, Silent


def rows(n: int) -> Batch:
    table = torch.arange(3 * n).view(n, 3)
    return Batch(table, table + 1, table * 0, table, torch.arange(n))


def placed(rank: int, size: int) -> Processes:
    """A process that believes to be one of several."""
    one = Processes("cpu")
    one.rank, one.size = rank, size
    return one


@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 3))
def test_every_row_is_read_once(size: int, more: int, pieces: int) -> None:
    batch = rows(size + more)
    shards = [placed(rank, size).shard(batch, pieces) for rank in range(size)]
    assert all(1 <= len(shard) <= pieces for shard in shards)
    keys = [[key for piece in shard for key in piece.keys.tolist()] for shard in shards]
    assert [key for own in keys for key in own] == batch.keys.tolist()
    assert max(map(len, keys)) - min(map(len, keys)) <= 1


@given(st.integers(1, 4), st.integers(1, 9))
def test_all_have_as_many_batches_and_each_target_counts_once(size: int, n: int) -> None:
    batches = [rows(2) for _ in range(n)]
    hands = [placed(rank, size).shard_batches(batches) for rank in range(size)]
    assert len({len(hand) for hand in hands}) == 1
    counted = sum(int((batch.targets != IGNORE).sum()) for hand in hands for batch in hand)
    assert counted == sum(batch.targets.numel() for batch in batches)


def test_one_process_agrees_with_itself() -> None:
    one = Processes("cpu")
    assert (one.rank, one.size, one.first, one.device) == (0, 1, True, torch.device("cpu"))
    value = torch.tensor(3.0)
    assert one.all_reduce(value) is value
    assert one.broadcast("word") == "word"
    assert one.broadcast(value) is value
    assert one.all_gather(1) == [1]
    assert one.raise_together(lambda: 5) == 5
    assert [one.any(flag) for flag in (True, False)] == [True, False]
    with one.local_first():
        one.barrier()
    one.started()
    module = torch.nn.Linear(1, 1)
    assert one.wrap(module) is module
    with one.sync(module, now=False):
        pass

    def fail() -> None:
        raise UserError("no such thing")

    with pytest.raises(UserError, match="no such thing"):
        one.raise_together(fail)


def test_a_device_that_is_not_there() -> None:
    with pytest.raises(UserError, match="--device nonsense is not available"):
        Processes("nonsense")


def test_one_process_makes_no_group_and_the_next_run_begins_anew() -> None:
    for _ in range(2):
        with Processes("cpu") as one:
            assert one.size == 1
            assert not torch.distributed.is_initialized()
    with pytest.raises(ZeroDivisionError), Processes("cpu"):
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("environment", "line"),
    [
        ({"WORLD_SIZE": "2"}, r"RANK \(unset\) of WORLD_SIZE 2"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK 2 of WORLD_SIZE 2"),
        ({"WORLD_SIZE": "two", "RANK": "0"}, "WORLD_SIZE is 'two', not a number"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, r"does not find the others at MASTER_ADDR:MASTER_PORT \?:\?.*torchrun"),
    ],
)
def test_an_environment_that_no_launcher_makes(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], line: str
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=line):
        Processes("cpu")


def test_a_group_that_exists_is_used_and_left_alone(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        with Processes("cpu") as one:
            assert (one.rank, one.size) == (0, 1)
            one.started()
        assert torch.distributed.is_initialized()
    finally:
        torch.distributed.destroy_process_group()


def test_fsdp_alone_is_pointless_and_goes_on(
    make_config: Callable[..., RunConfig], caplog: pytest.LogCaptureFixture
) -> None:
    from tutelage.training.parts import build

    parts = build(make_config(fsdp=True), None)
    assert "pointless with one process" in caplog.text
    assert all(type(p) is torch.nn.Parameter for p in parts.distiller.parameters())


def test_silent_takes_everything() -> None:
    assert Silent().log(3, {"a": 1.0}) is None
    assert Silent().say("text", anything=1) is None
