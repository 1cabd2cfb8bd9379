"""Student and objective in one module: what is wrapped, compiled, optimised, synchronised and saved."""

from collections.abc import Mapping

from torch import Tensor, nn

from tutelage.data.batch import Batch
from tutelage.losses.objective import Objective
from tutelage.losses.term import Progress
from tutelage.student.decoder import Decoder
from tutelage.teacher.signal import TeacherSignal


class Distiller(nn.Module):
    """The head is used inside this forward pass, so that sharding this module gathers it in time."""

    def __init__(self, student: Decoder, objective: Objective) -> None:
        super().__init__()
        self.student = student
        self.objective = objective

    def forward(
        self, batch: Batch, signal: TeacherSignal | None, counts: Mapping[str, int], progress: Progress
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """A micro-batch's share of the loss of the whole step (0-dim), and of what is logged."""
        output = self.student(batch.tokens, positions=batch.positions, segments=batch.segments)
        loss: tuple[Tensor, dict[str, Tensor]] = self.objective(
            output, self.student.head, signal, batch, counts, progress
        )
        return loss
