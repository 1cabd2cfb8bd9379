"""The run: what it is made of is built, and then trained, scored, logged and saved, in reading order."""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tutelage import cli
from tutelage.data.batch import Batch
from tutelage.data.loader import heldout_batches
from tutelage.environment import environment
from tutelage.runs import checkpoints, step_of
from tutelage.teacher.registry import OBJECT, entry, pinned
from tutelage.teacher.signal import Teacher, generator_of
from tutelage.training.allocator import request_huge_pages
from tutelage.training.checkpoint import Saver, TrainingState, find_checkpoint, load_checkpoint, read_state, room
from tutelage.training.config import RunConfig
from tutelage.training.display import Display
from tutelage.training.fidelity import decoder_scorer, fidelity, unigram_loss
from tutelage.training.identity import leaves
from tutelage.training.interrupt import Interrupt
from tutelage.training.meter import Meter, Split
from tutelage.training.optim import schedule_fault
from tutelage.training.parts import Parts, build
from tutelage.training.processes import Processes, Silent
from tutelage.training.profile import Profile
from tutelage.training.run_directory import changes, check_room, open_run, run_path
from tutelage.training.samples import Sample, complete, pair, read_prompts
from tutelage.training.sharding import inference
from tutelage.training.sizing import steps_that_fit
from tutelage.training.step import out_of_memory, train_step
from tutelage.training.trackers import chosen
from tutelage.training.tracking import Tracker

log = logging.getLogger(__name__)
EPOCHS_WORTH_IT = 4
"""Passes over the same text up to which they teach about as much as new text would. arXiv:2305.16264."""


@dataclass(frozen=True)
class Run:
    """A run that ended: where it lies, the step it reached, and its last row of metrics."""

    path: Path
    step: int
    metrics: dict[str, float]


@dataclass
class Session:
    """The run while it goes on."""

    path: Path
    config: RunConfig
    parts: Parts
    state: TrainingState
    prompts: tuple[str, ...]
    saver: Saver
    meter: Meter
    tracker: Tracker | Silent
    display: Display | Silent
    interrupt: Interrupt
    profile: Profile

    @property
    def resized(self) -> bool:
        """Whether the run goes on to another step than its configuration records."""
        return bool(self.config.resume) and any(
            line.startswith("from here on: steps was") for line in changes(self.path, self.config)
        )

    @property
    def interrupted(self) -> bool:
        """Whether someone asked some process to leave; all ask alike, or one would wait for the others for ever."""
        return self.parts.processes.any(bool(self.interrupt.requested))


def distill(config: RunConfig | None = None, *, teacher: Teacher | str | None = None, **fields: Any) -> Run:
    """Trains the student that `config` (with `fields` set otherwise) describes, and scores it on held-out text.

    `teacher` is a name, or an object of your own that satisfies `tutelage.teacher.signal.Teacher`. Raises UserError
    for input that cannot work, before a run directory exists.
    """
    begun = time.perf_counter()
    request_huge_pages()  # before the first tensor
    if isinstance(teacher, str):
        fields, teacher = {**fields, "teacher": teacher}, None
    config = cli.validate(replace(config or RunConfig(), **fields))
    if teacher is not None:  # the record says who taught, and on what
        config = replace(config, teacher=OBJECT + teacher.spec.name, data=config.data or entry("smollm2-135m").data)
    with Processes(config.device) as processes, out_of_memory(config, processes):
        return _run(config, teacher, processes, begun)


