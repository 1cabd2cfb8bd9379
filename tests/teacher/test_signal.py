"""A signal's convention: logits are cap(scale·(hidden @ head.T + bias))."""

import dataclasses

import pytest
import torch

from tutelage.kernels.linear_divergence import DenseTeacher
from tutelage.kernels.reference import teacher_logits
from tutelage.teacher.signal import Signal, TeacherSpec


def test_the_logits_of_a_signal() -> None:
    torch.manual_seed(0)
    hidden, head, bias = torch.randn(1, 3, 4), torch.randn(5, 4), torch.randn(5)
    signal = Signal(DenseTeacher(hidden, head, bias, scale=0.5, cap=2.0))
    logits = teacher_logits(*signal.dense)
    # Compared in fp64, written out by hand.
    raw = 0.5 * (torch.einsum("btd,vd->btv", hidden.double(), head.double()) + bias)
    torch.testing.assert_close(logits.double(), 2 * torch.tanh(raw / 2), rtol=1e-5, atol=1e-6)


def test_the_plain_signal_has_nothing_special() -> None:
    signal = Signal(DenseTeacher(torch.zeros(1, 1, 2), torch.zeros(3, 2)))
    assert (*signal.dense[2:], signal.taps) == (None, 1.0, None, ())


def test_a_spec_is_a_record() -> None:
    spec = TeacherSpec("n", "s", None, "nf4", 1, 2, 3, 4, "f")
    assert dataclasses.asdict(spec)["quantisation"] == "nf4"
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.name = "other"  # type: ignore[misc]
