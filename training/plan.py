"""`--dry_run`: what a run would take. A few steps on random rows and weights are timed; nothing is read or written."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console

from tutelage.data.batch import Batch
from tutelage.kernels.linear_divergence import CHUNK, DenseTeacher
from tutelage.losses.objective import Objective
from tutelage.student.config import StudentConfig
from tutelage.student.decoder import Decoder
from tutelage.student.weights import find_student, read_config
from tutelage.teacher.memory import bytes_needed
from tutelage.teacher.registry import TeacherEntry, entry
from tutelage.teacher.signal import Signal
from tutelage.training.config import RunConfig
from tutelage.training.distiller import Distiller
from tutelage.training.optim import make_optimizer
from tutelage.training.parts import GIB, UNKNOWN_VOCABULARY, Parts, check_length, choose_precision, planned_shape
from tutelage.training.precision import DTYPES, Precision
from tutelage.training.processes import Processes
from tutelage.training.sizing import timed_steps
from tutelage.training.step import out_of_memory

SECONDS = 2.0
"""What timing may take, but for a first step that takes longer."""
CPU_TOKENS = (64, 128)
"""Tokens of the steps that are timed on a CPU."""


@dataclass(frozen=True)
class RandomRows:
    """Stands for a loader."""

    rows: int
    seq_len: int
    vocab_size: int

    def batch(self, step: int) -> Batch:
        """Rows of one document each."""
        shape = self.rows, self.seq_len
        tokens = torch.randint(self.vocab_size, shape)
        places = torch.arange(self.seq_len).expand(shape)
        return Batch(tokens, tokens.roll(-1, 1), torch.zeros_like(tokens), places, torch.arange(self.rows))


class OneBlock:
    """Stands for a teacher: one of its blocks and its head, with random weights."""

    def __init__(self, known: TeacherEntry, device: torch.device, dtype: torch.dtype) -> None:
        width, heads = known.d_model or 64, max(1, known.d_model // 64)  # one that is unknown costs nothing
        shape = StudentConfig(64, 1, heads, heads, width, 64 * round(8 * width / 3 / 64) or 64, d_head=64)
        vocab_size = known.vocab_size or UNKNOWN_VOCABULARY
        self.block = Decoder(shape).to(device, dtype).requires_grad_(False)
        self.head = torch.randn(vocab_size, width, dtype=dtype, device=device)
        per_block = 12 * width**2  # of a Llama or a GPT alike
        self.blocks = max(0.0, known.n_parameters - vocab_size * width) / per_block if known.d_model else 0.0

    @torch.no_grad()
    def signal(self, batch: Batch, taps: Any = ()) -> Signal:
        """See `Teacher.signal`."""
        hidden = self.block(batch.tokens % 64, positions=batch.positions, segments=batch.segments).hidden
        return Signal(DenseTeacher(hidden, self.head))


def plan(config: RunConfig, known: TeacherEntry, processes: Processes) -> dict[str, str]:
    """Lines of the plan, memory for each process. Raises UserError where the student cannot be built."""
    then = read_config(find_student(Path(config.resume)))[0] if config.resume else None
    student = planned_shape(config, known, then)
    check_length(config, student, known.context)
    precision = choose_precision(config, known, student, processes)
    step = measured(config, known, student, precision, processes)
    tokens, whole = config.batch_size * config.packing.seq_len, sum(step.values())
    split = ", ".join(f"{part} {seconds:.2g}" for part, seconds in step.items())
    unknown = "" if known.d_model else " and the teacher's, which is known once it is downloaded"
    return {
        "teacher": _teacher_line(config.teacher, known, precision),
        "student": f"{student.n_parameters:,} parameters, {student.n_layers} layers, width {student.d_model},"
        f" init {config.student.init}",
        "data": f"{config.data or known.data}, rows of {config.packing.seq_len} tokens",
        "memory": _memory_line(student, known, config, processes, precision),
        "step": f"{config.batch_size} rows = {tokens:,} tokens: about {whole:,.2f} s ({split}){unknown},"
        f" {tokens / whole:,.0f} tokens/s on {processes.size} × {processes.device.type} in {precision}",
        "run": _run_line(config, known, processes, precision, step),
    }


def show(config: RunConfig) -> None:
    """Prints the plan, of as many processes as were started."""
    with Processes(config.device) as processes, out_of_memory(config, processes):
        lines = plan(config, entry(config.teacher, config.teacher_quantization), processes)
        if processes.first:
            text = "\n".join(f"{name:<8} {line}" for name, line in lines.items())
            Console(highlight=False).print(text, soft_wrap=True, markup=False)


def measured(
    config: RunConfig, known: TeacherEntry, shape: StudentConfig, precision: Precision, processes: Processes
) -> dict[str, float]:
    """Seconds of a step by its part, on random rows: the teacher by one of its blocks, the rest whole.

    A CPU is timed on two small batches: what it takes is a fixed part, and one in proportion to the tokens.
    """
    stand_in = _stand_in(config, known, shape, precision, processes)
    rows, seq_len = -(-config.batch_size // processes.size), config.packing.seq_len
    if processes.device.type != "cpu":
        return stand_in.seconds(config, rows, seq_len)
    few, more = (stand_in.seconds(replace(config, accumulate=1), 1, tokens) for tokens in CPU_TOKENS)
    scale = (rows * seq_len - CPU_TOKENS[0]) / (CPU_TOKENS[1] - CPU_TOKENS[0])
    fixed = ("data", "optimizer")
    return {part: few[part] + (part not in fixed) * scale * max(0.0, more[part] - few[part]) for part in few}


def _stand_in(
    config: RunConfig, known: TeacherEntry, shape: StudentConfig, precision: Precision, processes: Processes
) -> "_StandIn":
    student = Decoder(shape)
    student.gradient_checkpointing = config.gradient_checkpointing
    distiller = Distiller(student, Objective(config.loss, shape.vocab_size), precision).train().to(processes.device)
    return _StandIn(
        processes=processes,
        teacher=OneBlock(known, processes.device, DTYPES[precision.teacher]),
        loader=RandomRows(1, 1, shape.vocab_size),
        distiller=distiller,
        wrapped=distiller,
        optimizer=make_optimizer(distiller, config.optim),
    )


@dataclass
class _StandIn:
    """What a timed step touches of `Parts`."""

    processes: Processes
    teacher: OneBlock
    loader: RandomRows
    distiller: Distiller
    wrapped: torch.nn.Module
    optimizer: torch.optim.AdamW
    steps: int = 1

    def seconds(self, config: RunConfig, rows: int, seq_len: int) -> dict[str, float]:
        """Of a step on so many rows in each process, by its part."""
        self.loader = replace(self.loader, rows=rows * self.processes.size, seq_len=seq_len)
        step = timed_steps(cast(Parts, self), config, SECONDS)
        step["teacher"] = step.get("teacher", 0.0) * self.teacher.blocks
        return {part: seconds for part, seconds in step.items() if seconds}


def _run_line(
    config: RunConfig, known: TeacherEntry, processes: Processes, precision: Precision, step: dict[str, float]
) -> str:
    per_step, teacher = sum(step.values()), step.get("teacher", 0.0)
    if config.minutes:
        return f"{config.minutes:g} minutes: about {60 * config.minutes / per_step:,.0f} steps"
    if not config.steps:
        return f"{config.epochs or 1:g} epochs; the number of steps is known once the data is read"
    tokens = config.steps * config.batch_size * config.packing.seq_len
    epochs, first = "", config.steps
    if config.max_rows:
        epochs = f" = {config.steps * config.batch_size / config.max_rows:,.3g} epochs"
        if _answers(config, known, processes, precision):
            first = min(config.steps, -(-config.max_rows // config.batch_size))
    hours = (first * per_step + (config.steps - first) * (per_step - teacher)) / 3600
    return f"{config.steps:,} steps = {tokens:,} tokens{epochs}, about {hours:,.2f} hours"


def _answers(config: RunConfig, known: TeacherEntry, processes: Processes, precision: Precision) -> int:
    """Bytes of the teacher's answers to rows that come again; 0 where it is asked anew, as far as it can be told."""
    if not (config.max_rows and config.steps) or config.steps * config.batch_size <= config.max_rows:
        return 0
    rows = config.max_rows + config.eval_rows
    needed = bytes_needed(known.d_model, rows, config.packing.seq_len, DTYPES[precision.teacher])
    alone = processes.size == 1 and config.batch_size % config.accumulate == 0
    return needed if alone and needed <= config.teacher_memory * GIB else 0


