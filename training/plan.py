"""What a run would cost, from its configuration alone: nothing is loaded, downloaded or written."""

import math
import time

import torch
from rich.console import Console

from tutelage.student.config import StudentConfig, resolve
from tutelage.teacher.registry import TeacherEntry, entry
from tutelage.training.config import RunConfig
from tutelage.training.processes import Processes

GIB = 2**30
EFFICIENCY = 0.5  # of the measured matmul rate that a whole step reaches; `benchmarks/train_step.py` measures it
CHUNK = 2048  # tokens whose logits `linear_divergence` holds at a time


def plan(config: RunConfig, teacher: TeacherEntry, device: torch.device, processes: int = 1) -> dict[str, str]:
    """Lines of the plan, memory for each process. Raises UserError where the student cannot be built."""
    vocab_size = teacher.vocab_size or 49_152
    student = resolve(config.student, vocab_size, teacher.preset)
    tokens_per_step = config.batch_size * config.packing.seq_len
    flops = flops_per_token(student, teacher, _share_asked(config, processes)) * tokens_per_step
    rate = matmul_rate(device) * EFFICIENCY
    per_step = flops / rate / processes
    lines = {
        "teacher": _teacher_line(config.teacher, teacher),
        "student": f"{student.n_parameters:,} parameters, {student.n_layers} layers, width {student.d_model},"
        f" init {config.student.init}",
        "data": f"{config.data or teacher.data}, rows of {config.packing.seq_len} tokens",
        "memory": _memory_line(student, teacher, config, processes),
        "step": f"{config.batch_size} rows = {tokens_per_step:,} tokens, {flops / 1e12:,.1f} TFLOP,"
        f" about {per_step:,.2f} s on {processes} × {device.type} ({rate / 1e12:.2f} TFLOP/s each)",
    }
    if config.steps:
        hours = config.steps * per_step / 3600
        lines["run"] = f"{config.steps:,} steps = {config.steps * tokens_per_step:,} tokens, about {hours:,.2f} hours"
    else:
        lines["run"] = f"{config.epochs or 1:g} epochs; the number of steps is known once the data is read"
    return lines


def show(config: RunConfig) -> None:
    """Prints the plan, of as many processes as were started."""
    processes = Processes(config.device)
    lines = plan(config, entry(config.teacher), processes.device, processes.size)
    if not processes.first:
        return
    Console(highlight=False).print(
        "\n".join(f"{name:<8} {text}" for name, text in lines.items()), soft_wrap=True, markup=False
    )


def flops_per_token(student: StudentConfig, teacher: TeacherEntry, asked: float = 1.0) -> float:
    """Matmul FLOP of one training token: the student three times (forward and two gradients), the teacher once.

    `asked` is the share of tokens for which the teacher's layers run; its head runs for every token.
    """
    table = student.padded_vocab_size * student.d_model
    trunk = student.n_parameters - table * (1 if student.tie_embeddings else 2)
    head = teacher.vocab_size * teacher.d_model
    return 6 * (trunk + table) + 2 * (head + asked * (teacher.n_parameters - head))


def _share_asked(config: RunConfig, processes: int) -> float:
    """The share of tokens for which the teacher runs: one process remembers rows that come again."""
    passes = float(config.epochs or 1.0)
    if config.steps:  # how many rows there are is known only where they are limited
        passes = config.steps * config.batch_size / config.max_rows if config.max_rows else 1.0
    return 1 / max(1.0, passes) if config.teacher_memory and processes == 1 else 1.0


def matmul_rate(device: torch.device, size: int = 1024, repeats: int = 8) -> float:
    """bf16 matmul FLOP/s of the device, measured in a moment."""
    a, b = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        (a @ b).sum().item()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def _teacher_line(name: str, teacher: TeacherEntry) -> str:
    if not teacher.n_parameters:
        return f"{name}: its size is known once it is downloaded"
    how = {None: "bf16", "nf4": "4-bit NF4"}[teacher.quantisation]
    download = f", download {teacher.download_bytes / 1e9:,.1f} GB" if teacher.download_bytes else ", no download"
    return f"{name} ({teacher.source}): {teacher.n_parameters:,} parameters in {how}{download}"


def _memory_line(student: StudentConfig, teacher: TeacherEntry, config: RunConfig, processes: int) -> str:
    tokens = config.batch_size * config.packing.seq_len // config.accumulate // processes
    cut = processes if config.fsdp else 1
    state = 16 * student.n_parameters // cut  # fp32 weights, gradients, and AdamW's two moments
    head = 2 * teacher.vocab_size * teacher.d_model
    cut = 1 if teacher.quantisation else cut
    held = (teacher.memory_bytes - head) // cut + head  # its head stays whole, and so do 4 bits
    chunk = min(CHUNK, tokens)
    loss = 2 * chunk * student.padded_vocab_size * 2 + 8 * student.padded_vocab_size * student.d_model
    width = 16 * student.d_model + 4 * student.d_ff
    activations = tokens * student.n_layers * width * 2
    remembered = 0.0
    if _share_asked(config, processes) < 1:
        answers = 2 * teacher.d_model * config.packing.seq_len * config.max_rows if config.max_rows else math.inf
        remembered = min(config.teacher_memory * GIB, answers)
    total = state + loss + activations + held + remembered
    parts = {
        "teacher": held,
        "student and optimizer": state,
        "loss": loss,
        "activations": activations,
        "teacher's answers": remembered,
    }
    return f"about {total / GIB:,.1f} GiB: " + ", ".join(f"{k} {v / GIB:,.2f}" for k, v in parts.items() if v)
