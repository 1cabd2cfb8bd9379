"""Each divergence D between a teacher p and a student q, term by term, with its derivatives by both.

With f = ∂D/∂q, the derivative by the student's logits is q·f − q·Σ(q·f); likewise for the teacher's. So a kind is a
function to three terms whose sums over the vocabulary are all that anybody needs: the value, q·∂D/∂q and p·∂D/∂p.
`mix` is the λ or β of those that compare with a mixture.

Shapes: R rows, V vocabulary (or the buckets of a sparse teacher).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Terms(NamedTuple):
    """Per token `(R, V)`: the value's term in nats, q·∂D/∂q and p·∂D/∂p (constants of a derivative may be missing)."""

    value: Tensor
    by_q: Tensor
    by_p: Tensor


Function = Callable[[Tensor, Tensor, Tensor | float], Terms]
"""From log p, log q `(R, V)` and mix."""


def forward_kl(log_p: Tensor, log_q: Tensor, mix: Tensor | float) -> Terms:
    """Σ p ln(p/q). arXiv:1503.02531."""
    p = log_p.exp()
    gap = p * (log_p - log_q)
    return Terms(gap, -p, gap)


def reverse_kl(log_p: Tensor, log_q: Tensor, mix: Tensor | float) -> Terms:
    """Σ q ln(q/p). arXiv:2306.08543."""
    return _mirrored(forward_kl(log_q, log_p, mix))


def jsd(log_p: Tensor, log_q: Tensor, mix: Tensor | float) -> Terms:
    """β KL(p‖m) + (1−β) KL(q‖m) with m = βp + (1−β)q. arXiv:2306.13649."""
    p, q = log_p.exp(), log_q.exp()
    log_m = _log(mix * p + (1 - mix) * q)
    of_p, of_q = mix * p * (log_p - log_m), (1 - mix) * q * (log_q - log_m)
    return Terms(of_p + of_q, of_q, of_p)


def skew_forward_kl(log_p: Tensor, log_q: Tensor, mix: Tensor | float) -> Terms:
    """KL(p‖m) with m = λp + (1−λ)q. arXiv:2402.03898."""
    p, q = log_p.exp(), log_q.exp()
    m = mix * p + (1 - mix) * q
    gap, share = p * (log_p - _log(m)), p / m.clamp(min=_tiny(m))
    return Terms(gap, -(1 - mix) * q * share, gap - mix * p * share)


def skew_reverse_kl(log_p: Tensor, log_q: Tensor, mix: Tensor | float) -> Terms:
    """KL(q‖m) with m = (1−λ)p + λq. arXiv:2402.03898."""
    return _mirrored(skew_forward_kl(log_q, log_p, mix))


def tvd(log_p: Tensor, log_q: Tensor, mix: Tensor | float) -> Terms:
    """½ Σ|p − q|, which is one minus the acceptance rate of speculative decoding."""
    p, q = log_p.exp(), log_q.exp()
    sign = (q - p).sign()
    return Terms(0.5 * (q - p).abs(), 0.5 * q * sign, -0.5 * p * sign)


class Kind(NamedTuple):
    """A divergence and what `mix` is where nobody says."""

    terms: Function
    mix: float = 0.0


KINDS = {
    "forward_kl": Kind(forward_kl),
    "reverse_kl": Kind(reverse_kl),
    "jsd": Kind(jsd, 0.5),
    "skew_forward_kl": Kind(skew_forward_kl, 0.1),
    "skew_reverse_kl": Kind(skew_reverse_kl, 0.1),
    "tvd": Kind(tvd),
    "taid": Kind(forward_kl, 0.4),  # of the interpolated teacher, see `between`
}


class Slopes(NamedTuple):
    """Value `(R, 1)` in nats, and its derivatives by the student's and the teacher's log-probabilities `(R, V)`."""

    value: Tensor
    by_student: Tensor
    by_teacher: Tensor


def between(kind: str, log_p: Tensor, log_q: Tensor, mix: Tensor | float) -> Slopes:
    """The divergence of this name from log p to log q `(R, V)`.

    `taid` is KL(u‖q) with u = softmax((1−λ)·student + λ·teacher), the student in u without gradient. arXiv:2501.16937.
    """
    if kind == "taid":
        log_p = torch.log_softmax((1 - mix) * log_q + mix * log_p, -1)
    value, by_q, by_p = KINDS[kind].terms(log_p, log_q, mix)
    by_teacher = by_p - log_p.exp() * by_p.sum(-1, keepdim=True)
    return Slopes(
        value.sum(-1, keepdim=True),
        by_q - log_q.exp() * by_q.sum(-1, keepdim=True),
        mix * by_teacher if kind == "taid" else by_teacher,
    )


def _mirrored(terms: Terms) -> Terms:
    """D(p, q) from the terms of D(q, p)."""
    return Terms(terms.value, terms.by_p, terms.by_q)


def _log(m: Tensor) -> Tensor:
    return m.clamp(min=_tiny(m)).log()  # where both probabilities underflow, 0·ln 0 must be 0


def _tiny(m: Tensor) -> float:
    return float(torch.finfo(m.dtype).tiny)
