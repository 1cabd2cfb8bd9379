"""Where a student is close to its teacher and where it is not: fidelity in depth.

Shapes: B rows, T tokens, N targets of all batches, C of a chunk, V vocabulary; 2 stands for student and teacher.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from heapq import nlargest
from typing import Any

import torch
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.data.tokenizer import Tokenizer
from tutelage.errors import UserError
from tutelage.evaluation.token_classes import CLASSES, bytes_of, token_classes
from tutelage.kernels.reference import IGNORE
from tutelage.training.fidelity import Scorer, kl_per_target, scored_chunks

BINS = 10  # of confidence
FIRST_BUCKET = 8  # positions; the next bucket has as many, and each one after it twice as many
PIECES = 10  # shown of those where the student differs most
MIN_TARGETS = 16  # of a piece that is shown
CONTEXT = 80  # characters


@dataclass(frozen=True)
class Bin:
    """Targets at which a model's likeliest token has about the same probability; means are 0 where there are none."""

    count: int
    confidence: float  # mean probability of the likeliest token
    accuracy: float  # how often it is the target


@dataclass(frozen=True)
class Calibration:
    """Whether a model is right as often as it believes; `bins[i]` holds confidences from i / 10 to (i + 1) / 10."""

    bins: tuple[Bin, ...]
    error: float  # expected calibration error: mean of |accuracy − confidence| over targets. arXiv:1706.04599 eq. 3


@dataclass(frozen=True)
class Slice:
    """Targets of one kind; means are 0 where there are none."""

    name: str
    share: float  # of all targets
    count: int
    agreement: float  # share where both models have the same likeliest token
    kl: float  # mean KL(teacher‖student), nats


@dataclass(frozen=True)
class Guess:
    """A model's likeliest token."""

    text: str
    probability: float


@dataclass(frozen=True)
class Piece:
    """The part of a document that lies in one row, and its target with the highest KL(teacher‖student)."""

    kl: float  # mean, nats/token
    count: int  # targets
    peak_kl: float  # nats
    context: str  # up to 80 characters before that target
    target: str
    student: Guess
    teacher: Guess


@dataclass(frozen=True)
class Closeness:
    """A student's fidelity, in the mean over all targets and in what the mean hides."""

    kl: float  # KL(teacher‖student), nats
    agreement: float  # share where both models have the same likeliest token
    acceptance: float  # Σ min(p, q): the share of the student's drafts that the teacher would accept
    student: Calibration
    teacher: Calibration
    by_position: tuple[Slice, ...]  # of the token that predicts, from the start of its piece: "0-7", "8-15", "16-31" …
    token_classes: tuple[Slice, ...]  # what the target is in Python, in the order of CLASSES
    furthest: tuple[Piece, ...]  # the ten with the highest mean KL, highest first

    def plain(self) -> dict[str, Any]:
        """The same as dictionaries, tuples, numbers and text, ready for JSON."""
        return asdict(self)


@torch.no_grad()
def closeness(
    model: Scorer, reference: Scorer, batches: Iterable[Batch], vocab_size: int, tokenizer: Tokenizer
) -> Closeness:
    """Compares `model` with its teacher `reference` at every target of packed batches, in one pass.

    Raises UserError if no batch has a target.
    """
    pieces: list[_Piece] = []
    chunks = []
    for batch in batches:
        pieces += _pieces(batch)
        for _, log_q, log_p in scored_chunks((model, reference), batch, vocab_size):
            chunks.append(_compare(log_q, log_p))
    if not chunks:
        raise UserError("no held-out target to compare at: give longer documents, or more of them")
    (kl, acceptance), confidence, likeliest = (torch.cat(parts, -1) for parts in zip(*chunks, strict=True))  # (…, N)
    places = [(piece, at) for piece in pieces for at in piece.positions]
    targets = torch.tensor([piece.ids[at + 1] for piece, at in places])  # (N,)
    agreement = (likeliest[0] == likeliest[1]).double()
    student, teacher = (_calibration(*pair) for pair in zip(confidence, likeliest == targets, strict=True))
    ranges, buckets = _position_buckets(torch.tensor([at for _, at in places]))
    return Closeness(
        kl.mean().item(),
        agreement.mean().item(),
        acceptance.mean().item(),
        student,
        teacher,
        _slices(ranges, buckets, agreement, kl),
        _slices(CLASSES, _classes(pieces, tokenizer), agreement, kl),
        _furthest(pieces, kl, confidence, likeliest, tokenizer),
    )


@dataclass(frozen=True)
class _Piece:
    """`ids` are its tokens and, if it goes on in the next row, one more; the target at position `t` is `ids[t + 1]`."""

    ids: list[int]
    positions: list[int]  # those with a target that counts


