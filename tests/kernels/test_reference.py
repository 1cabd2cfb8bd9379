"""The specification itself, against formulas in plain Python."""

import math

import numpy as np
import pytest
import torch

from tutelage.kernels import reference


def probabilities(logits, temperature=1.0):
    """softmax of a list, one exponential at a time."""
    weights = [math.exp(x / temperature) for x in logits]
    return [w / math.fsum(weights) for w in weights]


def brute_force_kl(student, teacher, temperature=1.0):
    p, q = probabilities(teacher, temperature), probabilities(student, temperature)
    return math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 7.0])
def test_forward_kl_is_the_sum_of_p_log_p_over_q(temperature):
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 5, 23)) * 3
    ours = reference.forward_kl(torch.tensor(student), torch.tensor(teacher), temperature)
    expected = [brute_force_kl(s, t, temperature) for s, t in zip(student, teacher, strict=True)]
    assert ours.shape == (5,)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-12)


def test_forward_kl_by_hand():
    teacher, student = torch.tensor([[0.75, 0.25]]).double().log(), torch.tensor([[0.5, 0.5]]).double().log()
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert reference.forward_kl(student, teacher).item() == pytest.approx(expected, rel=1e-12)
    # The direction matters: the reverse is another number.
    assert reference.forward_kl(teacher, student).item() == pytest.approx(0.5 * math.log(4 / 3), rel=1e-12)


def test_forward_kl_is_zero_only_where_both_agree():
    logits = torch.randn(4, 9, dtype=torch.float64)
    assert reference.forward_kl(logits + 3, logits).abs().max() < 1e-14  # a shift changes no probability
    assert (reference.forward_kl(logits.flip(1), logits) > 0).all()


def test_forward_kl_of_a_masked_token_is_finite_and_ignores_it():
    student = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[0.3, -math.inf, 0.1]], dtype=torch.float64)
    value = reference.forward_kl(student, teacher)
    assert value.item() == pytest.approx(brute_force_kl([1.0, -2.0, 0.5], [0.3, -math.inf, 0.1]), rel=1e-12)
    value.sum().backward()
    expected = torch.softmax(student.detach(), -1) - torch.softmax(teacher, -1)
    torch.testing.assert_close(student.grad, expected)


@pytest.mark.parametrize(("scale", "cap"), [(1.0, None), (0.25, None), (1.0, 3.0), (2.0, 5.0)])
def test_teacher_logits_scale_bias_and_cap(scale, cap):
    rng = np.random.default_rng(1)
    hidden, head, bias = rng.normal(size=(4, 6)), rng.normal(size=(11, 6)), rng.normal(size=11)
    raw = scale * (hidden @ head.T + bias)
    expected = raw if cap is None else cap * np.tanh(raw / cap)
    ours = reference.teacher_logits(*map(torch.tensor, (hidden, head, bias)), scale=scale, cap=cap)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-12)


def test_linear_divergence_sums_weighted_terms_over_counted_rows():
    rng = np.random.default_rng(2)
    hidden, head = rng.normal(size=(5, 3)), rng.normal(size=(7, 3))
    t_hidden, t_head = rng.normal(size=(5, 4)), rng.normal(size=(7, 4))
    targets = [3, reference.IGNORE, 0, 6, reference.IGNORE]
    tau, kd, ce = 2.5, 0.7, 0.4
    kl = nll = 0.0
    for row, target in enumerate(targets):
        if target != reference.IGNORE:
            student, teacher = head @ hidden[row], t_head @ t_hidden[row]
            kl += brute_force_kl(student, teacher, tau)
            nll -= math.log(probabilities(student)[target])
    total, divergence, cross_entropy = reference.linear_divergence(
        *map(torch.tensor, (hidden, head, t_hidden, t_head, targets)), temperature=tau, kd_weight=kd, ce_weight=ce
    )
    assert divergence.item() == pytest.approx(kl, rel=1e-12)
    assert cross_entropy.item() == pytest.approx(nll, rel=1e-12)
    assert total.item() == pytest.approx(kd * tau**2 * kl + ce * nll, rel=1e-12)  # τ² on the divergence alone


def test_attention_by_explicit_loops():
    rng = np.random.default_rng(3)
    B, H, K, T, Dh = 2, 4, 2, 5, 3
    q, k, v = rng.normal(size=(B, H, T, Dh)), rng.normal(size=(B, K, T, Dh)), rng.normal(size=(B, K, T, Dh))
    segments = np.array([[0, 0, 1, 1, 1], [0, 1, 2, 2, 3]])
    expected = np.zeros_like(q)
    for b, h, t in np.ndindex(B, H, T):
        seen = [j for j in range(t + 1) if segments[b, j] == segments[b, t]]
        weights = probabilities([q[b, h, t] @ k[b, h // (H // K), j] / math.sqrt(Dh) for j in seen])
        expected[b, h, t] = sum(w * v[b, h // (H // K), j] for w, j in zip(weights, seen, strict=True))
    ours = reference.attention(*map(torch.tensor, (q, k, v, segments)))
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-11, atol=1e-13)


def test_attention_without_segments_is_one_document():
    q, k, v = torch.randn(3, 1, 2, 6, 4, dtype=torch.float64)
    one = torch.zeros(1, 6, dtype=torch.long)
    torch.testing.assert_close(reference.attention(q, k, v), reference.attention(q, k, v, one))
