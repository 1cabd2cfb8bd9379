"""Cross-entropy with the text and divergence from the teacher, fused.

Shapes: B rows, T tokens, N = B·T, D student width, E teacher width, V vocabulary.
"""

from torch import Tensor, nn

from tutelage.data.batch import Batch
from tutelage.kernels.linear_divergence import CHUNK, DenseTeacher, linear_divergence
from tutelage.kernels.rows import TopK
from tutelage.losses.config import LossConfig
from tutelage.losses.term import LossTerm, Progress
from tutelage.student.decoder import StudentOutput
from tutelage.teacher.signal import Signal


class Divergence(nn.Module):
    """`ce_weight·CE + kd_weight·τ²·D(teacher, student)` in nats, summed over targets. arXiv:1503.02531."""

    def __init__(self, config: LossConfig, vocab_size: int) -> None:
        super().__init__()
        self.config, self.vocab_size = config, vocab_size
        self.needs = frozenset({"full"}) if config.kd_weight else frozenset()

    def count(self, batch: Batch) -> int:
        """Targets of the batch."""
        return batch.count

    def forward(
        self,
        output: StudentOutput,
        head: Tensor,
        signal: Signal | None,
        batch: Batch,
        progress: Progress,
    ) -> LossTerm:
        """`output.hidden (B, T, D)`, `head (≥V, D)`; without a signal only the cross-entropy remains."""
        config = self.config
        loss = linear_divergence(
            output.hidden.flatten(0, 1),  # (N, D)
            head,
            None if signal is None else _rows(signal.distribution),
            batch.targets.flatten(),
            kind=config.divergence,
            mix=config.mix,
            temperature=config.temperature,
            kd_weight=config.kd_weight,
            ce_weight=config.ce_weight,
            vocab_size=self.vocab_size,
            count=batch.count,
            check_values=False,  # the loop looks at the loss, and skips a step that is not finite
            chunk_size=CHUNK.get(head.device.type) if config.rounding == 1 else None,
            round_head_gradient=config.rounding == 1,
        )
        name = "kl" if config.divergence == "forward_kl" else config.divergence
        return LossTerm(loss.total, {"ce": loss.cross_entropy, name: loss.divergence})


def _rows(distribution: DenseTeacher | TopK | None) -> DenseTeacher | TopK | None:
    """The same with its rows `(B, T, …)` as `(N, …)`."""
    if isinstance(distribution, TopK):
        return TopK(*(x.flatten(0, 1) for x in distribution))
    return distribution and distribution._replace(hidden=distribution.hidden.flatten(0, 1))
