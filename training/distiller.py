"""Student and objective in one module: what is wrapped, optimised, synchronised and saved."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tutelage.data.batch import Batch
from tutelage.losses.objective import Objective
from tutelage.losses.term import Progress
from tutelage.student.decoder import Decoder
from tutelage.teacher.signal import Signal
from tutelage.training.meter import Split
from tutelage.training.precision import DTYPES, Name, Precision


class Distiller(nn.Module):
    """The head is used inside this forward pass, so that sharding this module gathers it in time."""

    def __init__(self, student: Decoder, objective: Objective, precision: Precision | None = None) -> None:
        super().__init__()
        self.student = student
        self.objective = objective
        self.precision = precision or Precision("fp32", "fp32", "fp32")
        self.split: Split | None = None  # who wants to know where the time goes

    def forward(
        self, batch: Batch, signal: Signal | None, counts: Mapping[str, int], progress: Progress
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """A micro-batch's share of the loss of the whole step (0-dim), and of what is logged."""
        device = batch.tokens.device.type
        with autocast(device, self.precision.student):
            output = self.student(batch.tokens, positions=batch.positions, segments=batch.segments)
        if self.split is not None:
            self.split.mark("student")
        if self.precision.head == "fp32":  # outside of autocast the loss computes in the dtype of its input
            output = output._replace(hidden=output.hidden.float())
        with autocast(device, self.precision.head):
            loss: tuple[Tensor, dict[str, Tensor]] = self.objective(
                output, self.student.head, signal, batch, counts, progress
            )
        if self.split is not None:
            self.split.mark("loss")
        return loss


def autocast(device: str, name: Name) -> torch.autocast:
    """A context in which matmuls compute in that dtype, whatever a caller's context says."""
    return torch.autocast(device, torch.bfloat16, enabled=DTYPES[name] == torch.bfloat16)
