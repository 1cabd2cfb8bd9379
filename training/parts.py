"""Everything a run is made of, built once from its configuration, in the order the data takes."""

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.data.corpus import Corpus, build_corpus, unigram_counts
from tutelage.data.loader import Loader
from tutelage.errors import UserError
from tutelage.files import cache_directory
from tutelage.kernels.dispatch import use
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
from tutelage.training.processes import Processes
from tutelage.training.sharding import shard, teacher_device

log = logging.getLogger(__name__)

# What may change when a run goes on: none of it decides, but for rounding, which weights come out, or it is meant to.
FREE = {
    "output_dir", "resume", "stop_after", "dry_run", "checkpoint_every", "keep_last", "log_every", "eval_every",
    "eval_rows", "max_skipped", "tracker", "steps", "epochs", "optim", "device", "gradient_checkpointing",
    "teacher_memory", "fsdp", "accumulate", "prompts", "impl",
}  # fmt: skip


@dataclass
class Parts:
    """The path of the data: corpus → loader → teacher → distiller (student and objective) → optimizer."""

    processes: Processes
    teacher: Teacher
    signal: Callable[[Batch], TeacherSignal]  # the teacher's, which may remember
    corpus: Corpus
    loader: Loader
    distiller: Distiller
    wrapped: torch.nn.Module  # the distiller as its processes share it: the one to call
    optimizer: torch.optim.AdamW
    steps: int
    impl: str  # of the kernels
    origin: dict[str, Any]  # what must not change when the run is resumed

    @property
    def student(self) -> Decoder:
        """The model that is trained."""
        return self.distiller.student

    @cached_property
    def unigram_counts(self) -> Tensor:
        """How often the training text has each token `(V,)`, and once more."""
        return unigram_counts(self.corpus, self.vocab_size)

    @property
    def vocab_size(self) -> int:
        """Tokens that are scored."""
        return self.student.config.vocab_size


def build(config: RunConfig, teacher: Teacher | None, processes: Processes | None = None) -> Parts:
    """Builds the parts. Raises UserError for input that cannot work; nothing is written but caches."""
    processes = processes or Processes(config.device)
    impl = use(config.impl, processes.device.type)
    keep_memory()
    torch.ones(64).sqrt()  # the first large threaded sqrt of a process is not bit-reproducible; a small one is
    if config.steps and config.epochs:
        raise UserError(f"--steps {config.steps} and --epochs {config.epochs:g} both say when to end: pass one of them")
    _check_rows(config, processes.size)
    torch.manual_seed(config.seed)
    known = _entry(config, teacher)
    teacher, corpus = processes.raise_together(lambda: _load(config, known, teacher, processes))
    if len({*processes.all_gather(corpus.fingerprint)}) > 1:
        raise UserError(f"--data {config.data or known.data} is not the same text in every process: make it so")
    loader = Loader(corpus, config.batch_size, config.seed, config.max_rows)
    steps = config.steps or max(1, round((config.epochs or 1) * loader.rows_per_epoch / config.batch_size))
    # A row that comes again is remembered, where it comes to the same process and micro-batches of one size give it
    # the same bits.
    repeats = steps * config.batch_size > loader.rows_per_epoch
    remembers = repeats and processes.size == 1 and config.batch_size % config.accumulate == 0
    shape = resolve(config.student, teacher.tokenizer.vocab_size, known.preset)
    _check_length(config, shape)
    student = Decoder(shape)
    student.gradient_checkpointing = config.gradient_checkpointing
    source = teacher.decoder
    # with --fsdp the first process alone has weights to copy, and all get its student
    copies = processes.first or not config.fsdp
    processes.raise_together(lambda: initialise(student, source, config.student.init) if copies else None)
    objective = Objective(config.loss, shape.vocab_size)
    objective.check(teacher)
    distiller = Distiller(student, objective).train()
    if config.fsdp and processes.size == 1:
        log.warning("--fsdp is pointless with one process, which has nobody to share with: going on without it")
    elif config.fsdp:
        shard(distiller, teacher, processes)
    wrapped = processes.wrap(distiller)
    torch.manual_seed(config.seed + processes.rank)  # dropout differs between processes, the first weights must not
    return Parts(
        processes=processes,
        teacher=teacher,
        signal=Memory(teacher, int(config.teacher_memory * 2**30)).signal if remembers else teacher.signal,
        corpus=corpus,
        loader=loader,
        distiller=distiller,
        wrapped=wrapped,
        optimizer=make_optimizer(distiller, config.optim),
        steps=steps,
        impl=impl,
        origin=_origin(config, teacher, shape, corpus),
    )


def _load(
    config: RunConfig, known: TeacherEntry, teacher: Teacher | None, processes: Processes
) -> tuple[Teacher, Corpus]:
    """Teacher and text. A teacher that will be cut up starts on the CPU, as its device may not hold the whole."""
    device = teacher_device(processes, known.quantisation) if config.fsdp else str(processes.device)
    with processes.local_first():
        teacher = teacher or load_teacher(config.teacher, device)
        sources = config.data or known.data
        return teacher, build_corpus(sources, teacher.tokenizer, config.packing, cache_directory() / "data")


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


def _check_rows(config: RunConfig, processes: int) -> None:
    if config.accumulate * processes > config.batch_size:
        among = f" on {processes} processes" if processes > 1 else ""
        raise UserError(
            f"--accumulate {config.accumulate} micro-batches{among} cannot share {config.batch_size} rows:"
            f" raise --batch_size to {config.accumulate * processes} or more"
        )


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
