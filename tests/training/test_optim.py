"""The optimizer and its schedule, against their formulas."""

import math
import re

import pytest
import torch
from torch import nn

from tutelage.training.config import OptimConfig
from tutelage.training.optim import learning_rate, make_optimizer, schedule_fault, set_learning_rate, warmup_steps

COSINE = OptimConfig(lr=0.1, warmup_steps=4, min_lr_fraction=0.1)
WSD = OptimConfig(lr=0.1, warmup_steps=4, schedule="wsd", decay_fraction=0.25, min_lr_fraction=0.1)


def test_matrices_decay_and_vectors_do_not() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3), nn.LayerNorm(3))
    frozen = nn.Parameter(torch.zeros(2, 2), requires_grad=False)
    model.register_parameter("frozen", frozen)
    optimizer = make_optimizer(model, OptimConfig(weight_decay=0.3, beta1=0.8, beta2=0.9))
    decayed, plain = optimizer.param_groups
    assert [tuple(p.shape) for p in decayed["params"]] == [(5, 4), (3, 4)]
    assert [tuple(p.shape) for p in plain["params"]] == [(3,), (3,), (3,)]
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.3, 0.0)
    assert decayed["betas"] == (0.8, 0.9)
    assert decayed["fused"]


def test_one_step_is_adamws_formula() -> None:
    model = nn.Linear(2, 2, bias=False)
    before = model.weight.detach().clone()
    optimizer = make_optimizer(model, OptimConfig(lr=0.5, weight_decay=0.1))
    model.weight.grad = torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    optimizer.step()
    expected = before * (1 - 0.5 * 0.1) - 0.5 * model.weight.grad.sign()  # the first step is the sign
    torch.testing.assert_close(model.weight.detach(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config", [COSINE, WSD])
def test_the_warm_up_is_linear_and_reaches_the_peak(config: OptimConfig) -> None:
    rates = [learning_rate(step, 100, config) for step in range(6)]
    assert rates[:4] == pytest.approx([0.025, 0.05, 0.075, 0.1])
    assert rates[4] == pytest.approx(0.1)


def test_cosine_falls_from_peak_to_floor() -> None:
    for step in range(4, 101):
        done = (step - 4) / 96
        wanted = 0.01 + 0.09 * (1 + math.cos(math.pi * done)) / 2
        assert learning_rate(step, 100, COSINE) == pytest.approx(wanted)
    assert learning_rate(52, 100, COSINE) == pytest.approx(0.055)
    assert learning_rate(100, 100, COSINE) == pytest.approx(0.01)
    assert learning_rate(200, 100, COSINE) == pytest.approx(0.01)


def test_wsd_is_stable_and_then_falls_in_a_line() -> None:
    assert all(learning_rate(step, 100, WSD) == pytest.approx(0.1) for step in range(4, 76))
    assert learning_rate(88, 100, WSD) == pytest.approx(0.01 + 0.09 * 12 / 25)
    assert learning_rate(99, 100, WSD) == pytest.approx(0.01 + 0.09 / 25)
    assert learning_rate(100, 100, WSD) == pytest.approx(0.01)


def test_short_runs_and_no_warm_up_have_rates_above_zero() -> None:
    for schedule in ("cosine", "wsd"):
        config = OptimConfig(lr=1.0, warmup_steps=0, schedule=schedule, decay_fraction=0.0)  # type: ignore[arg-type]
        assert learning_rate(0, 1, config) == pytest.approx(1.0)
        assert all(0 < learning_rate(step, 3, config) <= 1 for step in range(3))
    assert learning_rate(2, 3, OptimConfig(lr=1.0, warmup_steps=20)) == pytest.approx(3 / 20)


def test_every_group_gets_the_rate() -> None:
    optimizer = make_optimizer(nn.Linear(2, 2), OptimConfig())
    set_learning_rate(optimizer, 0.125)
    assert [group["lr"] for group in optimizer.param_groups] == [0.125, 0.125]


def test_the_warm_up_is_a_share_of_the_run_unless_steps_are_given() -> None:
    assert [warmup_steps(steps, OptimConfig()) for steps in (5, 100, 20_000)] == [0, 5, 1000]
    assert warmup_steps(5, OptimConfig(warmup_steps=20)) == 20
    assert learning_rate(0, 5, OptimConfig()) == OptimConfig().lr


@pytest.mark.parametrize(
    ("steps", "config", "odd"),
    [
        (5, OptimConfig(), None),
        (1, OptimConfig(), None),
        (5, OptimConfig(warmup_steps=20), "warmup_steps 20: the run of 5 steps ends in its warm-up"),
        (5, OptimConfig(warmup_steps=5), "warmup_steps 5: the run of 5 steps ends in its warm-up"),
        (5, OptimConfig(warmup_steps=4), None),
        (10, OptimConfig(warmup_fraction=1.0), "warmup_fraction 1: the run of 10 steps ends in its warm-up"),
        (10, OptimConfig(schedule="wsd"), None),
        (10, OptimConfig(schedule="wsd", warmup_steps=9), "warmup_steps 9 and --optim.decay_fraction 0.2 are 9 . 2"),
    ],
)
def test_a_schedule_without_a_peak_is_told(steps: int, config: OptimConfig, odd: str | None) -> None:
    fault = schedule_fault(steps, config)
    assert fault is None if odd is None else re.search(odd, fault or "")