def _teacher_line(name: str, known: TeacherEntry, precision: Precision) -> str:
    if not known.n_parameters:
        return f"{name}: its size is known once it is downloaded"
    how = {None: precision.teacher, "int8": "8 bits", "nf4": "4-bit NF4"}[known.quantisation]
    download = f", download {known.download_bytes / 1e9:,.1f} GB" if known.download_bytes else ", no download"
    return f"{name} ({known.source}): {known.n_parameters:,} parameters in {how}{download}"


def _memory_line(
    student: StudentConfig, known: TeacherEntry, config: RunConfig, processes: Processes, precision: Precision
) -> str:
    tokens = -(-config.batch_size // (config.accumulate * processes.size)) * config.packing.seq_len
    sharded = processes.size if config.fsdp else 1
    wide = 1 if known.quantisation else DTYPES[precision.teacher].itemsize / 2
    teacher, head = known.memory_bytes * wide, 2 * known.vocab_size * known.d_model * wide
    held = (teacher - head) / (1 if known.quantisation else sharded) + head  # its head stays whole, and so do 4 bits
    item = DTYPES[precision.head].itemsize
    chunk = min(CHUNK.get(processes.device.type, 1024), -(-tokens // 2))
    width = student.d_model if config.gradient_checkpointing else 16 * student.d_model + 4 * student.d_ff
    parts = {
        "teacher": held + 8 * tokens * known.d_model * wide * 2,
        "student and optimizer": 16 * student.n_parameters / sharded,  # fp32 weights, gradients and two moments
        "loss": 2 * chunk * student.padded_vocab_size * item + 8 * student.padded_vocab_size * student.d_model,
        "activations": tokens * student.n_layers * width * DTYPES[precision.student].itemsize,
        "teacher's answers": _answers(config, known, processes, precision),
    }
    total = math.fsum(parts.values())
    return f"about {total / GIB:,.1f} GiB: " + ", ".join(f"{k} {v / GIB:,.2f}" for k, v in parts.items() if v)
