"""Each divergence's value and derivative by the student's logits, row by row, from the two distributions.

The general rule is g = Q·(f − ΣQf) with f = ∂D/∂Q. `mix` is the λ or β of those that compare with a mixture.

Shapes: R rows, V vocabulary.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Rows(NamedTuple):
    """Log-probabilities `(R, V)` of teacher (p) and student (q), and their exponentials."""

    log_p: Tensor
    log_q: Tensor
    p: Tensor
    q: Tensor


Found = tuple[Tensor, Tensor]
"""(value `(R, 1)` in nats, derivative by the student's logits `(R, V)`)."""


def forward_kl(rows: Rows, mix: float) -> Found:
    """Σ p ln(p/q). arXiv:1503.02531."""
    log_p, log_q, p, q = rows
    return _total(p * (log_p - log_q)), q - p


def reverse_kl(rows: Rows, mix: float) -> Found:
    """Σ q ln(q/p). arXiv:2306.08543."""
    log_p, log_q, _, q = rows
    gap = log_q - log_p
    value = _total(q * gap)
    return value, q * (gap - value)


def jsd(rows: Rows, mix: float) -> Found:
    """β KL(p‖m) + (1−β) KL(q‖m) with m = βp + (1−β)q. arXiv:2306.13649."""
    log_p, log_q, p, q = rows
    log_m = _log(mix * p + (1 - mix) * q)
    own = log_q - log_m
    mean = _total(q * own)
    return mix * _total(p * (log_p - log_m)) + (1 - mix) * mean, (1 - mix) * q * (own - mean)


def skew_forward_kl(rows: Rows, mix: float) -> Found:
    """KL(p‖m) with m = λp + (1−λ)q. arXiv:2402.03898."""
    log_p, _, p, q = rows
    m = mix * p + (1 - mix) * q
    ratio = p / m.clamp(min=_tiny(m))
    return _total(p * (log_p - _log(m))), (1 - mix) * q * (_total(q * ratio) - ratio)


def skew_reverse_kl(rows: Rows, mix: float) -> Found:
    """KL(q‖m) with m = (1−λ)p + λq. arXiv:2402.03898."""
    _, log_q, p, q = rows
    m = (1 - mix) * p + mix * q
    gap = log_q - _log(m)
    slope = gap - mix * q / m.clamp(min=_tiny(m))
    return _total(q * gap), q * (slope - _total(q * slope))


def tvd(rows: Rows, mix: float) -> Found:
    """½ Σ|p − q|, which is one minus the acceptance rate of speculative decoding."""
    gap = rows.q - rows.p
    sign = gap.sign()
    return 0.5 * _total(gap.abs()), 0.5 * rows.q * (sign - _total(rows.q * sign))


def taid(rows: Rows, mix: float) -> Found:
    """KL(u‖q) with u = softmax((1−λ)·student + λ·teacher), u without gradient. arXiv:2501.16937."""
    log_u = torch.log_softmax((1 - mix) * rows.log_q + mix * rows.log_p, -1)
    u = log_u.exp()
    return _total(u * (log_u - rows.log_q)), rows.q - u


class Kind(NamedTuple):
    """A divergence and what `mix` is where nobody says."""

    of: Callable[[Rows, float], Found]
    mix: float = 0.0


KINDS = {
    "forward_kl": Kind(forward_kl),
    "reverse_kl": Kind(reverse_kl),
    "jsd": Kind(jsd, 0.5),
    "skew_forward_kl": Kind(skew_forward_kl, 0.1),
    "skew_reverse_kl": Kind(skew_reverse_kl, 0.1),
    "tvd": Kind(tvd),
    "taid": Kind(taid, 0.4),
}


def _total(x: Tensor) -> Tensor:
    return x.sum(-1, keepdim=True)


def _log(m: Tensor) -> Tensor:
    return m.clamp(min=_tiny(m)).log()  # where both probabilities underflow, 0·ln 0 must be 0


def _tiny(m: Tensor) -> float:
    return float(torch.finfo(m.dtype).tiny)