def _run(config: RunConfig, teacher: Teacher | None, processes: Processes, begun: float) -> Run:
    together = processes.raise_together
    trackers, prompts = together(lambda: (chosen(config.tracker), read_prompts(config.prompts)))
    path = processes.broadcast(together(lambda: run_path(config) if processes.first else Path()))
    state = TrainingState()
    with ExitStack() as stack:
        enter = stack.enter_context

        def hold() -> None:
            together(lambda: enter(open_run(path, config, lambda: state.step > 0)) if processes.first else None)

        if config.resume:
            hold()  # before a checkpoint is read: nobody else may save one meanwhile
        parts, state, config = _prepare(config, teacher, processes, begun)
        together(lambda: check_room(path, room(parts, config, state, path)) if processes.first else None)
        if not config.resume:
            hold()  # now that nothing about the input is wrong

        settings = leaves(asdict(config)) | leaves(environment(), "env.") | {"chosen.precision": str(parts.precision)}
        split = parts.distiller.split = Split(processes.device)
        session = Session(
            path=path,
            config=config,
            parts=parts,
            state=state,
            prompts=prompts,
            saver=Saver(parts, state, path, config.keep_last),
            meter=Meter(split, parts, config),
            tracker=enter(Tracker(path, trackers, state.step, settings)) if processes.first else Silent(),
            display=enter(Display(parts.steps, state.step)) if processes.first else Silent(),
            interrupt=enter(Interrupt()),
            profile=enter(Profile(path / "profile", processes, config.profile)),
        )
        for line in headline(session) if processes.first else ():
            session.display.say(line)
        processes.started()
        metrics = loop(session)
        together(session.saver.check)  # and nobody leaves before the last step is on disk
        if session.interrupted and processes.first:
            who, end = session.interrupt.requested or "interrupted", f" --steps {parts.steps}" * session.resized
            session.display.say(f"{who}: saved step {state.step}; go on with --resume {path}{end}")
    return Run(path, state.step, metrics)


def _prepare(
    config: RunConfig, teacher: Teacher | None, processes: Processes, begun: float
) -> tuple[Parts, TrainingState, RunConfig]:
    """The parts, the state to go on from, and the configuration with the number of steps that `--minutes` means."""
    state, recorded = TrainingState(), None
    if config.resume:
        checkpoint = find_checkpoint(processes, config.resume)
        recorded = read_state(checkpoint).origin
    parts = build(config, teacher, processes, recorded)
    if teacher is None:
        config = replace(config, teacher=pinned(config.teacher, parts.teacher.spec))
    sized = steps_that_fit(parts, config, time.perf_counter() - begun) if config.minutes else 0
    if config.resume:
        state = processes.raise_together(lambda: load_checkpoint(parts, checkpoint))
    if config.minutes:
        parts.steps = state.step + sized
        config = replace(config, steps=parts.steps, minutes=None)
    state.origin = parts.origin
    if fault := schedule_fault(parts.steps, config.optim):
        log.warning("%s", fault)
    return parts, state, config


def loop(session: Session) -> dict[str, float]:
    """Trains to the last step, or to where someone interrupts; returns the last row of metrics."""
    config, state, parts = session.config, session.state, session.parts
    last = min(parts.steps, config.stop_after or parts.steps)
    metrics: dict[str, float] = {}
    begun, leave = state.step, False
    if state.unscored:  # an evaluation that was interrupted is made up for
        scores, leave = evaluated(session)
        if scores:
            metrics = {**scores, "perf/mean_tokens_per_s": state.tokens_per_s}
            session.tracker.log(state.step, metrics)
            session.saver.save()
    while state.step < last and not leave:
        before = state.seconds
        row = train_step(parts, config, state, bool(session.interrupt.requested))
        leave = row.pop("interrupted") > 0
        session.meter.step(config.batch_size * config.packing.seq_len, state.seconds - before)
        session.profile.step()
        scored = not leave and (state.step == parts.steps or state.step % config.eval_every == 0)
        if scored:
            scores, leave = evaluated(session)
            row |= scores
        if scored or state.step == last or state.step % config.log_every == 0:
            metrics = row | session.meter.read() | {"perf/mean_tokens_per_s": state.tokens_per_s}
            session.tracker.log(state.step, metrics)
            session.display.show(state.step, metrics)
        elif state.step == begun + 1:
            session.display.begin(state.step, state.seconds - before)
        best = state.best is not None and state.best["step"] == state.step
        if state.step % config.checkpoint_every == 0 or state.step == last or leave or best:
            session.saver.save()
    return metrics


