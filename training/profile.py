"""`--profile`: where three steps spend their time, as a trace that Perfetto and chrome://tracing open."""

from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import torch
from torch.profiler import ProfilerActivity

from tutelage.training.processes import Processes

SKIPPED, STEPS = 2, 3
"""Steps before those that are recorded, as the first ones compile and allocate."""


class Profile:
    """A context that records steps 3 to 5 of this invocation as `directory/rank-R.json.gz`; nothing where it is off."""

    def __init__(self, directory: Path, processes: Processes, on: bool) -> None:
        self.file, self.on = directory / f"rank-{processes.rank}.json.gz", on
        self.device = processes.device
        self._profiler: torch.profiler.profile | None = None

    def __enter__(self) -> "Profile":
        if self.on:
            activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (self.device.type == "cuda")
            plan: Callable[[int], torch.profiler.ProfilerAction] = torch.profiler.schedule(
                wait=SKIPPED - 1, warmup=1, active=STEPS, repeat=1
            )
            self._profiler = torch.profiler.profile(
                activities=activities, schedule=plan, on_trace_ready=self._write, record_shapes=True
            )
            self._profiler.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._profiler is not None:
            self._profiler.stop()  # a run that ends earlier writes what there is

    def step(self) -> None:
        """Says that a step ended."""
        if self._profiler is not None:
            self._profiler.step()

    def _write(self, profiler: torch.profiler.profile) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(self.file))
