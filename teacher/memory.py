"""What a teacher said about rows that come again: its hidden states, kept by row.

Shapes: B rows, T tokens, E teacher width.
"""

from dataclasses import replace

import torch
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.teacher.signal import Teacher, TeacherSignal


class Memory:
    """`teacher.signal`, which runs the teacher only for batches with a row it has not met.

    Up to `max_bytes` of hidden states stay where the teacher lies. A row's states do not depend on the rows beside
    it, and a batch is always run whole, so that what is remembered and what is computed again have the same bits.
    """

    def __init__(self, teacher: Teacher, max_bytes: int) -> None:
        self.teacher = teacher
        self._left = max_bytes
        self._rows: dict[int, Tensor] = {}  # (T, E) by key
        self._last: TeacherSignal | None = None  # all but the hidden states is the same for every batch

    def __call__(self, batch: Batch) -> TeacherSignal:
        """See `Teacher.signal`."""
        keys = batch.keys.tolist()
        if self._last is not None and self._rows.keys() >= set(keys):
            return replace(self._last, hidden=torch.stack([self._rows[key] for key in keys]))
        self._last = signal = self.teacher.signal(batch)
        for key, row in zip(keys, signal.hidden, strict=True):
            if key not in self._rows and self._left >= row.nbytes:
                self._rows[key] = row.clone()  # a view would keep the whole batch
                self._left -= row.nbytes
        return signal
