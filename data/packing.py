"""Documents laid end to end and cut into rows of equal length, each position with its target.

Shapes: N tokens in the stream, D documents, B rows, T tokens per row.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import torch
from numpy.typing import NDArray

from tutelage.data.batch import Batch
from tutelage.kernels.reference import IGNORE

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class PackedTokens:
    """All documents as one stream, each followed by the end-of-text token; row r is stream[r·T : (r+1)·T]."""

    stream: NDArray[np.int32]
    """(N,) token ids; the last of every document is the end-of-text token."""

    starts: IntArray
    """(D,) index of each document's first token, strictly ascending from 0."""

    seq_len: int
    """T: tokens per row."""

    def __len__(self) -> int:
        return -(-len(self.stream) // self.seq_len)

    @property
    def waste(self) -> float:
        """Share of positions without a target: one per document, and the padding of the last row."""
        positions = len(self) * self.seq_len
        return 1 - (len(self.stream) - len(self.starts)) / positions if positions else 0.0

    def batch(self, rows: IntArray) -> Batch:
        """The rows with indices `rows (B,)`.

        A document that goes on in the next row is a new segment there, with positions from 0: no context is
        carried over, but the last position of the row still has its target. The padding of the last row is
        end-of-text tokens in a segment of their own, without targets.
        """
        assert ((rows >= 0) & (rows < len(self))).all(), "row index out of range"
        size = len(self.stream)
        at = rows[:, None] * self.seq_len + np.arange(self.seq_len)  # (B, T) places in the stream
        bounds = np.append(self.starts, [size, np.iinfo(np.int64).max])  # padding is "document" D
        document = np.searchsorted(bounds, at, side="right") - 1  # (B, T)
        # Indices past the end read the stream's last token, which is end-of-text: just what padding needs.
        tokens = self.stream[np.minimum(at, size - 1)].astype(np.int64)
        following = self.stream[np.minimum(at + 1, size - 1)].astype(np.int64)
        continues = (at + 1 < bounds[document + 1]) & (at < size)
        segments = document - document[:, :1]
        return Batch(
            tokens=torch.from_numpy(tokens),
            targets=torch.from_numpy(np.where(continues, following, IGNORE)),
            segments=torch.from_numpy(segments),
            positions=torch.from_numpy(at - np.maximum(bounds[document], at[:, :1])),
            keys=torch.from_numpy(_row_keys(tokens, segments)),
        )


def pack(token_lists: Iterable[Sequence[int]], eos_id: int, seq_len: int) -> PackedTokens:
    """Lays documents end to end, in order, each followed by `eos_id`."""
    # Arrays at once: a Python list of token ids takes eight times the memory.
    documents = [np.array([*tokens, eos_id], dtype=np.int32) for tokens in token_lists]
    ends = np.cumsum([len(document) for document in documents], dtype=np.int64)
    stream = np.concatenate(documents) if documents else np.empty(0, np.int32)
    return PackedTokens(stream, np.append(np.zeros(1, np.int64), ends)[:-1], seq_len)


def join(parts: Sequence[PackedTokens], seq_len: int) -> PackedTokens:
    """The documents of all `parts`, in order, as one stream."""
    offsets = np.cumsum([0] + [len(part.stream) for part in parts], dtype=np.int64)
    starts = [part.starts + offset for part, offset in zip(parts, offsets, strict=False)]
    empty = (np.empty(0, np.int32), np.empty(0, np.int64))
    return PackedTokens(
        np.concatenate([empty[0], *(part.stream for part in parts)]),
        np.concatenate([empty[1], *starts]),
        seq_len,
    )


def _row_keys(tokens: IntArray, segments: IntArray) -> IntArray:
    """(B,) 64-bit hashes of each row's tokens and segments, both (B, T), independent of the machine."""
    rows = np.concatenate([tokens, segments], axis=1).astype("<i8")
    digests = b"".join(blake2b(row.tobytes(), digest_size=8).digest() for row in rows)
    return np.frombuffer(digests, dtype="<i8").astype(np.int64)
