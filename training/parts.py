"""Everything a run is made of, built once from its configuration, in the order the data takes."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tutelage.data.corpus import Corpus, build_corpus, unigram_counts
from tutelage.data.loader import Loader
from tutelage.data.tokenizer import Tokenizer, check_fingerprint
from tutelage.errors import UserError
from tutelage.files import cache_directory
from tutelage.kernels.dispatch import use
from tutelage.losses.objective import Objective
from tutelage.student.config import StudentConfig
from tutelage.student.decoder import Decoder
from tutelage.student.initialise import initialise, read_start, shape_of
from tutelage.student.source import INITS
from tutelage.teacher.memory import Memory, bytes_needed
from tutelage.teacher.registry import EMBEDDED, TeacherEntry, entry, load_teacher
from tutelage.teacher.signal import Teacher, decoder_of, tokenizer_of
from tutelage.training.allocator import keep_memory
from tutelage.training.config import RunConfig
from tutelage.training.distiller import Distiller
from tutelage.training.identity import identity, upgrade_origin
from tutelage.training.optim import make_optimizer
from tutelage.training.precision import DTYPES, Precision, Widths, choose
from tutelage.training.processes import Processes
from tutelage.training.sharding import shard, teacher_device

log = logging.getLogger(__name__)
GIB = 2**30
UNKNOWN_VOCABULARY = 49_152
"""Tokens of a teacher that says so only once it is loaded."""


@dataclass
class Parts:
    """The path of the data: corpus → loader → teacher → distiller (student and objective) → optimizer."""

    processes: Processes
    teacher: Teacher
    tokenizer: Tokenizer
    corpus: Corpus
    loader: Loader
    distiller: Distiller
    wrapped: torch.nn.Module  # the distiller as its processes share it: the one to call
    optimizer: torch.optim.AdamW
    steps: int  # 0 where they are yet to be sized by --minutes
    impl: str  # of the kernels
    precision: Precision
    origin: dict[str, Any]  # what must not change when the run is resumed

    @property
    def student(self) -> Decoder:
        """The model that is trained."""
        return self.distiller.student

    @property
    def remembers(self) -> bool:
        """Whether the teacher runs once per row."""
        return isinstance(self.teacher, Memory)

    @cached_property
    def unigram_counts(self) -> Tensor:
        """How often the training text has each token `(V,)`, and once more."""
        return unigram_counts(self.corpus, self.vocab_size)

    @property
    def vocab_size(self) -> int:
        """Tokens that are scored."""
        return self.student.config.vocab_size


def build(
    config: RunConfig, teacher: Teacher | None, processes: Processes | None = None,
    recorded: Mapping[str, Any] | None = None,
) -> Parts:  # fmt: skip
    """Builds the parts; `recorded` is the origin of the run that goes on, which decides the precision.

    Raises UserError for input that cannot work; nothing is written but caches.
    """
    processes = processes or Processes(config.device)
    impl = use(config.impl, processes.device)
    torch.ones(64).sqrt()  # the first large threaded sqrt of a process is not bit-reproducible; a small one is
    _check_end(config)
    _check_rows(config, processes.size)
    torch.manual_seed(config.seed)
    known = _entry(config, teacher)
    shape = processes.raise_together(lambda: planned_shape(config, known, _recorded_shape(recorded)))
    precision = _precision(config, known, shape, processes, recorded)
    teacher, tokenizer, corpus = processes.raise_together(lambda: _load(config, known, teacher, processes, precision))
    if processes.device.type == "cpu":
        keep_memory()  # after loading, whose peak need not stay this process's
    if len({*processes.all_gather(corpus.fingerprint)}) > 1:
        raise UserError(f"--data {config.data or known.data} is not the same text in every process: make it so")
    loader = Loader(corpus, config.batch_size, config.seed, config.max_rows)
    shape = replace(shape, vocab_size=tokenizer.vocab_size)
    check_length(config, shape, teacher.spec.context)
    student = Decoder(shape) if recorded else _first_student(config, shape, decoder_of(teacher), tokenizer, processes)
    shape = student.config
    student.gradient_checkpointing = config.gradient_checkpointing
    objective = Objective(config.loss, shape.vocab_size)
    objective.check(teacher)
    distiller = Distiller(student, objective, precision).train()
    if config.compile if config.compile is not None else processes.device.type == "cuda":
        student.compile_blocks()
    if config.fsdp and processes.size == 1:
        log.warning("--fsdp is pointless with one process, which has nobody to share with: going on without it")
    elif config.fsdp:
        shard(distiller, teacher, processes)
    wrapped = processes.wrap(distiller)
    torch.manual_seed(config.seed + processes.rank)  # dropout differs between processes, the first weights must not
    parts = Parts(
        processes=processes,
        teacher=teacher,
        tokenizer=tokenizer,
        corpus=corpus,
        loader=loader,
        distiller=distiller,
        wrapped=wrapped,
        optimizer=make_optimizer(distiller, config.optim),
        steps=_steps(config, loader),
        impl=impl,
        precision=precision,
        origin=identity(config, teacher.spec, shape, tokenizer, corpus, precision, recorded),
    )
    parts.teacher = _remembering(parts, config)
    return parts


def planned_shape(config: RunConfig, known: TeacherEntry, then: StudentConfig | None = None) -> StudentConfig:
    """The student's shape as far as it is known before anything is loaded; `then` is that of a run that goes on."""
    return shape_of(config.student, known.vocab_size or UNKNOWN_VOCABULARY, known.preset, then)


