"""The fused loss against torch's own functions."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tutelage.data.batch import Batch
from tutelage.kernels.divergences import KINDS
from tutelage.kernels.linear_divergence import DenseTeacher
from tutelage.kernels.reference import divergence, teacher_logits
from tutelage.losses.config import LossConfig
from tutelage.losses.divergence import Divergence
from tutelage.losses.term import Progress
from tutelage.student.decoder import StudentOutput
from tutelage.teacher.signal import Signal

V = 50
START = Progress(0, 1)


def expected(
    output: StudentOutput, head: torch.Tensor, signal: Signal, batch: Batch, config: LossConfig
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Written with what torch ships: total, CE and KL(teacher‖student), sums over targets."""
    keep = batch.targets != -100
    logits = (output.hidden @ head[:V].T)[keep]
    teacher = (signal.dense.hidden @ signal.dense.head[:V].T)[keep]
    if signal.dense.bias is not None:
        teacher = teacher + signal.dense.bias
    teacher = teacher * signal.dense.scale
    if signal.dense.cap is not None:
        teacher = signal.dense.cap * torch.tanh(teacher / signal.dense.cap)
    tau = config.temperature
    kl = F.kl_div((logits / tau).log_softmax(-1), (teacher / tau).softmax(-1), reduction="sum")
    ce = F.cross_entropy(logits, batch.targets[keep], reduction="sum")
    return config.ce_weight * ce + config.kd_weight * tau**2 * kl, ce, kl


@pytest.mark.parametrize(
    "config",
    [
        LossConfig(),
        LossConfig(ce_weight=1.5, kd_weight=0.25, temperature=3.0),
        LossConfig(ce_weight=0, kd_weight=1, temperature=0.5),
        LossConfig(ce_weight=1, kd_weight=0),
    ],
)
def test_value_gradient_and_logs(
    config: LossConfig, output: StudentOutput, head: torch.Tensor, signal: Signal, batch: Batch
) -> None:
    term = Divergence(config, V)(output, head, signal, batch, START)
    total, ce, kl = expected(output, head, signal, batch, config)
    torch.testing.assert_close(term.total.double(), total, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(term.logs["ce"].double(), ce, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(term.logs["kl"].double(), kl, rtol=1e-5, atol=1e-5)
    assert not any(value.requires_grad for value in term.logs.values())
    ours = torch.autograd.grad(term.total, (output.hidden, head))
    theirs = torch.autograd.grad(total, (output.hidden, head))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert not ours[1][V:].any()  # padding learns nothing


def test_scale_cap_and_bias_of_the_teacher_count(
    output: StudentOutput, head: torch.Tensor, signal: Signal, batch: Batch
) -> None:
    config = LossConfig(ce_weight=0, kd_weight=1)
    bias = torch.linspace(-1, 1, V, dtype=torch.float64)
    odd = Signal(DenseTeacher(signal.dense.hidden, signal.dense.head, bias=bias, scale=0.5, cap=1.5))
    term = Divergence(config, V)(output, head, odd, batch, START)
    _, _, kl = expected(output, head, odd, batch, config)
    torch.testing.assert_close(term.logs["kl"].double(), kl, rtol=1e-5, atol=1e-5)
    plain = expected(output, head, signal, batch, config)[2]
    assert (kl - plain).abs() > 0.1


def test_without_a_teacher_the_cross_entropy_remains(
    output: StudentOutput, head: torch.Tensor, signal: Signal, batch: Batch
) -> None:
    config = LossConfig(ce_weight=0.5, kd_weight=0)
    loss = Divergence(config, V)
    assert loss.needs == frozenset()
    term = loss(output, head, None, batch, START)
    _, ce, _ = expected(output, head, signal, batch, config)
    torch.testing.assert_close(term.total.double(), 0.5 * ce, rtol=1e-5, atol=1e-5)
    assert float(term.logs["kl"]) == 0


def test_it_needs_the_full_distribution_and_counts_targets(batch: Batch) -> None:
    loss = Divergence(LossConfig(), V)
    assert loss.needs == {"full"}
    assert loss.count(batch) == int((batch.targets >= 0).sum())
    assert 0 < loss.count(batch) < batch.targets.numel()


@pytest.mark.parametrize("mix", [None, 0.3])
@pytest.mark.parametrize("kind", ["reverse_kl", "jsd", "skew_forward_kl", "skew_reverse_kl", "tvd"])
def test_every_divergence_is_the_defined_one_and_logged_under_its_name(
    kind: Any, mix: float | None, output: StudentOutput, head: torch.Tensor, signal: Signal, batch: Batch
) -> None:
    config = LossConfig(divergence=kind, mix=mix, ce_weight=0, kd_weight=1)
    term = Divergence(config, V)(output, head, signal, batch, START)
    keep = batch.targets != -100
    logits = (output.hidden @ head[:V].T)[keep]
    teacher = teacher_logits(
        signal.dense.hidden[keep], signal.dense.head[:V], signal.dense.bias, signal.dense.scale, signal.dense.cap
    )
    defined = divergence(kind, logits, teacher, mix=KINDS[kind].mix if mix is None else mix).sum()
    torch.testing.assert_close(term.logs[kind].double(), defined, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(term.total.double(), defined, rtol=1e-4, atol=1e-5)
    ours, theirs = (torch.autograd.grad(value, head)[0] for value in (term.total, defined))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
