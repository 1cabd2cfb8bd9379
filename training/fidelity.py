"""How well a model predicts held-out text, and how close it is to its teacher.

Shapes: B rows, T tokens, C tokens of a chunk, V vocabulary.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.kernels.linear_divergence import DenseTeacher
from tutelage.kernels.reference import IGNORE, teacher_logits
from tutelage.numbers import perplexity
from tutelage.student.decoder import Decoder
from tutelage.teacher.signal import Signal

CHUNK = 256  # tokens whose fp32 logits are held at a time
Scorer = Callable[[Batch], Signal]


@dataclass(frozen=True)
class Fidelity:
    """Means over held-out targets, in nats where they are entropies."""

    loss: float  # the model's cross-entropy
    perplexity: float
    reference_loss: float  # the teacher's
    kl: float  # KL(teacher‖model)
    agreement: float  # share of positions where both have the same likeliest token
    acceptance: float  # Σ min(p, q): the share of this model's drafts the teacher would accept

    def metrics(self) -> dict[str, float]:
        """Plain numbers by name."""
        return asdict(self)


def decoder_scorer(model: Decoder, precision: str = "bf16") -> Scorer:
    """The student as something that gives its factored distribution for a batch."""

    def score(batch: Batch) -> Signal:
        with torch.autocast(batch.tokens.device.type, torch.bfloat16, enabled=precision == "bf16"):
            hidden = model(batch.tokens, positions=batch.positions, segments=batch.segments).hidden
        head = model.head.bfloat16() if precision == "bf16" else model.head
        return Signal(DenseTeacher(hidden.to(head.dtype), head))

    return score


@torch.no_grad()
def fidelity(
    model: Scorer,
    reference: Scorer,
    batches: Iterable[Batch],
    vocab_size: int,
    total: Callable[[Tensor], Tensor] = lambda sums: sums,
) -> Fidelity:
    """Compares `model` with its teacher `reference` at every target of the batches.

    Where several processes have batches, `total` adds up the sums of all.
    """
    sums = torch.zeros(6, dtype=torch.float64)  # the last one counts targets
    for batch in batches:
        for targets, log_q, log_p in scored_chunks((model, reference), batch, vocab_size):
            sums[:5] += _compare(log_q, log_p, targets).cpu().double()  # not every device has fp64
            sums[5] += len(targets)
    *means, count = total(sums).tolist()
    loss, reference_loss, kl, agreement, acceptance = (mean / max(1, count) for mean in means)
    return Fidelity(loss, perplexity(loss), reference_loss, kl, agreement, acceptance)


@torch.no_grad()
def perplexity_loss(model: Scorer, batches: Iterable[Batch], vocab_size: int) -> float:
    """The model's cross-entropy in nats per target."""
    total, count = 0.0, 0
    for batch in batches:
        for targets, log_q in scored_chunks((model,), batch, vocab_size):
            total -= log_q.gather(1, targets[:, None]).cpu().double().sum().item()
            count += len(targets)
    return total / max(1, count)


def unigram_loss(counts: Tensor, batches: Iterable[Batch]) -> float:
    """Cross-entropy, in nats per target, of a model that knows how often each token occurs, `counts (V,)`."""
    log_q = (counts / counts.sum()).log()
    targets = torch.cat([batch.targets[batch.targets != IGNORE] for batch in batches]).to(counts.device)
    return -log_q[targets].mean().item()


def scored_chunks(scorers: Sequence[Scorer], batch: Batch, vocab_size: int) -> Iterator[tuple[Tensor, ...]]:
    """Some targets `(C,)` of the batch at a time, in order, and each scorer's fp32 log-probabilities there `(C, V)`."""
    keep = batch.targets != IGNORE
    targets = batch.targets[keep]  # (N,)
    signals = [scorer(batch).dense for scorer in scorers]
    hiddens = [signal.hidden[keep] for signal in signals]  # (N, D) each
    for start in range(0, len(targets), CHUNK):
        part = slice(start, start + CHUNK)
        rows = (_log_softmax(s, hidden[part], vocab_size) for s, hidden in zip(signals, hiddens, strict=True))
        yield targets[part], *rows


def kl_per_target(log_q: Tensor, log_p: Tensor) -> Tensor:
    """KL(p‖q) in nats, of log-probabilities `(C, V)` → `(C,)`."""
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), 0).sum(-1)


def _log_softmax(signal: DenseTeacher, hidden: Tensor, vocab_size: int) -> Tensor:
    """`hidden (C, D)` → fp32 log-probabilities of the true vocabulary `(C, V)`."""
    logits = teacher_logits(hidden, signal.head, signal.bias, signal.scale, signal.cap)
    return torch.log_softmax(logits[:, :vocab_size].float(), -1)


def _compare(log_q: Tensor, log_p: Tensor, targets: Tensor) -> Tensor:
    """Sums over a chunk, in the order of Fidelity: both losses, KL, agreement, acceptance."""
    p, q = log_p.exp(), log_q.exp()
    own, theirs = (-x.gather(1, targets[:, None]).sum() for x in (log_q, log_p))
    kl = kl_per_target(log_q, log_p).sum()
    agreement = (log_q.argmax(-1) == log_p.argmax(-1)).sum()
    return torch.stack((own, theirs, kl, agreement, torch.minimum(p, q).sum()))
