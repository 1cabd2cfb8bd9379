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
    """All documents as one stream: of each the prefix of P tokens, its text, the end-of-text token.

    Row r is the prefix and then stream[r·(T − P) : (r+1)·(T − P)], from which a prefix at its beginning is left out.
    """

    stream: NDArray[np.int32]
    """(N,) token ids; the first of every document are the prefix, the last is the end-of-text token."""

    starts: IntArray
    """(D,) index of each document's first token, strictly ascending from 0."""

    seq_len: int
    """T: tokens per row."""

    prefix: tuple[int, ...] = ()
    """What stands before every piece of a document; never a target."""

    def __len__(self) -> int:
        return -(-len(self.stream) // self.step)

    @property
    def step(self) -> int:
        """T − P: how far the stream goes on from row to row."""
        return self.seq_len - len(self.prefix)

    def batch(self, rows: IntArray) -> Batch:
        """The rows with indices `rows (B,)`.

        A document that goes on in the next row is a new segment there, with the prefix and positions from 0: no
        context is carried over, but the last position of the row still has its target. The padding of the last row
        is end-of-text tokens in a segment of their own, without targets.
        """
        assert ((rows >= 0) & (rows < len(self))).all(), "row index out of range"
        size, P = len(self.stream), len(self.prefix)
        bounds = np.append(self.starts, [size, np.iinfo(np.int64).max])  # padding is "document" D
        first = rows * self.step  # (B,) the place of the first token after the prefix
        begun = bounds[np.searchsorted(bounds, first, side="right") - 1]
        first = np.maximum(first, begun + P)
        at = first[:, None] - P + np.arange(self.seq_len)  # (B, T) places in the stream; the prefix stands in for P
        document = np.searchsorted(bounds, np.maximum(at, first[:, None]), side="right") - 1  # (B, T)
        # Indices past the end read the stream's last token, which is end-of-text: just what padding needs.
        tokens = self.stream[np.minimum(at, size - 1)].astype(np.int64)
        following = self.stream[np.minimum(at + 1, size - 1)].astype(np.int64)
        tokens[:, :P] = self.prefix
        continues = (at + 1 < bounds[document + 1]) & (at < size)
        continues &= at + 1 >= np.maximum(bounds[document] + P, first[:, None])  # the prefix is no target
        segments = document - document[:, :1]
        return Batch(
            tokens=torch.from_numpy(tokens),
            targets=torch.from_numpy(np.where(continues, following, IGNORE)),
            segments=torch.from_numpy(segments),
            positions=torch.from_numpy(at - np.maximum(bounds[document], at[:, :1])),
            keys=torch.from_numpy(_row_keys(tokens, segments)),
        )


def pack(
    token_lists: Iterable[Sequence[int]], document_end: int, seq_len: int, prefix: tuple[int, ...] = ()
) -> PackedTokens:
    """Lays documents end to end, in order, each between `prefix` and `document_end`."""
    # Arrays at once: a Python list of token ids takes eight times the memory.
    documents = [np.array([*prefix, *tokens, document_end], dtype=np.int32) for tokens in token_lists]
    ends = np.cumsum([len(document) for document in documents], dtype=np.int64)
    stream = np.concatenate(documents) if documents else np.empty(0, np.int32)
    return PackedTokens(stream, np.append(np.zeros(1, np.int64), ends)[:-1], seq_len, prefix)


def join(parts: Sequence[PackedTokens], seq_len: int) -> PackedTokens:
    """The documents of all `parts`, in order, as one stream."""
    offsets = np.cumsum([0] + [len(part.stream) for part in parts], dtype=np.int64)
    starts = [part.starts + offset for part, offset in zip(parts, offsets, strict=False)]
    empty = (np.empty(0, np.int32), np.empty(0, np.int64))
    return PackedTokens(
        np.concatenate([empty[0], *(part.stream for part in parts)]),
        np.concatenate([empty[1], *starts]),
        seq_len,
        parts[0].prefix if parts else (),
    )


def _row_keys(tokens: IntArray, segments: IntArray) -> IntArray:
    """(B,) 64-bit hashes of each row's tokens and segments, both (B, T), independent of the machine."""
    rows = np.concatenate([tokens, segments], axis=1).astype("<i8")
    digests = b"".join(blake2b(row.tobytes(), digest_size=8).digest() for row in rows)
    return np.frombuffer(digests, dtype="<i8").astype(np.int64)
