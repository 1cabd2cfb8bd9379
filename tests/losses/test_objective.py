"""The sum of losses, divided once by the counts of the whole step."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from tutelage.data.batch import Batch
from tutelage.errors import UserError
from tutelage.kernels.linear_divergence import DenseTeacher
from tutelage.losses import objective as module
from tutelage.losses.config import LossConfig
from tutelage.losses.divergence import Divergence
from tutelage.losses.objective import LOSSES, Objective
from tutelage.losses.term import LossTerm, Progress
from tutelage.student.decoder import StudentOutput
from tutelage.teacher.signal import Signal

V = 50
START = Progress(0, 1)


class Length(nn.Module):
    """A second loss: the mean square of the hidden states, per row, with a learned weight."""

    needs = frozenset({"taps"})

    def __init__(self, config: LossConfig, vocab_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(3.0))

    def count(self, batch: Batch) -> int:
        return len(batch.tokens)

    def forward(self, output: StudentOutput, head: Any, signal: Any, batch: Batch, progress: Progress) -> LossTerm:
        square = output.hidden.square().mean((1, 2)).sum()
        return LossTerm(self.weight * square, {"length": square.detach()})


def test_the_loss_is_the_sum_over_the_count(
    output: StudentOutput, head: torch.Tensor, signal: Signal, batch: Batch
) -> None:
    config = LossConfig()
    objective = Objective(config, V)
    loss, logs = objective(output, head, signal, batch, objective.counts(batch), START)
    term = Divergence(config, V)(output, head, signal, batch, START)
    torch.testing.assert_close(loss, term.total / batch.count, check_dtype=False)
    torch.testing.assert_close(logs["ce"], term.logs["ce"] / batch.count, check_dtype=False)
    assert float(logs["loss"]) == float(loss.detach())
    mixed = config.ce_weight * logs["ce"] + config.kd_weight * config.temperature**2 * logs["kl"]
    assert float(mixed) == pytest.approx(float(loss.detach()), rel=1e-5)


@pytest.mark.parametrize("pieces", [2, 3, 5])
def test_micro_batches_sum_to_the_same_loss_and_gradient(
    pieces: int, output: StudentOutput, head: torch.Tensor, signal: Signal, batch: Batch
) -> None:
    objective = Objective(LossConfig(temperature=2.0), V)
    counts = objective.counts(batch)
    whole, logs = objective(output, head, signal, batch, counts, START)
    wanted = torch.autograd.grad(whole, (output.hidden, head))
    sums: dict[str, Any] = {}
    got = [torch.zeros_like(gradient) for gradient in wanted]
    offset = 0
    for piece in batch.split(pieces):
        rows = slice(offset, offset + len(piece.tokens))
        offset = rows.stop
        part = StudentOutput(output.hidden[rows])
        loss, found = objective(
            part, head, Signal(DenseTeacher(signal.dense.hidden[rows], signal.dense.head)), piece, counts, START
        )
        for total, gradient in zip(got, torch.autograd.grad(loss, (output.hidden, head)), strict=True):
            total += gradient
        sums = {name: value + sums.get(name, 0) for name, value in found.items()}
    assert offset == 5
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)
    for name, value in logs.items():
        torch.testing.assert_close(sums[name], value, rtol=1e-5, atol=1e-6)


def test_two_losses_have_their_own_counts_and_state(
    monkeypatch: pytest.MonkeyPatch, output: StudentOutput, head: torch.Tensor, signal: Signal, batch: Batch
) -> None:
    monkeypatch.setitem(module.LOSSES, "length", Length)
    objective = Objective(LossConfig(terms="divergence, length"), V)
    assert objective.needs == {"full", "taps"}
    counts = objective.counts(batch)
    assert counts["length"] == 5
    loss, logs = objective(output, head, signal, batch, counts, START)
    alone, _ = Objective(LossConfig(), V)(output, head, signal, batch, counts, START)
    length = output.hidden.square().mean((1, 2)).sum() / 5
    assert float(loss.detach()) == pytest.approx(float((alone + 3 * length).detach()), rel=1e-6)
    assert set(logs) == {"loss", "ce", "kl", "length"}
    assert [p.shape for p in objective.parameters()] == [torch.Size([])]


def test_a_step_without_targets_does_not_divide_by_zero(batch: Batch) -> None:
    empty = Batch(batch.tokens, torch.full_like(batch.targets, -100), batch.segments, batch.positions, batch.keys)
    assert [*Objective(LossConfig(), V).counts(empty).values()] == [1]


def test_an_unknown_loss_gets_the_nearest() -> None:
    with pytest.raises(UserError, match=r"divergenc'.*did you mean 'divergence'"):
        Objective(LossConfig(terms="divergenc"), V)
    assert "divergence" in LOSSES


def test_no_weight_at_all_is_refused() -> None:
    with pytest.raises(UserError, match=r"ce_weight.*kd_weight"):
        Objective(LossConfig(ce_weight=0, kd_weight=0), V)


def test_a_teacher_that_lacks_what_a_loss_needs_is_refused_by_name() -> None:
    teacher: Any = SimpleNamespace(spec=SimpleNamespace(name="sparse"), provides=frozenset({"topk"}))
    with pytest.raises(UserError, match=r"sparse.*full"):
        Objective(LossConfig(), V).check(teacher)
    Objective(LossConfig(kd_weight=0), V).check(teacher)
