"""Every divergence: alone against autograd of its definition, and through the fused loss."""

import pytest
import torch

pytest.importorskip("hypothesis")
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.test_linear_divergence import compare, impl, make, run  # noqa: F401 (impl is a fixture)
from tutelage.kernels import reference
from tutelage.kernels.divergences import KINDS, between
from tutelage.kernels.linear_divergence import linear_divergence

EVERY = pytest.mark.parametrize("kind", KINDS)


def logits(seed, R=5, V=23, spread=3.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(2, R, V, generator=generator, dtype=torch.float64) * spread).to(dtype)


def found(kind, s, t, mix):
    return between(kind, t.log_softmax(-1), s.log_softmax(-1), mix)


@EVERY
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), mix=st.floats(0.02, 0.98), spread=st.floats(0.1, 6.0))
def test_value_and_derivative_are_those_of_the_definition(kind, seed, mix, spread):
    s, t = (x.requires_grad_() for x in logits(seed, spread=spread))
    truth = reference.divergence(kind, s, t, mix=mix)
    truth.sum().backward()
    value, slope, by_teacher = found(kind, s.detach(), t.detach(), mix)
    torch.testing.assert_close(value[:, 0], truth, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(slope, s.grad, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(by_teacher, t.grad, rtol=1e-9, atol=1e-12)


@EVERY
def test_equal_distributions_have_none_and_no_gradient(kind):
    s, _ = logits(0)
    value, slope, _ = found(kind, s, s, KINDS[kind].mix)
    assert value.abs().max() < 1e-13
    assert slope.abs().max() < 1e-13


@EVERY
def test_it_is_never_negative_and_its_derivative_sums_to_nothing(kind):
    value, slope, _ = found(kind, *logits(3), KINDS[kind].mix)
    assert (value > 0).all()
    assert slope.sum(-1).abs().max() < 1e-13


@EVERY
def test_probabilities_that_underflow_stay_finite(kind):
    s, t = logits(1, dtype=torch.float32, spread=200.0)
    value, slope, _ = found(kind, s, t, KINDS[kind].mix)
    assert value.isfinite().all()
    assert slope.isfinite().all()


@pytest.mark.parametrize(("mix", "other"), [(0.0, 0.0), (1.0, 0.0)])
def test_the_ends_of_jsd_are_zero_as_its_definition_has_them(mix, other):
    assert found("jsd", *logits(2), mix)[0].abs().max() == pytest.approx(other, abs=1e-12)


def test_the_ends_of_the_mixtures_are_the_plain_divergences():
    s, t = logits(4)
    for kind, mix, plain in (
        ("skew_forward_kl", 0.0, "forward_kl"), ("skew_reverse_kl", 0.0, "reverse_kl"), ("taid", 1.0, "forward_kl"),
    ):  # fmt: skip
        torch.testing.assert_close(found(kind, s, t, mix), found(plain, s, t, 0.0))


def test_tvd_is_one_minus_acceptance():
    s, t = logits(5)
    acceptance = torch.minimum(s.softmax(-1), t.softmax(-1)).sum(-1)
    torch.testing.assert_close(found("tvd", s, t, 0.0)[0][:, 0], 1 - acceptance)


@EVERY
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("options", [{"kd_weight": 0.8, "ce_weight": 0.2}, {"ce_weight": 0.0}, {"vocab_size": 90}])
def test_through_the_fused_loss_it_is_the_specified_one(kind, temperature, options):
    case = make(V=101)
    if "vocab_size" in options:
        case.targets.clamp_(max=options["vocab_size"] - 1)
    compare(case, kind=kind, temperature=temperature, rtol=1e-9, atol=1e-11, **options)


@EVERY
def test_a_mix_of_ones_own(kind):
    compare(make(), kind=kind, mix=0.7, rtol=1e-9, atol=1e-11)


@EVERY
def test_in_bf16_it_is_as_near_to_the_truth_as_the_definition_is(kind):
    """|truth − ours| ≤ |truth − definition in bf16| + tolerance."""
    case = make(N=16, V=301, D=32, E=24, ignored=0.0)
    truth, *_ = run(case, kind=kind)
    low = case.to(torch.bfloat16)
    ours, *_ = run(low, kind=kind)
    s, t = low.hidden @ low.head.T, low.t_hidden @ low.t_head.T
    eager = reference.divergence(kind, s, t, mix=KINDS[kind].mix).sum()
    error = abs(float(ours.divergence) - float(truth.divergence))
    assert error <= abs(float(eager) - float(truth.divergence)) + 1e-2 * abs(float(truth.divergence))


@pytest.mark.parametrize("mix", [-0.1, 1.5, float("nan")])
def test_a_mix_that_is_none_is_refused(mix):
    with pytest.raises(ValueError, match="mix must lie from 0 to 1"):
        linear_divergence(*make().args, kind="jsd", mix=mix)
