"""The specification: every op written plainly, in whatever precision its inputs have.

Kernels are judged against these functions in fp64. They hold the whole `(N, V)` and are meant to be read.

Shapes: N tokens, V vocabulary, D student width, E teacher width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = -100


def teacher_logits(
    hidden: Tensor, head: Tensor, bias: Tensor | None = None, scale: float = 1.0, cap: float | None = None
) -> Tensor:
    """`cap·tanh(x / cap)` of `x = scale·(hidden @ head.T + bias)`; `hidden (N, E)`, `head (V, E)` → `(N, V)`."""
    logits = F.linear(hidden, head, bias) * scale
    return logits if cap is None else cap * torch.tanh(logits / cap)


def forward_kl(student_logits: Tensor, logits_of_teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher‖student) = Σ p ln(p/q) per row, in nats; logits `(N, V)` → `(N,)`. arXiv:1503.02531."""
    log_p = F.log_softmax(logits_of_teacher / temperature, dim=-1)
    log_q = F.log_softmax(student_logits / temperature, dim=-1)
    return torch.where(log_p == -torch.inf, 0, log_p.exp() * (log_p - log_q)).sum(-1)


def divergence(
    kind: str, student_logits: Tensor, logits_of_teacher: Tensor, temperature: float = 1.0, mix: float = 0.0
) -> Tensor:
    """The divergence of this name per row, in nats, by its definition; logits `(N, V)` → `(N,)`.

    `mix` is β of `jsd` and λ of `skew_forward_kl`, `skew_reverse_kl` and `taid`; sources in `divergences.py`.
    """
    s, t = student_logits / temperature, logits_of_teacher / temperature
    p, q = t.softmax(-1), s.softmax(-1)

    def kl(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(a > 0, a * (a.log() - b.log()), 0).sum(-1)

    if kind == "taid":
        return kl(((1 - mix) * s.detach() + mix * t).softmax(-1), q)
    m, n = mix * p + (1 - mix) * q, (1 - mix) * p + mix * q
    return {
        "forward_kl": lambda: forward_kl(student_logits, logits_of_teacher, temperature),
        "reverse_kl": lambda: kl(q, p),
        "jsd": lambda: mix * kl(p, m) + (1 - mix) * kl(q, m),
        "skew_forward_kl": lambda: kl(p, m),
        "skew_reverse_kl": lambda: kl(q, n),
        "tvd": lambda: 0.5 * (p - q).abs().sum(-1),
    }[kind]()


def buckets(log_probs: Tensor, ids: Tensor) -> Tensor:
    """log-probabilities `(N, V)` → those of the tokens `ids (N, k)` and, last, of all others together, `(N, k + 1)`."""
    named = torch.zeros_like(log_probs, dtype=torch.bool).scatter(1, ids, True)
    rest = log_probs.exp().masked_fill(named, 0).sum(-1, keepdim=True)
    return torch.cat((log_probs.gather(1, ids), rest.log()), -1)


def sparse_divergence(
    kind: str, student_logits: Tensor, ids: Tensor, log_probs: Tensor, temperature: float = 1.0, mix: float = 0.0
) -> Tensor:
    """The divergence from a teacher of which `log_probs (N, k)` of `ids (N, k)` are known, at the temperature.

    What remains of it is one bucket, and so is the student's probability of all the tokens not named.
    """
    rest = (1 - log_probs.exp().sum(-1, keepdim=True)).log()
    student = buckets(F.log_softmax(student_logits / temperature, -1), ids)
    return divergence(kind, student, torch.cat((log_probs, rest), -1), mix=mix)


def linear_divergence(
    hidden: Tensor,
    head: Tensor,
    t_hidden: Tensor,
    t_head: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    kd_weight: float = 1.0,
    ce_weight: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """`kd_weight·τ²·KL + ce_weight·CE`, KL and CE, each summed over the rows whose target is not IGNORE."""
    keep = targets != IGNORE
    logits = F.linear(hidden[keep], head)  # (N, V)
    divergence = forward_kl(logits, teacher_logits(t_hidden[keep], t_head), temperature).sum()
    cross_entropy = F.cross_entropy(logits, targets[keep], reduction="sum")
    total = kd_weight * temperature**2 * divergence + ce_weight * cross_entropy
    return total, divergence, cross_entropy


def attention(q: Tensor, k: Tensor, v: Tensor, segments: Tensor | None = None) -> Tensor:
    """Causal softmax(q kᵀ / √Dh) v within segments; `q (B, H, T, Dh)`, `k, v (B, K, T, Dh)`, K divides H."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    T = q.shape[2]
    visible = torch.ones(T, T, dtype=torch.bool, device=q.device).tril()
    if segments is not None:
        visible = visible & (segments[:, None, :, None] == segments[:, None, None, :])
    scores = (q @ k.transpose(-1, -2)) / q.shape[-1] ** 0.5
    out: Tensor = scores.masked_fill(~visible, -torch.inf).softmax(-1) @ v
    return out
