"""Which dtype the matmuls of a run compute in: student, teacher and head, each as this machine is fastest.

Processors differ by a factor of six: with AMX bf16 is five times as fast as fp32, with AVX-512 alone half as fast, and
with AVX2 it is emulated. So the rates are measured, once per process and in a fraction of a second.
"""

import platform
import time
from dataclasses import asdict, dataclass
from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F

from tutelage.errors import UserError

Name = Literal["bf16", "fp32"]
DTYPES: dict[Name, torch.dtype] = {"bf16": torch.bfloat16, "fp32": torch.float32}
GAIN = 1.15
"""How much faster fp32 must be to be chosen over bf16: measurements of one machine differ by less than that."""
LAPS, SECONDS = 5, 0.03
"""A rate is that of the best of so many matmuls, or of as many as this time allows."""
TOKENS, COLUMNS = 128, 4096
"""Most rows of a measured matmul, and most columns of a head's."""


@dataclass(frozen=True)
class Precision:
    """The dtypes of a run's matmuls; weights, statistics and optimizer of the student are fp32 in any case."""

    student: Name = "bf16"
    teacher: Name = "bf16"
    head: Name = "bf16"
    """Of both heads' matmuls, in the loss."""

    def __str__(self) -> str:
        names = asdict(self)
        if len({*names.values()}) == 1:
            return self.student
        return ", ".join(f"{part} {name}" for part, name in names.items())


@dataclass(frozen=True)
class Widths:
    """What decides the shapes of the matmuls; 0 where it is not known before the teacher is loaded."""

    tokens: int
    student: int
    student_ff: int
    teacher: int
    vocab_size: int
    teacher_bytes: int = 0
    """Of its weights in bf16."""


def choose(asked: str, device: torch.device, widths: Widths) -> Precision:
    """What `--precision` says: one dtype for all three, or for each the faster one here.

    Raises UserError where bf16 is asked of a GPU that only emulates it.
    """
    if asked != "auto":
        if asked == "bf16" and device.type == "cuda" and not real_bf16(device):
            raise UserError(f"--precision bf16: {_name(device)} only emulates bf16: pass --precision fp32, or auto")
        name: Name = "bf16" if asked == "bf16" else "fp32"
        return Precision(name, name, name)
    if device.type == "cuda":  # where bf16 is real, its tensor cores win at any shape
        name = "bf16" if real_bf16(device) else "fp32"
        return Precision(name, name, name)
    tokens, known = min(widths.tokens, TOKENS), widths.teacher or 2048
    student = faster(device, tokens, widths.student, widths.student_ff)
    teacher = faster(device, tokens, known, 4 * known)
    head = faster(device, tokens, widths.student, min(widths.vocab_size or COLUMNS, COLUMNS))
    if teacher == "fp32" and 2 * widths.teacher_bytes > _free_bytes(device) / 2:
        teacher = "bf16"  # slower, but it fits
    return Precision(student, teacher, head)


def faster(device: torch.device, tokens: int, inner: int, outer: int) -> Name:
    """bf16, unless fp32 beats it by `GAIN` for `(tokens, inner) @ (inner, outer)`."""
    rates = {name: matmul_rate(device, dtype, tokens, inner, outer) for name, dtype in DTYPES.items()}
    return "fp32" if rates["fp32"] > GAIN * rates["bf16"] else "bf16"


@cache
def matmul_rate(device: torch.device, dtype: torch.dtype, tokens: int, inner: int, outer: int) -> float:
    """FLOP/s of `(tokens, inner) @ (inner, outer)` on the device, measured once per process."""
    random = torch.Generator().manual_seed(0)  # the run's own random numbers are not to be touched
    x, weight = (torch.randn(rows, inner, generator=random).to(device, dtype) for rows in (tokens, outer))
    F.linear(x[:1], weight)  # what comes first is slower
    best, begun = float("inf"), time.perf_counter()
    for _ in range(LAPS):
        _wait(device)
        start = time.perf_counter()
        F.linear(x, weight)
        _wait(device)
        now = time.perf_counter()
        best = min(best, now - start)
        if now - begun > SECONDS:
            break
    return 2 * tokens * inner * outer / best


def real_bf16(device: torch.device) -> bool:
    """Whether the device has bf16 units, as far as it says; emulation does not count."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu" and platform.machine() in ("x86_64", "AMD64"):
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return True


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _free_bytes(device: torch.device) -> float:
    import psutil  # which does not start everywhere, and only training asks

    return float(psutil.virtual_memory().available) if device.type in ("cpu", "mps") else float("inf")


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
