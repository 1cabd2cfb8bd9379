"""What a teacher said about rows that come again: its hidden states, kept by row.

Shapes: B rows, T tokens, E teacher width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.data.tokenizer import Tokenizer
from tutelage.kernels.linear_divergence import DenseTeacher
from tutelage.student.cache import CausalLM
from tutelage.student.decoder import Decoder
from tutelage.teacher.signal import (
    Signal,
    Teacher,
    TeacherSpec,
    decoder_of,
    generator_of,
    prompt_style_of,
    tokenizer_of,
)


def bytes_needed(d_model: int, rows: int, seq_len: int, dtype: torch.dtype = torch.bfloat16) -> int:
    """The memory that `rows` rows of `seq_len` tokens take: `d_model` numbers a token, in the teacher's dtype."""
    return rows * seq_len * d_model * dtype.itemsize


class Memory:
    """A teacher that runs the one inside it only for batches with a row it has not met.

    Up to `max_bytes` of hidden states stay where the teacher lies. It pays where they hold every row that is asked
    for, held-out ones included (see `bytes_needed`): a batch with one unknown row is run whole. A row's states do not
    depend on the rows beside it, so what is remembered and what is computed again have the same bits where batches
    have the same size. Signals with taps are not remembered.
    """

    def __init__(self, teacher: Teacher, max_bytes: int) -> None:
        self.teacher = teacher
        self.asked = 0
        """Rows for which the teacher ran."""
        self._left = max_bytes
        self._rows: dict[int, Tensor] = {}  # (T, E) by key
        self._rest: DenseTeacher | None = None  # head, bias, scale and cap, which are the same for every batch

    def signal(self, batch: Batch, taps: Sequence[int] = ()) -> Signal:
        """See `Teacher.signal`."""
        if taps:
            return self.teacher.signal(batch, taps)
        keys = batch.keys.tolist()
        if self._rest is not None and self._rows.keys() >= set(keys):
            return Signal(self._rest._replace(hidden=torch.stack([self._rows[key] for key in keys])))
        signal = self.teacher.signal(batch)
        self.asked += len(keys)
        hidden = signal.dense.hidden
        self._rest = signal.dense._replace(hidden=hidden.new_empty(0))
        for key, row in zip(keys, hidden, strict=True):
            if key not in self._rows and self._left >= row.nbytes:
                self._rows[key] = row.clone()  # a view would keep the whole batch
                self._left -= row.nbytes
        return signal

    @property
    def spec(self) -> TeacherSpec:
        """See `Teacher.spec`."""
        return self.teacher.spec

    @property
    def provides(self) -> frozenset[str]:
        """See `Teacher.provides`."""
        return self.teacher.provides

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The teacher's."""
        return tokenizer_of(self.teacher)

    @property
    def decoder(self) -> Decoder | None:
        """The teacher's."""
        return decoder_of(self.teacher)

    @property
    def prompt_style(self) -> str:
        """The teacher's."""
        return prompt_style_of(self.teacher)

    def generator(self) -> CausalLM | None:
        """The teacher's."""
        return generator_of(self.teacher)