def _recorded_shape(recorded: Mapping[str, Any] | None) -> StudentConfig | None:
    """The shape that a run began with; a field that this version does not know is refused when the rest is there."""
    then = upgrade_origin(recorded or {}).get("student")
    known = {field.name for field in fields(StudentConfig)}
    return then and StudentConfig(**{name: value for name, value in then.items() if name in known})


def _first_student(
    config: RunConfig, shape: StudentConfig, teacher: Decoder | None, tokenizer: Tokenizer, processes: Processes
) -> Decoder:
    """The student with its first weights, which the first process copies and all get when it is wrapped or sharded."""
    init, source = config.student.init, teacher
    if init not in INITS:
        source = processes.raise_together(lambda: read_start(init, tokenizer) if processes.first else None)
        tied = processes.broadcast(source is not None and source.config.tie_embeddings)
        shape = replace(shape, tie_embeddings=tied)  # as its matrices are, whatever its config.json says
    student = Decoder(shape)
    processes.raise_together(lambda: initialise(student, source, init) if processes.first else None)
    return student


def _precision(
    config: RunConfig,
    known: TeacherEntry,
    shape: StudentConfig,
    processes: Processes,
    recorded: Mapping[str, Any] | None,
) -> Precision:
    """What the run began with, or what is chosen now."""
    if recorded is not None and "precision" in recorded:
        precision = Precision(**upgrade_origin(recorded)["precision"])
        if config.precision not in ("auto", precision.student):
            raise UserError(
                f"--precision {config.precision}: the run began with {precision} and keeps it:"
                " leave the flag out, or start another run"
            )
        return precision
    return choose_precision(config, known, shape, processes)


