"""A training step as training takes it: the one file here that knows how a run is put together."""

from dataclasses import replace

import torch

from tutelage.teacher.signal import Teacher
from tutelage.training.checkpoint import TrainingState
from tutelage.training.config import RunConfig
from tutelage.training.meter import PARTS, Meter, Split
from tutelage.training.parts import build
from tutelage.training.step import train_step

STEPS = 1000
"""Of the schedule; nobody takes so many."""


class Workload:
    """A run's step on its own rows; the teacher is always asked. Raises UserError for what cannot be built."""

    def __init__(self, config: RunConfig, teacher: Teacher | None = None) -> None:
        end = {"steps": STEPS, "epochs": None, "minutes": None}
        self.config = replace(config, teacher_memory=0.0, accumulate=1, **end)
        self.parts, self.state = build(self.config, teacher), TrainingState()
        self.device = self.parts.processes.device
        self.parts.distiller.split = self.split = Split(self.device)
        meter = Meter(self.split, self.parts, self.config)
        self.flops, self.ideal = meter.flops, meter.ideal + meter.ideal_asked
        """FLOP of a step, and its seconds at the device's peak."""
        self.taken: list[dict[str, float]] = []
        """Seconds of each step's parts, see PARTS of `training/meter.py`."""

    def step(self) -> None:
        """What training calls; returns when the device is done."""
        train_step(self.parts, self.config, self.state)
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        seconds = self.split.read()
        self.taken.append({part: seconds.get(part, 0.0) for part in PARTS})

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.config.batch_size * self.config.packing.seq_len
