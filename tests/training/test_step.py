"""One optimizer step."""

import math
from collections.abc import Callable

import pytest
import torch

from tutelage.errors import UserError
from tutelage.training.checkpoint import TrainingState
from tutelage.training.config import RunConfig
from tutelage.training.parts import build
from tutelage.training.processes import Processes
from tutelage.training.step import out_of_memory, train_step

Make = Callable[..., RunConfig]


def test_micro_batches_are_the_gradient_of_the_whole(make_config: Make) -> None:
    norms = []
    for accumulate in (1, 3, 4):
        config = make_config(accumulate=accumulate)
        norms.append(train_step(build(config, None), config, TrainingState())["train/grad_norm"])
    assert norms[1:] == pytest.approx([norms[0]] * 2, rel=1e-4)


def test_an_interruption_anywhere_comes_with_the_row(make_config: Make) -> None:
    config = make_config()
    parts, state = build(config, None), TrainingState()
    assert [train_step(parts, config, state, flag)["interrupted"] for flag in (False, True)] == [0, 1]
    assert (state.step, state.tokens) == (2, 2 * 4 * 32)


def test_only_skips_in_a_row_end_a_run(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(max_skipped=1)
    parts, state = build(config, None), TrainingState()
    bad = {0, 2, 4, 5}
    clip = "tutelage.training.step.clip"
    monkeypatch.setattr(clip, lambda *_: torch.tensor(math.nan if state.step in bad else 1.0))
    for _ in range(5):
        train_step(parts, config, state)
    assert (state.skipped, state.skipped_in_a_row) == (3, 1)
    with pytest.raises(UserError, match=r"2 steps in a row were not finite, the last one step 5 on rows \w{16}"):
        train_step(parts, config, state)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes."),
        MemoryError(),
    ],
)
def test_out_of_memory_is_one_line_with_the_way_out(error: Exception) -> None:
    with (
        pytest.raises(UserError, match=r"out of memory with 8 rows of 512 tokens in 2 .*--accumulate 4") as caught,
        out_of_memory(RunConfig(accumulate=2, precision="fp32"), Processes("cpu")),
    ):
        raise error
    assert "--gradient_checkpointing" in str(caught.value)
    assert "--precision bf16" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_other_errors_are_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes"), out_of_memory(RunConfig(), Processes("cpu")):
        raise RuntimeError("shapes differ")


def test_what_would_be_refused_is_not_advised(caplog: pytest.LogCaptureFixture) -> None:
    processes = Processes("cpu")
    processes.rank, processes.size = 1, 2
    with pytest.raises(UserError, match="try a smaller --batch_size, --gradient") as caught:  # noqa: SIM117
        with out_of_memory(RunConfig(accumulate=4), processes):
            raise MemoryError
    assert "--precision" not in str(caught.value)
    assert "process 1 of 2: out of memory" in caplog.text  # the first one may not know
