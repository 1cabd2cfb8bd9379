"""The loss of logits that exist, against the specification."""

import pytest
import torch

from tests.kernels.device import DEVICE
from tests.kernels.test_rows import MIXES, logits, specified
from tutelage.kernels import dispatch, reference
from tutelage.kernels.divergences import KINDS
from tutelage.kernels.logit_divergence import logit_divergence
from tutelage.kernels.reference import IGNORE
from tutelage.kernels.rows import TopK

MIX = {"temperature": 2.0, "kd_weight": 0.8, "ce_weight": 0.2}


@pytest.fixture(params=["eager", "triton"], autouse=True)
def impl(request):
    dispatch.use(request.param, DEVICE)
    yield request.param
    dispatch.use("auto", DEVICE)


def dense(N=7, V=101, seed=0):
    generator = torch.Generator().manual_seed(seed)
    s, t = (torch.randn(2, N, V, generator=generator, dtype=torch.float64) * 2).to(DEVICE)
    targets = torch.randint(V, (N,), generator=generator)
    targets[2] = IGNORE
    return s.requires_grad_(), t, targets.to(DEVICE)


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_specification(kind):
    s, t, targets = dense()
    out = logit_divergence(s, t, targets, kind=kind, **MIX)
    out.total.backward()
    keep = targets != IGNORE
    z = s.detach()[keep].requires_grad_()
    divergence = reference.divergence(kind, z, t[keep], 2.0, MIXES[kind]).sum()
    cross_entropy = -z.log_softmax(-1).gather(1, targets[keep, None]).sum()
    (0.8 * 4 * divergence + 0.2 * cross_entropy).backward()
    torch.testing.assert_close((out.divergence, out.cross_entropy), (divergence.detach(), cross_entropy.detach()))
    torch.testing.assert_close(s.grad[keep], z.grad)
    assert torch.count_nonzero(s.grad[~keep]) == 0
    assert out.count == keep.sum()


def test_a_sparse_teacher():
    s, teacher, targets = logits(temperature=2.0)
    (divergence, cross_entropy), slope = specified("forward_kl", s, teacher, targets, 0.8, 0.2, 2.0, 0.0)
    s.requires_grad_()
    out = logit_divergence(s, teacher, targets, **MIX)
    out.total.backward()
    torch.testing.assert_close((out.divergence, out.cross_entropy), (divergence, cross_entropy))
    torch.testing.assert_close(s.grad, slope)


def test_inputs_are_left_as_they_were():
    s, t, targets = dense()
    before = s.detach().clone(), t.clone()
    (logit_divergence(s, t, targets, **MIX).total * 3).backward()
    assert torch.equal(s, before[0])
    assert torch.equal(t, before[1])
    with torch.no_grad():
        one = TopK(torch.zeros(7, 1, dtype=torch.long, device=DEVICE), torch.full((7, 1), -1.0, device=DEVICE))
        logit_divergence(s, one, targets)
    assert torch.equal(s, before[0])


def test_masked_tokens_of_the_teacher():
    s, t, targets = dense()
    t[:, ::3] = -torch.inf
    out = logit_divergence(s, t, targets)
    out.total.backward()
    keep = targets != IGNORE
    torch.testing.assert_close(out.total, reference.forward_kl(s[keep], t[keep]).sum())
    assert s.grad.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_masked_in_both_and_rows_masked_whole_stay_finite(kind):
    s, t, targets = dense()
    s, t = s.detach().clone(), t.clone()
    s[:, ::3] = t[:, ::3] = -torch.inf
    s[4], t[5] = -torch.inf, -torch.inf
    s[6] = t[6] = -torch.inf
    targets.clamp_(min=0)
    out = logit_divergence(s.requires_grad_(), t, targets, kind=kind, **MIX)
    out.total.backward()
    assert out.total.isfinite()
    assert s.grad.isfinite().all()


def test_tokens_masked_in_both_count_for_nothing():
    s, t, targets = dense()
    s, t = s.detach().clone(), t.clone()
    keep = torch.arange(101, device=DEVICE) % 3 > 0
    targets = torch.where(targets >= 0, targets // 3 * 3 % 99 + 1, targets)
    narrow = logit_divergence(s[:, keep], t[:, keep], torch.where(targets >= 0, targets // 3 * 2, targets), **MIX)
    s[:, ~keep] = t[:, ~keep] = -torch.inf
    masked = logit_divergence(s, t, targets, **MIX)
    torch.testing.assert_close((masked.divergence, masked.cross_entropy), (narrow.divergence, narrow.cross_entropy))


def test_without_a_teacher_it_is_the_cross_entropy():
    s, _, targets = dense()
    out = logit_divergence(s, None, targets, kd_weight=0.0, ce_weight=1.0)
    out.total.backward()
    z = s.detach().requires_grad_()
    truth = torch.nn.functional.cross_entropy(z, targets, ignore_index=IGNORE, reduction="sum")
    truth.backward()
    torch.testing.assert_close((out.total.detach(), s.grad), (truth.detach(), z.grad))


def test_gradcheck():
    s, t, targets = dense(N=3, V=4)
    temperature = torch.tensor(1.5, dtype=torch.float64, device=DEVICE, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda z, tau: logit_divergence(z, t, targets, kind="jsd", temperature=tau, ce_weight=0.3).total,
        (s, temperature),
    )


@pytest.mark.parametrize("with_grad", [True, False])
def test_opcheck(impl, with_grad):
    s, t, targets = dense(N=4, V=9)
    knobs = torch.tensor([0.8, 0.2, 2.0, 0.5], dtype=torch.float64, device=DEVICE, requires_grad=with_grad)
    torch.library.opcheck(
        torch.ops.tutelage.logit_divergence.default,
        (s if with_grad else s.detach(), targets, knobs, t, None, None, "jsd", True, with_grad, with_grad, True, impl),
    )


def test_inside_a_compiled_function_it_is_one_op():
    torch._dynamo.reset()
    s, t, targets = dense()
    total = torch.compile(lambda *args: logit_divergence(*args, **MIX).total, fullgraph=True, backend="aot_eager")
    total(s, t, targets).backward()
    z = s.detach().requires_grad_()
    logit_divergence(z, t, targets, **MIX).total.backward()
    torch.testing.assert_close(s.grad, z.grad)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"logits": torch.zeros(3, 4, 5)}, ["logits (3, 4, 5)"]),
        ({"logits": torch.zeros(7, 0), "teacher": None}, ["logits (7, 0)"]),
        ({"targets": torch.zeros(6, dtype=torch.long)}, ["targets (6,)", "logits (7, 101)"]),
        ({"teacher": torch.zeros(7, 100)}, ["teacher (7, 100)", "logits (7, 101)"]),
    ],
)
def test_bad_input_is_refused_with_its_shapes(change, named):
    s, t, targets = dense()
    change = {name: None if x is None else x.to(DEVICE) for name, x in change.items()}
    with pytest.raises(ValueError) as error:  # noqa: PT011
        logit_divergence(**{"logits": s, "teacher": t, "targets": targets, **change})
    assert all(part in str(error.value) for part in named)


def test_nan_in_a_teacher_row_is_refused_by_row():
    s, t, targets = dense()
    t[2, 0] = torch.nan  # ignored
    logit_divergence(s, t, targets, check_values=True)
    t[5, 3] = torch.nan
    with pytest.raises(ValueError, match="teacher's logits hold NaN or inf, in row 5 of the batch"):
        logit_divergence(s, t, targets, check_values=True)
