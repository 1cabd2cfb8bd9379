"""Everything a run is made of, built once from its configuration, in the order the data takes."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from tutelage.data.batch import Batch
from tutelage.data.corpus import Corpus, build_corpus
from tutelage.data.loader import Loader
from tutelage.errors import UserError
from tutelage.files import cache_directory
from tutelage.losses.objective import Objective
from tutelage.student.config import StudentConfig, resolve
from tutelage.student.decoder import Decoder
from tutelage.student.weights import initialise
from tutelage.teacher.memory import Memory
from tutelage.teacher.registry import TeacherEntry, entry, load_teacher
from tutelage.teacher.signal import Teacher, TeacherSignal
from tutelage.training.allocator import keep_memory
from tutelage.training.config import RunConfig
from tutelage.training.distiller import Distiller
from tutelage.training.optim import make_optimizer

# What may change when a run goes on: none of it decides which weights come out, or all of it is meant to.
FREE = {
    "output_dir", "resume", "stop_after", "dry_run", "checkpoint_every", "keep_last", "log_every", "eval_every",
    "eval_rows", "max_skipped", "tracker", "steps", "epochs", "optim", "device", "gradient_checkpointing",
    "teacher_memory",
}  # fmt: skip


@dataclass
class Parts:
    """The path of the data: corpus → loader → teacher → distiller (student and objective) → optimizer."""

    accelerator: Accelerator
    teacher: Teacher
    signal: Callable[[Batch], TeacherSignal]  # the teacher's, which may remember
    corpus: Corpus
    loader: Loader
    distiller: Distiller
    wrapped: torch.nn.Module  # the distiller as accelerate prepared it: the one to call
    optimizer: torch.optim.AdamW
    steps: int
    origin: dict[str, Any]  # what must not change when the run is resumed

    @property
    def student(self) -> Decoder:
        """The model that is trained."""
        return self.distiller.student

    @property
    def vocab_size(self) -> int:
        """Tokens that are scored."""
        return self.student.config.vocab_size


def build(config: RunConfig, teacher: Teacher | None) -> Parts:
    """Builds the parts. Raises UserError for input that cannot work; nothing is written but caches."""
    keep_memory()
    torch.ones(64).sqrt()  # the first large threaded sqrt of a process is not bit-reproducible; a small one is
    if config.steps and config.epochs:
        raise UserError(f"--steps {config.steps} and --epochs {config.epochs:g} both say when to end: pass one of them")
    accelerator = make_accelerator(config)
    torch.manual_seed(config.seed)
    known = _entry(config, teacher)
    teacher = teacher or load_teacher(config.teacher, str(accelerator.device))
    corpus = build_corpus(config.data or known.data, teacher.tokenizer, config.packing, cache_directory() / "data")
    loader = Loader(corpus, config.batch_size, config.seed, config.max_rows)
    steps = config.steps or max(1, round((config.epochs or 1) * loader.rows_per_epoch / config.batch_size))
    # A row that comes again is remembered, where micro-batches of one size give it the same bits.
    remembers = steps * config.batch_size > loader.rows_per_epoch and config.batch_size % config.accumulate == 0
    shape = resolve(config.student, teacher.tokenizer.vocab_size, known.preset)
    _check_length(config, shape)
    student = Decoder(shape)
    student.gradient_checkpointing = config.gradient_checkpointing
    initialise(student, teacher.decoder, config.student.init)
    objective = Objective(config.loss, shape.vocab_size)
    objective.check(teacher)
    distiller = Distiller(student, objective).train()
    wrapped = accelerator.prepare(distiller)
    return Parts(
        accelerator=accelerator,
        teacher=teacher,
        signal=Memory(teacher, int(config.teacher_memory * 2**30)) if remembers else teacher.signal,
        corpus=corpus,
        loader=loader,
        distiller=distiller,
        wrapped=wrapped,
        optimizer=make_optimizer(distiller, config.optim),
        steps=steps,
        origin=_origin(config, teacher, shape, corpus),
    )


def make_accelerator(config: RunConfig) -> Accelerator:
    """Devices and mixed precision. Raises UserError for a device that is not there."""
    AcceleratorState._reset_state(reset_partial_state=True)  # one process may make several runs, each its own way
    try:
        if config.device not in ("auto", "cpu"):
            torch.empty(0, device=config.device)
        return Accelerator(cpu=config.device == "cpu", mixed_precision="bf16" if config.precision == "bf16" else "no")
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UserError(f"--device {config.device} is not available here: use auto or cpu") from error


def _entry(config: RunConfig, teacher: Teacher | None) -> TeacherEntry:
    if teacher is None:
        return entry(config.teacher)
    spec = teacher.spec
    return replace(entry("smollm2-135m"), source=spec.source, n_parameters=spec.n_parameters, preset="30m")


def _check_length(config: RunConfig, shape: StudentConfig) -> None:
    if config.packing.seq_len > shape.max_seq_len:
        raise UserError(
            f"--packing.seq_len {config.packing.seq_len} is more than the student's context of {shape.max_seq_len}:"
            " lower it or raise --student.max_seq_len"
        )
    if config.accumulate > config.batch_size:
        raise UserError(f"--accumulate {config.accumulate} micro-batches cannot share {config.batch_size} rows")


def _origin(config: RunConfig, teacher: Teacher, shape: StudentConfig, corpus: Corpus) -> dict[str, Any]:
    """What the run is made of; resolved, so that a default that moved is seen too."""
    settings = {key: value for key, value in asdict(config).items() if key not in {*FREE, "student", "packing", "data"}}
    spec = {key: value for key, value in asdict(teacher.spec).items() if key != "source"}
    return {
        **settings,
        "teacher": spec,
        "student": asdict(shape),
        "packing": {"seq_len": config.packing.seq_len},
        "data": {"sources": config.data, "fingerprint": corpus.fingerprint},
        "tokenizer": teacher.tokenizer.fingerprint,
    }
