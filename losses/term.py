"""What a loss is: the protocol, what it returns, and what it is told about progress."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.student.decoder import StudentOutput
from tutelage.teacher.signal import Signal


class LossTerm(NamedTuple):
    """`total` carries the gradient; `logs` are detached. All are 0-dim sums over the tokens of `count`."""

    total: Tensor
    logs: dict[str, Tensor]


@dataclass(frozen=True)
class Progress:
    """How far training is: optimizer steps done, of how many."""

    step: int
    steps: int


class DistillationLoss(Protocol):
    """An `nn.Module` with these three; its parameters are optimised and saved with the student's."""

    needs: frozenset[str]  # what the teacher must provide, of {"full"}

    def count(self, batch: Batch) -> int:
        """What the sums are divided by; known from the batch alone, so before any micro-batch runs."""

    def __call__(
        self,
        output: StudentOutput,
        head: Tensor,
        signal: Signal | None,
        batch: Batch,
        progress: Progress,
    ) -> LossTerm:
        """The loss of a micro-batch."""
