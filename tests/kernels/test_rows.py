"""Row work beyond the plain case, by every implementation: sparse teachers, and slices that are compiled."""

import pytest
import torch

from tests.kernels.device import DEVICE
from tutelage.kernels import dispatch, reference, rows
from tutelage.kernels.divergences import KINDS
from tutelage.kernels.linear_divergence import row_work
from tutelage.kernels.rows import TopK, Work

MIXES = {kind: entry.mix for kind, entry in KINDS.items()}


def logits(N=6, V=37, k=5, seed=0, dtype=torch.float64, temperature=1.0):
    """Student logits, the teacher's top k at the temperature, targets of which some are named and some are not."""
    generator = torch.Generator().manual_seed(seed)
    s, t = torch.randn(2, N, V, generator=generator, dtype=torch.float64) * 2
    top = (t / temperature).log_softmax(-1).topk(k)
    targets = torch.where(torch.arange(N) % 2 == 0, top.indices[:, 0], torch.randint(V, (N,), generator=generator))
    return s.to(DEVICE, dtype), TopK(top.indices.to(DEVICE), top.values.to(DEVICE, dtype)), targets.to(DEVICE)


def sums(impl, s, teacher, targets, knobs, **work):
    """(divergence, cross-entropy) and what the work leaves in the logits."""
    work = Work(**{"kind": "forward_kl", "vocab_size": s.shape[1], "tempered": True, "with_grad": True,
                   "by_temperature": False, "masked": False, **work})  # fmt: skip
    s, stat = s.clone(), torch.promote_types(s.dtype, torch.float32)
    found = row_work(impl)(s, teacher, targets, torch.tensor(knobs, dtype=stat, device=s.device), work)
    return found[:2], s


def specified(kind, s, teacher, targets, kd, ce, temperature, mix):
    s = s.double().requires_grad_()
    divergence = reference.sparse_divergence(kind, s, teacher.ids, teacher.log_probs.double(), temperature, mix).sum()
    cross_entropy = -s.log_softmax(-1).gather(1, targets[:, None]).sum()
    (kd * temperature**2 * divergence + ce * cross_entropy).backward()
    return torch.stack((divergence, cross_entropy)).detach(), s.grad


EVERY = pytest.mark.parametrize("impl", ["eager", "triton"])


@EVERY
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_a_sparse_teacher_is_its_top_k_and_one_bucket(impl, kind, temperature):
    s, teacher, targets = logits(temperature=temperature)
    truth = specified(kind, s, teacher, targets, 0.8, 0.2, temperature, MIXES[kind])
    knobs = [0.8, 0.2, temperature, MIXES[kind]]
    found = sums(impl, s, teacher, targets, knobs, kind=kind, tempered=temperature != 1)
    torch.testing.assert_close(found, truth, rtol=1e-9, atol=1e-11)


@EVERY
@pytest.mark.parametrize("k", [1, 36, 37])
def test_one_token_all_but_one_and_all(impl, k):
    s, teacher, targets = logits(k=k)
    found, grad = sums(impl, s, teacher, targets, [1.0, 0.0, 1.0, 0.0])
    if k == 37:
        t = torch.empty_like(s).scatter_(1, teacher.ids, teacher.log_probs)
        truth = reference.forward_kl(s, t).sum()
        slope = s.softmax(-1) - t.exp()
    else:
        (truth, _), slope = specified("forward_kl", s, teacher, targets, 1.0, 0.0, 1.0, 0.0)
    torch.testing.assert_close(found[0], truth, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(grad, slope, rtol=1e-7, atol=1e-12)


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_sparse_teacher_in_low_precision(impl, dtype):
    s, teacher, targets = logits(N=16, V=301, k=20, dtype=dtype)
    truth, slope = specified("forward_kl", s, teacher, targets, 0.8, 0.2, 1.0, 0.0)
    found, grad = sums(impl, s, teacher, targets, [0.8, 0.2, 1.0, 0.0])
    torch.testing.assert_close(found.double(), truth, rtol=1e-3, atol=1e-3)
    assert (grad.double() - slope).abs().max() <= (5e-4 if dtype == torch.float32 else 1e-3) * slope.abs().max()


@EVERY
def test_without_a_gradient_the_logits_stay_as_they_were(impl):
    s, teacher, targets = logits()
    expected, _ = sums(impl, s, teacher, targets, [0.8, 0.2, 2.0, 0.0])
    found, after = sums(impl, s, teacher, targets, [0.8, 0.2, 2.0, 0.0], with_grad=False)
    assert torch.equal(after, s)
    torch.testing.assert_close(found, expected)


@EVERY
def test_the_remainder_of_a_confident_pair_does_not_cancel(impl):
    """All but 1e-9 of both distributions is named: in fp32 one minus the named is noise, or less than nothing."""
    s = torch.full((1, 1000), -30.0, device=DEVICE)
    s[0, :2] = torch.tensor([1.0, 0.0])
    teacher = TopK(torch.tensor([[0, 1]], device=DEVICE), s[:, :2].log_softmax(-1))
    found, grad = sums(impl, s, teacher, torch.tensor([0], device=DEVICE), [1.0, 0.0, 1.0, 0.0])
    assert found[0].abs() < 1e-6
    assert grad.abs().max() < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_slices_are_the_plain_ones(kind):
    if lack := dispatch.lacks("compile", DEVICE):
        pytest.skip(f"needs {lack}")
    generator = torch.Generator().manual_seed(0)
    s, t = torch.randn(2, 37, 101, generator=generator).to(DEVICE)
    targets = torch.randint(101, (37,), generator=generator).to(DEVICE)
    knobs = [0.8, 0.2, 2.0, MIXES[kind]]
    plain, compiled = (sums(impl, s, t, targets, knobs, kind=kind) for impl in ("eager", "compile"))
    torch.testing.assert_close(compiled, plain, rtol=1e-5, atol=1e-6)


def test_more_rows_than_a_slice_and_a_shorter_last_one():
    s, _, targets = logits(N=21)
    t = torch.randn_like(s)
    work = Work("reverse_kl", 37, False, True, False, False)
    knobs = torch.tensor([0.8, 0.2, 1.0, 0.0], dtype=torch.float64, device=DEVICE)
    cut, whole = s.clone(), s.clone()
    torch.testing.assert_close(
        rows.eager(cut, t, targets, knobs, work, rows=4), rows.eager(whole, t, targets, knobs, work, rows=64)
    )
    torch.testing.assert_close(cut, whole)