def _pieces(batch: Batch) -> Iterator[_Piece]:
    columns = [x.cpu() for x in (batch.tokens, batch.targets, batch.positions, batch.segments)]
    for *row, segments in zip(*columns, strict=True):  # (T,) each
        sizes = segments.unique_consecutive(return_counts=True)[1].tolist()
        for tokens, targets, positions in zip(*(x.split(sizes) for x in row), strict=True):
            counts = targets != IGNORE
            yield _Piece([*tokens.tolist(), *targets[-1:][counts[-1:]].tolist()], positions[counts].tolist())


def _compare(log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What is kept of a chunk, each `(2, C)`: KL and acceptance; probability and id of both models' likeliest token."""
    log_tops, ids = zip(*(x.max(-1) for x in (log_q, log_p)), strict=True)
    means = torch.stack((kl_per_target(log_q, log_p), torch.minimum(log_q, log_p).exp().sum(-1)))
    # not every device has fp64, and a diverged model, whose numbers may be NaN, believes in nothing
    confidence = torch.stack(log_tops).cpu().double().exp().nan_to_num(0.0)
    return means.cpu().double(), confidence, torch.stack(ids).cpu()


def _calibration(confidence: Tensor, right: Tensor) -> Calibration:
    labels = (confidence * BINS).long().clamp(max=BINS - 1)
    bins = tuple(Bin(*row) for row in _means(labels, BINS, confidence, right.double()))
    return Calibration(bins, sum(b.count * abs(b.accuracy - b.confidence) for b in bins) / len(labels))


def _slices(names: Sequence[str], labels: Tensor, agreement: Tensor, kl: Tensor) -> tuple[Slice, ...]:
    rows = zip(names, _means(labels, len(names), agreement, kl), strict=True)
    return tuple(Slice(name, count / len(labels), count, *means) for name, (count, *means) in rows)


def _means(labels: Tensor, size: int, *values: Tensor) -> list[tuple[Any, ...]]:
    """For each label below `size`: how many of `labels (N,)` it has, and the means of `values (N,)` there."""
    counts = torch.bincount(labels, minlength=size)
    means = [torch.bincount(labels, value, size) / counts.clamp(min=1) for value in values]
    return list(zip(counts.tolist(), *(mean.tolist() for mean in means), strict=True))


def _position_buckets(positions: Tensor) -> tuple[list[str], Tensor]:
    """The names of the buckets, and which one each of `positions (N,)` is in."""
    n_doublings = (int(positions.max()) // FIRST_BUCKET).bit_length()
    ends = [FIRST_BUCKET << n for n in range(n_doublings + 1)]
    names = [f"{start}-{end - 1}" for start, end in zip([0, *ends], ends, strict=False)]
    return names, torch.bucketize(positions, torch.tensor(ends), right=True)


def _classes(pieces: Iterable[_Piece], tokenizer: Tokenizer) -> Tensor:
    """(N,) the index in CLASSES of every target."""
    found = ((piece, token_classes(tokenizer, piece.ids)) for piece in pieces)
    return torch.tensor([CLASSES.index(classes[at + 1]) for piece, classes in found for at in piece.positions])


def _furthest(
    pieces: list[_Piece], kl: Tensor, confidence: Tensor, likeliest: Tensor, tokenizer: Tokenizer
) -> tuple[Piece, ...]:
    sizes = [len(piece.positions) for piece in pieces]
    by_piece = zip(pieces, *(torch.split(x, sizes, -1) for x in (kl, confidence, likeliest)), strict=True)
    long = (entry for entry in by_piece if len(entry[1]) >= MIN_TARGETS)
    worst = nlargest(PIECES, long, key=lambda entry: float(entry[1].mean()))
    return tuple(_portrait(partial(_text, tokenizer), *entry) for entry in worst)


def _portrait(
    text: Callable[[Sequence[int]], str], piece: _Piece, kl: Tensor, confidence: Tensor, likeliest: Tensor
) -> Piece:
    """What is told of a piece with n targets: `kl (n,)`, `confidence` and `likeliest (2, n)`."""
    peak = int(kl.argmax())
    place = piece.positions[peak] + 1  # of that target among the piece's tokens
    student, teacher = map(Guess, map(text, likeliest[:, peak, None].tolist()), confidence[:, peak].tolist())
    context, target = text(piece.ids[:place])[-CONTEXT:], text(piece.ids[place : place + 1])
    return Piece(float(kl.mean()), len(kl), float(kl[peak]), context, target, student, teacher)


def _text(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Exact up to cut characters: `decode` would take away the blank before a lone word of SentencePiece's."""
    return b"".join(bytes_of(tokenizer, token) for token in ids).decode(errors="replace")
