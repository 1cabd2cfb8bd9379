"""The order of rows: batch number `step` is a pure function of the corpus, the batch size and the seed.

Nothing is stored between batches, so a run resumes at any step by asking for it.

Shapes: B rows, R rows per epoch.
"""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch

from tutelage.data.batch import Batch, concatenate
from tutelage.data.corpus import Corpus
from tutelage.data.packing import IntArray
from tutelage.errors import UserError


class Loader:
    """Batches for training. Every epoch shows each source's rows `weight` times, in a new seeded order.

    The fractional part of a weight is a new random subset of the rows each epoch, always of the same size.
    Batches run on across epochs, so a corpus smaller than a batch works too. With `max_rows`, every epoch shows the
    same seeded subset of the rows, of about that size.
    """

    def __init__(self, corpus: Corpus, batch_size: int, seed: int, max_rows: int | None = None) -> None:
        if seed < 0:
            raise UserError(f"--seed {seed} must not be negative")
        self.corpus = corpus
        self.batch_size = batch_size
        self.seed = seed
        sizes = [len(packed) for packed in corpus.train]
        self._offsets = np.cumsum([0, *sizes], dtype=np.int64)  # first global row number of each source
        self._pools = [np.arange(first, first + size) for first, size in zip(self._offsets, sizes, strict=False)]
        whole = sum(_share(size, weight) for size, weight in zip(sizes, corpus.weights, strict=True))
        if max_rows is not None and max_rows < whole:
            random = np.random.Generator(np.random.PCG64(seed))
            self._pools = [random.choice(p, _share(len(p), max_rows / whole), replace=False) for p in self._pools]
        self._shown = [_share(len(pool), weight) for pool, weight in zip(self._pools, corpus.weights, strict=True)]
        self._order = lru_cache(maxsize=2)(self._epoch_order)  # two: a batch may straddle two epochs

    @property
    def rows_per_epoch(self) -> int:
        """R: rows shown per epoch, the same in every epoch."""
        return sum(self._shown)

    @property
    def steps_per_epoch(self) -> int:
        """Batches until every row of an epoch was shown; the last one may run on into the next epoch."""
        return -(-self.rows_per_epoch // self.batch_size)

    def batch(self, step: int) -> Batch:
        """Batch number `step` (from 0), with B = `batch_size` rows."""
        places = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs, within = np.divmod(places, self.rows_per_epoch)
        rows = np.concatenate([self._order(int(e))[within[epochs == e]] for e in np.unique(epochs)])
        return self._gather(rows)

    def _epoch_order(self, epoch: int) -> IntArray:
        """(R,) global row numbers in the order of this epoch."""
        random = np.random.Generator(np.random.PCG64([self.seed, epoch]))
        shown = []
        for rows, count in zip(self._pools, self._shown, strict=True):
            passes, rest = divmod(count, len(rows)) if count else (0, 0)
            shown += [np.tile(rows, passes), random.choice(rows, rest, replace=False) if rest else rows[:0]]
        return random.permutation(np.concatenate(shown))

    def _gather(self, rows: IntArray) -> Batch:
        """The rows with these global numbers `(B,)`, in this order."""
        source = np.searchsorted(self._offsets, rows, side="right") - 1  # empty sources are never found
        order = np.argsort(source, kind="stable")  # (B,) by source, as `parts` will be
        parts = [self.corpus.train[s].batch(rows[source == s] - self._offsets[s]) for s in np.unique(source)]
        return concatenate(parts).take(torch.from_numpy(np.argsort(order)))


def _share(size: int, weight: float) -> int:
    """Rows that `weight` of `size` rows are: at least one where there are any, or a tiny weight would mean none."""
    return max(1, round(size * weight)) if size else 0


def heldout_batches(corpus: Corpus, batch_size: int, max_rows: int) -> Iterator[Batch]:
    """Up to `max_rows` held-out rows, evenly spaced and always the same, `batch_size` at a time."""
    count = min(max_rows, len(corpus.heldout))
    rows = np.arange(count, dtype=np.int64) * len(corpus.heldout) // count
    for start in range(0, count, batch_size):
        yield corpus.heldout.batch(rows[start : start + batch_size])
