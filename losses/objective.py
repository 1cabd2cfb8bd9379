"""The training objective: losses by name, each divided once by its own count over the whole global batch."""

from collections.abc import Callable, Iterable, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from tutelage.data.batch import Batch
from tutelage.errors import UserError, unknown
from tutelage.losses.config import LossConfig
from tutelage.losses.divergence import Divergence
from tutelage.losses.term import DistillationLoss, Progress
from tutelage.student.decoder import StudentOutput
from tutelage.teacher.signal import Signal, Teacher

LOSSES: dict[str, Callable[[LossConfig, int], nn.Module]] = {"divergence": Divergence}


class Objective(nn.Module):
    """The sum of the losses that the configuration names. Raises UserError for an unknown one."""

    def __init__(self, config: LossConfig, vocab_size: int) -> None:
        super().__init__()
        if not config.ce_weight + config.kd_weight > 0:
            raise UserError("--loss.ce_weight 0 and --loss.kd_weight 0 leave nothing to train on: raise one")
        names = [name.strip() for name in config.terms.split(",")]
        for name in names:
            if name not in LOSSES:
                raise unknown("loss", name, LOSSES)
        self.terms = nn.ModuleDict({name: LOSSES[name](config, vocab_size) for name in names})

    @property
    def needs(self) -> frozenset[str]:
        """What the teacher must provide; empty where no teacher is needed."""
        return frozenset(need for _, loss in self._losses() for need in loss.needs)

    def check(self, teacher: Teacher) -> None:
        """Raises UserError where the teacher lacks what a loss needs."""
        if missing := self.needs - teacher.provides:
            raise UserError(f"teacher {teacher.spec.name} does not provide {', '.join(missing)}, which a loss needs")

    def counts(self, batch: Batch) -> dict[str, int]:
        """Each loss's divisor, from the whole batch of a step (never a micro-batch)."""
        return {name: max(1, loss.count(batch)) for name, loss in self._losses()}

    def forward(
        self,
        output: StudentOutput,
        head: Tensor,
        signal: Signal | None,
        batch: Batch,
        counts: Mapping[str, int],
        progress: Progress,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """This micro-batch's share of the mean loss, and of the logged means."""
        total = torch.zeros((), device=head.device)
        logs: dict[str, Tensor] = {}
        for name, loss in self._losses():
            term = loss(output, head, signal, batch, progress)
            total = total + term.total / counts[name]
            logs |= {key: value / counts[name] for key, value in term.logs.items()}
        return total, {"loss": total.detach(), **logs}

    def _losses(self) -> Iterable[tuple[str, DistillationLoss]]:
        return cast(Iterable[tuple[str, DistillationLoss]], self.terms.items())
