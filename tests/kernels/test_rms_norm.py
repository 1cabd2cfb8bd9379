import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.device import DEVICE, normal
from tutelage.kernels.rms_norm import rms_norm


def composite(x, weight, eps):
    return weight * F.rms_norm(x.float(), weight.shape, eps=eps).to(x.dtype)


def run(norm, x, weight, grad, eps=1e-5):
    """Value and both gradients, in fp64."""
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    y = norm(x, weight, eps)
    return [part.detach().double() for part in (y, *torch.autograd.grad(y, (x, weight), grad.to(y.dtype)))]


@given(
    leading=st.sampled_from([(1,), (7,), (2, 3), (2, 1, 5)]),
    width=st.integers(1, 70),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
)
@settings(max_examples=40, deadline=None)
def test_value_and_gradients_are_those_of_fp64(leading, width, scale):
    x, grad = (normal(*leading, width, seed=seed, dtype=torch.float32) for seed in (0, 1))
    x, weight = x * scale, normal(width, seed=2, dtype=torch.float32)
    exact = run(lambda x, w, eps: F.rms_norm(x, w.shape, w, eps), x.double(), weight.double(), grad.double())
    spread = float((grad * weight).abs().max() / x.square().mean(-1).add(1e-5).sqrt().min())  # what cancels in d_x
    for ours, true in zip(run(rms_norm, x, weight, grad), exact, strict=True):
        torch.testing.assert_close(ours, true, rtol=1e-4, atol=1e-5 * float(true.abs().max()) + 1e-6 * spread)


@pytest.mark.parametrize("weight_dtype", [torch.bfloat16, torch.float32])
def test_low_precision_is_no_worse_than_the_composite(weight_dtype):
    x, grad = (normal(64, 96, seed=seed, dtype=torch.bfloat16) for seed in (0, 1))
    weight = normal(96, seed=2, dtype=weight_dtype)
    exact = run(lambda x, w, eps: F.rms_norm(x, w.shape, w, eps), x.double(), weight.double(), grad.double())
    ours, theirs = run(rms_norm, x, weight, grad), run(composite, x, weight, grad)
    for our, their, true in zip(ours, theirs, exact, strict=True):
        assert (our - true).abs().max() <= 1.1 * (their - true).abs().max() + 1e-6


def test_gradients_are_those_of_its_value():
    if DEVICE == "cuda":
        pytest.skip("the composite computes in fp32")
    x, weight = normal(3, 5).requires_grad_(), normal(5, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, w: rms_norm(x, w, 0.1), (x, weight))


def test_dtypes_and_a_row_of_zeros():
    for x_dtype, weight_dtype in ((torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)):
        x = torch.zeros(2, 8, dtype=x_dtype, device=DEVICE, requires_grad=True)
        weight = torch.ones(8, dtype=weight_dtype, device=DEVICE, requires_grad=True)
        y = rms_norm(x, weight, 1e-6)
        y.sum().backward()
        assert y.dtype == torch.promote_types(x_dtype, weight_dtype)
        assert (x.grad.dtype, weight.grad.dtype) == (x_dtype, weight_dtype)
        assert not y.any()
        assert torch.isfinite(x.grad).all()


def test_a_view_that_is_not_contiguous():
    x, ones = normal(4, 6, 5, dtype=torch.float32).transpose(1, 2), torch.ones(6, device=DEVICE)
    torch.testing.assert_close(rms_norm(x, ones, 1e-5), F.rms_norm(x.contiguous(), (6,), eps=1e-5))
    grad = normal(4, 5, 6, seed=1, dtype=torch.float32).transpose(0, 1).contiguous().transpose(0, 1)
    for ours, theirs in zip(run(rms_norm, x, ones, grad), run(composite, x, ones, grad), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