def choose_precision(config: RunConfig, known: TeacherEntry, shape: StudentConfig, processes: Processes) -> Precision:
    """What `--precision` says of these shapes on rank 0's device, for all processes."""
    rows = -(-config.batch_size // (config.accumulate * processes.size))
    widths = Widths(
        tokens=rows * config.packing.seq_len,
        student=shape.d_model,
        student_ff=shape.d_ff,
        teacher=known.d_model,
        vocab_size=shape.vocab_size,
        teacher_bytes=0 if known.quantisation else 2 * known.n_parameters,
    )
    asked = processes.raise_together(
        lambda: choose(config.precision, processes.device, widths) if processes.first else Precision()
    )
    return processes.broadcast(asked)


def _load(
    config: RunConfig, known: TeacherEntry, teacher: Teacher | None, processes: Processes, precision: Precision
) -> tuple[Teacher, Tokenizer, Corpus]:
    """Teacher, vocabulary and text."""
    device = teacher_device(processes, known.quantisation) if config.fsdp else str(processes.device)
    with processes.local_first():
        teacher = teacher or load_teacher(
            config.teacher, device, dtype=DTYPES[precision.teacher], quantisation=config.teacher_quantization
        )
        sources = config.data or known.data
        tokenizer = _tokenizer(config, teacher)
        return teacher, tokenizer, build_corpus(sources, tokenizer, config.packing, cache_directory() / "data")


def _tokenizer(config: RunConfig, teacher: Teacher) -> Tokenizer:
    """The one that is named, which must say what the teacher's says, or the teacher's."""
    own, name = tokenizer_of(teacher), teacher.spec.name
    if config.tokenizer is None:
        if own is None:
            raise UserError(f"teacher {name} brings no tokenizer: pass --tokenizer DIRECTORY")
        return own
    named = Tokenizer.from_directory(config.tokenizer).within(teacher.spec.vocab_size, name)
    if own is not None:
        check_fingerprint(own.fingerprint, named.fingerprint, f"--tokenizer {config.tokenizer}")
    return named


def _steps(config: RunConfig, loader: Loader) -> int:
    if config.minutes:
        return 0
    return int(config.steps or max(1, round((config.epochs or 1) * loader.rows_per_epoch / config.batch_size)))


def _remembering(parts: Parts, config: RunConfig) -> Teacher:
    """The teacher, with a memory where rows come again and all of them fit.

    Only where a row comes again to the same process, and micro-batches of one size give it the same bits.
    """
    rows, spec = parts.loader.rows_per_epoch, parts.teacher.spec
    again = parts.steps == 0 or parts.steps * config.batch_size > rows
    alone = parts.processes.size == 1 and config.batch_size % config.accumulate == 0
    again &= all(weight == int(weight) for weight in parts.corpus.weights)  # or every epoch has other rows
    if not (again and alone and config.teacher_memory and parts.distiller.objective.needs):
        return parts.teacher
    rows += min(config.eval_rows, len(parts.corpus.heldout))
    needed = bytes_needed(spec.d_model, rows, config.packing.seq_len, DTYPES[parts.precision.teacher])
    if needed > config.teacher_memory * GIB:
        log.info(
            "rows come again, and the teacher answers them again: its answers take %.1f GiB, --teacher_memory is %g",
            needed / GIB,
            config.teacher_memory,
        )
        return parts.teacher
    return Memory(parts.teacher, needed)


def _entry(config: RunConfig, teacher: Teacher | None) -> TeacherEntry:
    if teacher is None:
        return entry(config.teacher, config.teacher_quantization)
    spec = teacher.spec
    return TeacherEntry(
        spec.source, spec.n_parameters, spec.d_model, spec.vocab_size, 0, preset="30m", data=entry(EMBEDDED).data
    )


def _check_end(config: RunConfig) -> None:
    given = {"steps": config.steps, "epochs": config.epochs, "minutes": config.minutes}
    said = [f"--{name} {value:g}" for name, value in given.items() if value]
    if len(said) > 1:
        raise UserError(f"{' and '.join(said)} each say when to end: pass one of them")


def check_length(config: RunConfig, shape: StudentConfig, teacher: int | None) -> None:
    """Raises UserError where rows are longer than the student's or the teacher's context."""
    rows = f"--packing.seq_len {config.packing.seq_len} is more than the"
    if config.packing.seq_len > shape.max_seq_len:
        raise UserError(f"{rows} student's context of {shape.max_seq_len}: lower it or raise --student.max_seq_len")
    if teacher is not None and config.packing.seq_len > teacher:
        raise UserError(f"{rows} context of teacher {config.teacher}, which is {teacher}: lower it")


def _check_rows(config: RunConfig, processes: int) -> None:
    if config.accumulate * processes > config.batch_size:
        among = f" on {processes} processes" if processes > 1 else ""
        raise UserError(
            f"--accumulate {config.accumulate} micro-batches{among} cannot share {config.batch_size} rows:"
            f" raise --batch_size to {config.accumulate * processes} or more"
        )
