"""What a loss returns and is told."""

import dataclasses

import pytest
import torch

from tutelage.losses.term import LossTerm, Progress


def test_a_term_is_a_sum_and_its_logs() -> None:
    total, logs = LossTerm(torch.tensor(2.0), {"ce": torch.tensor(1.0)})
    assert (float(total), float(logs["ce"])) == (2.0, 1.0)


def test_progress_counts_steps() -> None:
    assert (Progress(3, 10).step, Progress(3, 10).steps) == (3, 10)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Progress(3, 10).step = 4  # type: ignore[misc]