def evaluated(session: Session) -> tuple[dict[str, float], bool]:
    """The scores of this step, with samples of both sides written down, and whether someone interrupted meanwhile.

    Then there are no scores, and the run makes up for them when it goes on.
    """
    state = session.state
    state.unscored = True
    try:
        scores = score(session.parts, session.config, lambda: _check_interrupted(session))
        samples = sample(session)
    except _InterruptedError:
        return {}, True
    state.unscored = False
    session.tracker.log_samples(state.step, samples)
    loss = scores["eval/loss"]
    if not math.isfinite(scores["eval/perplexity"]):
        session.display.say(f"the student has diverged (held-out loss {loss:,.1f} nats a token): lower --optim.lr")
    elif session.config.keep_best and (state.best is None or loss < state.best["loss"]):
        state.best = {"step": state.step, "loss": loss}
    return scores, session.interrupted


def score(parts: Parts, config: RunConfig, each: Callable[[], None] = lambda: None) -> dict[str, float]:
    """The student beside its teacher and a unigram model, on the same held-out rows every time.

    `each` is called before every batch, in all processes alike.
    """
    rows = max(1, config.batch_size // (parts.processes.size * config.accumulate))  # as many as fit in training
    batches = list(heldout_batches(parts.corpus, rows, config.eval_rows))

    def watched() -> Iterator[Batch]:
        for batch in parts.processes.shard_batches(batches):
            each()
            yield batch

    scorer = decoder_scorer(parts.student, parts.precision.student)
    with inference(parts.distiller):
        result = fidelity(scorer, parts.teacher.signal, watched(), parts.vocab_size, parts.processes.all_reduce)
    found = {**result.metrics(), "unigram_loss": unigram_loss(parts.unigram_counts, batches)}
    sizes = {"student": parts.student.config.n_parameters, "teacher": parts.teacher.spec.n_parameters}
    return {f"eval/{name}": value for name, value in found.items()} | {f"size/{k}": float(v) for k, v in sizes.items()}


def sample(session: Session) -> list[Sample]:
    """The prompts completed by both sides; several processes generate together, and cut nothing short."""
    parts, prompts, processes = session.parts, session.prompts, session.parts.processes

    def stop() -> bool:
        return processes.size == 1 and bool(session.interrupt.requested)

    with inference(parts.distiller):
        sides = (generator_of(parts.teacher), parts.student)
        done = [complete(model, parts.tokenizer, processes, prompts, stop) for model in sides]
    _check_interrupted(session)
    return pair(prompts, *done)


def headline(session: Session) -> Iterator[str]:
    """What is about to happen, in two lines, and what the configuration changes of a run that goes on."""
    parts, config = session.parts, session.config
    shape, spec = parts.student.config, parts.teacher.spec
    student = f"{shape.n_layers} layers, {shape.n_parameters / 1e6:.1f}M parameters, init {config.student.init}"
    rows = f"{parts.steps:,} steps of {config.batch_size} × {config.packing.seq_len} tokens"
    how = f"{parts.impl} kernels, matmuls in {parts.precision}"
    yield f"{spec.name} ({spec.n_parameters / 1e6:.1f}M) teaches a student of {student}: {rows}, {how}"
    text = sum(len(packed.stream) for packed in parts.corpus.train)
    epochs = parts.steps * config.batch_size / parts.loader.rows_per_epoch
    yield f"text: {text:,} tokens; an epoch is {parts.loader.rows_per_epoch:,} rows, and this is {epochs:,.2g} epochs"
    if epochs > EPOCHS_WORTH_IT:
        yield f"warning: beyond {EPOCHS_WORTH_IT} epochs text teaches less and less: add --data, or lower --steps"
    ahead = [str(step_of(path)) for path in checkpoints(session.path) if step_of(path) > session.state.step]
    if ahead:
        yield f"from step {session.state.step}: the checkpoints ahead of it ({', '.join(ahead)}) go at the next save"
    yield from changes(session.path, config)


class _InterruptedError(Exception):
    """Someone asked for the end while the student was evaluated."""


def _check_interrupted(session: Session) -> None:
    if session.interrupted:
        raise _InterruptedError
