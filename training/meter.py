"""What a run is tuned by: tokens per second, model FLOP utilisation, peak memory, and where a step's time goes.

Shapes: T tokens of a row.
"""

import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from tutelage.student.config import StudentConfig
from tutelage.teacher.memory import Memory
from tutelage.teacher.signal import TeacherSpec
from tutelage.training.config import RunConfig
from tutelage.training.precision import DTYPES, Name, matmul_rate

if TYPE_CHECKING:  # which needs the split in the distiller
    from tutelage.training.parts import Parts

PARTS = ("data", "teacher", "student", "loss", "optimizer")
"""Of a step. Backward passes count as the student's: the loss has made its gradients in its forward pass."""

PEAKS = {
    "B200": 2250e12, "H200": 989e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "GH200": 989e12,
    "A100": 312e12, "A10G": 70e12, "A10": 125e12, "L40S": 362e12, "L4": 121e12, "RTX 4090": 165e12, "RTX 3090": 71e12,
    "MI300X": 1307e12,
}  # fmt: skip
"""Dense bf16 FLOP/s by a part of the device's name, the first that fits, from the makers' data sheets."""


def peak_flops(device: torch.device, name: Name) -> float:
    """FLOP/s that a model is measured against: the data sheet's, or the rate of one large matmul, measured."""
    if device.type == "cuda" and name == "bf16":
        said = torch.cuda.get_device_name(device)
        for part, peak in PEAKS.items():
            if part in said:
                return peak
    size = 1024 if device.type == "cpu" else 8192
    return matmul_rate(device, DTYPES[name], size // 4, size, size)


def student_flops(shape: StudentConfig, seq_len: int) -> float:
    """Matmul FLOP of one training token, forward and two gradients, its head included: 6 per weight.

    Attention is counted as causal over rows of one document, T/2 keys a token. arXiv:2204.02311, appendix B.
    """
    table = shape.padded_vocab_size * shape.d_model
    trunk = shape.n_parameters - table * (1 if shape.tie_embeddings else 2)
    return 6 * (trunk + table) + 6 * shape.n_layers * shape.n_heads * shape.head_size * seq_len


def teacher_flops(spec: TeacherSpec, seq_len: int) -> tuple[float, float]:
    """Matmul FLOP of one token in the teacher's layers, forward, and in its head, which runs for every token."""
    head = 2.0 * spec.vocab_size * spec.d_model
    return 2.0 * spec.n_parameters - head + 2 * spec.n_layers * spec.d_model * seq_len, head


class Split:
    """Where the time between `start` and the last `mark` goes; on CUDA by events on its stream, without a wait."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._marks: list[tuple[str, float | torch.cuda.Event]] = []

    def start(self) -> None:
        """What comes next is measured from here."""
        self.mark("")

    def mark(self, part: str) -> None:
        """The time since the last mark was spent on `part`."""
        now: float | torch.cuda.Event = time.perf_counter()
        if self.device.type == "cuda":
            now = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            now.record(torch.cuda.current_stream(self.device))
        self._marks.append((part, now))

    def read(self) -> dict[str, float]:
        """Seconds by part since the last reading; waits for the device."""
        if self._marks and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        seconds: dict[str, float] = defaultdict(float)
        for (_, before), (part, after) in zip(self._marks, self._marks[1:], strict=False):
            if part:
                seconds[part] += _between(before, after)
        self._marks.clear()
        return dict(seconds)


class Meter:
    """Rates of training proper since the last reading: tokens per second of all processes, the rest of this one's rows.

    Model FLOP utilisation is the time that the model's matmuls would take at the device's peak, each in the dtype that
    it computes in, as a share of the time that went by.
    """

    def __init__(self, split: Split, parts: "Parts", config: RunConfig) -> None:
        self.split, self.parts = split, parts
        seq_len, shape = config.packing.seq_len, parts.student.config
        tokens = config.batch_size * seq_len / parts.processes.size
        layers, teacher_head = teacher_flops(parts.teacher.spec, seq_len)
        head = 6.0 * shape.padded_vocab_size * shape.d_model
        if not parts.distiller.objective.needs:
            layers = teacher_head = 0.0

        def ideal(part: Literal["student", "teacher", "head"], flops: float) -> float:
            return float(tokens) * flops / peak_flops(split.device, getattr(parts.precision, part))

        self.ideal = ideal("student", student_flops(shape, seq_len) - head) + ideal("head", head + teacher_head)
        """Seconds of a step at the peak, without the teacher's layers."""
        self.ideal_asked = ideal("teacher", layers)
        self.flops = tokens * (student_flops(shape, seq_len) + teacher_head + layers)
        """Of a step that asks the teacher."""
        self._start()

    def _start(self) -> None:
        self.tokens = self.steps = 0
        self.seconds = 0.0
        self._asked = self.parts.teacher.asked if isinstance(self.parts.teacher, Memory) else 0

    def step(self, tokens: int, seconds: float) -> None:
        """Counts a step of all processes."""
        self.tokens, self.steps, self.seconds = self.tokens + tokens, self.steps + 1, self.seconds + seconds

    def read(self) -> dict[str, float]:
        """Rates, shares and peak memory, and starts anew; empty where no step was counted."""
        if not self.steps:
            return {}
        parts = self.split.read()
        whole = max(sum(parts.values()), 1e-9)
        rates = {
            "perf/tokens_per_s": self.tokens / max(self.seconds, 1e-9),
            "perf/seconds_per_step": self.seconds / self.steps,
            "perf/mfu": self._ideal() / max(self.seconds, 1e-9),
            "perf/peak_memory_gib": peak_memory(self.split.device) / 2**30,
            **{f"perf/share_{part}": parts.get(part, 0.0) / whole for part in PARTS},
        }
        self._start()
        return rates

    def _ideal(self) -> float:
        asked = float(self.steps)
        if isinstance(self.parts.teacher, Memory):
            asked = min(asked, (self.parts.teacher.asked - self._asked) / self.parts.loader.batch_size)
        return float(self.steps * self.ideal + asked * self.ideal_asked)


def peak_memory(device: torch.device) -> int:
    """The most bytes held so far: by tensors on a GPU, by the process on a CPU; 0 where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:  # Linux' own rusage begins with the peak of whoever started the process
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.split("VmHWM:")[1].split()[0])
    except (OSError, IndexError, ValueError):
        pass
    try:
        import resource
    except ImportError:  # not on Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS


def _between(before: "float | torch.cuda.Event", after: "float | torch.cuda.Event") -> float:
    """Seconds."""
    if isinstance(before, float) and isinstance(after, float):
        return after - before
    return float(before.elapsed_time(after)) / 1000  # type: ignore[union-attr,arg-type]
