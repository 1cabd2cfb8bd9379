"""A training step, whole and taken apart: the one file here that knows how training is put together."""

from dataclasses import replace
from typing import Any

import torch

from benchmarks.timing import Lap
from tutelage.losses.term import Progress
from tutelage.student.config import StudentConfig
from tutelage.teacher.signal import Teacher
from tutelage.train import train_step
from tutelage.training.checkpoint import TrainingState
from tutelage.training.config import RunConfig
from tutelage.training.optim import clip
from tutelage.training.parts import build

STEP_PARTS = ("data", "teacher", "student forward", "loss", "backward", "optimizer")
"""Of a training step, in order. The loss makes its gradients in its forward pass: backward is the student's."""


class Workload:
    """A run's step on its own rows; the teacher is always asked. Raises UserError for what cannot be built."""

    def __init__(self, config: RunConfig, teacher: Teacher | None = None, *, by_block: bool = False) -> None:
        self.config = replace(config, teacher_memory=0.0, accumulate=1)
        self.parts, self.state = build(self.config, teacher), TrainingState()
        self.device = self.parts.processes.device
        if by_block:  # as `--compile` does
            compile_blocks: Any = getattr(self.parts.student, "compile_blocks", None)
            if compile_blocks is None:
                raise NotImplementedError("the student has no blocks to compile")
            compile_blocks()

    def step(self) -> None:
        """What training calls."""
        train_step(self.parts, self.config, self.state)
        self._wait()

    def by_part(self, lap: Lap) -> None:
        """The same, with a lap after each of STEP_PARTS, where the device is waited for."""
        parts, objective = self.parts, self.parts.distiller.objective

        def mark() -> None:
            self._wait()
            lap()

        mark()
        batch = parts.loader.batch(0)
        counts = objective.counts(batch)
        [piece] = parts.processes.share(batch, 1)
        mark()
        signal = parts.signal(piece) if objective.needs else None
        mark()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            output = parts.student(piece.tokens, positions=piece.positions, segments=piece.segments)
            mark()
            loss, _ = objective(output, parts.student.head, signal, piece, counts, Progress(0, parts.steps))
        mark()
        loss.backward()
        mark()
        clip(parts.distiller, self.config.optim.clip)
        parts.optimizer.step()
        parts.optimizer.zero_grad()
        mark()

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.config.batch_size * self.config.packing.seq_len

    @property
    def flops(self) -> float:
        """Matmul FLOP of a step: the teacher once, the student three times, attention by the causal half."""
        T, teacher = self.config.packing.seq_len, self.parts.teacher
        if teacher.decoder is not None:
            asked = forward_flops(teacher.decoder.config, T)
        else:  # a foreign model: its parameters, as if none of them were an embedding
            asked = 2.0 * teacher.spec.n_parameters
        return self.tokens * (asked + 3 * forward_flops(self.parts.student.config, T))

    def _wait(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize()


def forward_flops(shape: StudentConfig, T: int) -> float:
    """Matmul FLOP of a token's forward pass in a row of T: 2 a parameter (the head's, not the embedding's), and
    attention, whose query sees half of the row on average."""
    table = shape.padded_vocab_size * shape.d_model
    matrices = shape.n_parameters - (0 if shape.tie_embeddings else table)
    return 2.0 * matrices + 2.0 * T * shape.n_heads * shape.head_size * shape.n_layers
