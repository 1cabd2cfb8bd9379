#!/usr/bin/env python3
"""Distil a teacher into a student: `python train.py --teacher smollm2-135m --data stdlib --steps 500`.

text → tokens → packed batch → teacher signal → student hidden → fused loss → optimizer → checkpoint → score:
`training/parts.py` builds what the configuration names; the loop is here, in reading order.
"""

import logging
import math
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutelage import cli
from tutelage.errors import UserError
from tutelage.training.config import RunConfig

if TYPE_CHECKING:  # torch comes after the flags are checked, so that --help and typing errors are quick
    from tutelage.teacher.signal import Teacher
    from tutelage.training.checkpoint import Saver, TrainingState
    from tutelage.training.display import Display
    from tutelage.training.interrupt import Interrupt
    from tutelage.training.parts import Parts
    from tutelage.training.processes import Silent
    from tutelage.training.tracking import Tracker

log = logging.getLogger("tutelage.train")


@dataclass(frozen=True)
class Run:
    """A run that ended: where it lies, the step it reached, and its last row of metrics."""

    path: Path
    step: int
    metrics: dict[str, float]


def distill(config: RunConfig | None = None, *, teacher: "Teacher | str | None" = None, **fields: Any) -> Run:
    """Trains the student that `config` (with `fields` set otherwise) describes, and scores it on held-out text.

    `teacher` is a name, or an object of your own that satisfies `tutelage.teacher.signal.Teacher`. Raises UserError
    for input that cannot work, before a run directory exists.
    """
    from tutelage.training.checkpoint import Saver, TrainingState, load_checkpoint, room
    from tutelage.training.display import Display
    from tutelage.training.interrupt import Interrupt
    from tutelage.training.parts import build
    from tutelage.training.processes import Processes, Silent
    from tutelage.training.run_directory import changes, check_room, environment, leaves, open_run, run_path
    from tutelage.training.samples import read_prompts
    from tutelage.training.trackers import chosen
    from tutelage.training.tracking import Tracker

    if isinstance(teacher, str):
        fields, teacher = {**fields, "teacher": teacher}, None
    config = replace(config or RunConfig(), **fields)
    processes = Processes(config.device)
    trackers, prompts = processes.raise_together(lambda: (chosen(config.tracker), read_prompts(config.prompts)))
    path = processes.broadcast(processes.raise_together(lambda: run_path(config) if processes.first else Path()))

    with ExitStack() as stack:
        enter = stack.enter_context
        stack.callback(processes.close)

        def hold() -> None:
            processes.raise_together(lambda: enter(open_run(path, config)) if processes.first else None)

        if config.resume:
            hold()  # before a checkpoint is read: nobody else may save one meanwhile
        parts = build(config, teacher, processes)
        state = processes.raise_together(lambda: load_checkpoint(parts, path)) if config.resume else TrainingState()
        state.origin = parts.origin
        processes.raise_together(
            lambda: check_room(path, room(parts, config, state, path)) if processes.first else None
        )
        if not config.resume:
            hold()  # now that nothing about the input is wrong

        settings = leaves(asdict(config)) | leaves(environment(), "env.")
        tracker = enter(Tracker(path, trackers, state.step, settings)) if processes.first else Silent()
        display = enter(Display(parts.steps, state.step)) if processes.first else Silent()
        interrupt = enter(Interrupt())
        display.say(_headline(parts, config))
        for line in changes(path, config) if processes.first else []:
            display.say(line)
        saver = Saver(parts, state, path, config.keep_last)
        processes.started()
        metrics = loop(parts, config, state, prompts, saver, tracker, display, interrupt)
        processes.raise_together(saver.check)  # and nobody leaves before the last step is on disk
        if processes.any(bool(interrupt.requested)):
            display.say(f"{interrupt.requested or 'interrupted'}: saved step {state.step}; go on with --resume {path}")
    return Run(path, state.step, metrics)


def loop(
    parts: "Parts",
    config: RunConfig,
    state: "TrainingState",
    prompts: Sequence[str],
    saver: "Saver",
    tracker: "Tracker | Silent",
    display: "Display | Silent",
    interrupt: "Interrupt",
) -> dict[str, float]:
    """Trains from `state` to the last step, or to where someone interrupts; returns the last row of metrics."""
    last = min(parts.steps, config.stop_after or parts.steps)
    metrics: dict[str, float] = {}
    meter = Meter(state)
    leave = False
    while state.step < last and not leave:
        row = train_step(parts, config, state)
        leave = parts.processes.any(bool(interrupt.requested))
        scored = state.step == parts.steps or state.step % config.eval_every == 0
        if scored:
            row |= score(parts, config)
            tracker.log_samples(state.step, samples(parts, prompts))
        if scored or state.step == last or state.step % config.log_every == 0:
            metrics = row | meter.read(state)
            tracker.log(state.step, metrics)
            display.show(state.step, metrics)
        if state.step % config.checkpoint_every == 0 or state.step == last or leave:
            saver.save()
    return metrics


def train_step(parts: "Parts", config: RunConfig, state: "TrainingState") -> dict[str, float]:
    """One optimizer step on the rows of `state.step`, which it advances; returns the row of metrics.

    Raises UserError, naming the rows, when more steps were not finite than `config.max_skipped` allows.
    """
    import torch

    from tutelage.losses.term import Progress
    from tutelage.training.optim import clip, learning_rate, set_learning_rate

    started = time.perf_counter()
    objective = parts.distiller.objective
    processes = parts.processes
    batch = parts.loader.batch(state.step)  # of all processes
    counts = objective.counts(batch)  # of the whole step, however it is shared
    rate = learning_rate(state.step, parts.steps, config.optim)
    set_learning_rate(parts.optimizer, rate)
    sums: dict[str, Any] = {}
    pieces = processes.shard(batch, config.accumulate)
    for number, piece in enumerate(pieces, 1):
        signal = parts.signal(piece) if objective.needs else None
        with processes.sync(parts.wrapped, now=number == len(pieces)):
            loss, logs = parts.wrapped(piece, signal, counts, Progress(state.step, parts.steps))
            (loss * processes.size).backward()  # gradients are averaged over processes, and a sum is wanted
        sums = {name: value + sums.get(name, 0) for name, value in logs.items()}
    totals = processes.all_reduce(torch.stack([*sums.values()]))
    found = torch.cat((totals, clip(parts.distiller, config.optim.clip)[None])).tolist()
    row = {f"train/{name}": value for name, value in zip((*sums, "grad_norm"), found, strict=True)}
    if math.isfinite(row["train/loss"]) and math.isfinite(row["train/grad_norm"]):
        parts.optimizer.step()
    else:
        state.skipped += 1
        loss, norm = row["train/loss"], row["train/grad_norm"]
        log.warning("step %d skipped: loss %s, gradient norm %s", state.step, loss, norm)
        if state.skipped > config.max_skipped:
            rows = ", ".join(f"{key & 2**64 - 1:016x}" for key in batch.keys.tolist())
            raise UserError(
                f"{state.skipped} steps were not finite, the last one step {state.step} on rows {rows}:"
                " lower --optim.lr, try --precision fp32, or look at that text"
            )
    parts.optimizer.zero_grad()
    state.step += 1
    state.tokens += batch.tokens.numel()
    state.seconds += time.perf_counter() - started
    return row | {"train/perplexity": math.exp(min(row.get("train/ce", 0.0), 700.0)), "train/lr": rate}


def score(parts: "Parts", config: RunConfig) -> dict[str, float]:
    """The student beside its teacher and a unigram model, on the same held-out rows every time."""
    from tutelage.data.loader import heldout_batches
    from tutelage.evaluation.fidelity import decoder_scorer, fidelity, unigram_loss
    from tutelage.training.sharding import inference

    rows = max(1, config.batch_size // (parts.processes.size * config.accumulate))  # as many as fit in training
    batches = list(heldout_batches(parts.corpus, rows, config.eval_rows))
    scorer, mine = decoder_scorer(parts.student, config.precision), parts.processes.shard_batches(batches)
    with inference(parts.distiller):
        result = fidelity(scorer, parts.teacher.signal, mine, parts.vocab_size, parts.processes.all_reduce)
    unigram = unigram_loss(parts.unigram_counts, batches)
    found = {**result.metrics(), "unigram_loss": unigram}
    sizes = {"student": parts.student.config.n_parameters, "teacher": parts.teacher.spec.n_parameters}
    return {f"eval/{name}": value for name, value in found.items()} | {f"size/{k}": float(v) for k, v in sizes.items()}


def samples(parts: "Parts", prompts: Sequence[str]) -> list[Any]:
    """The prompts completed by both sides."""
    from tutelage.training.samples import complete, pair
    from tutelage.training.sharding import inference

    processes, tokenizer = parts.processes, parts.teacher.tokenizer
    with inference(parts.distiller):
        sides = (parts.teacher.generator(), parts.student)
        return pair(prompts, *(complete(model, tokenizer, processes, prompts) for model in sides))


def _headline(parts: "Parts", config: RunConfig) -> str:
    shape, spec = parts.student.config, parts.teacher.spec
    rows = f"{parts.steps:,} steps of {config.batch_size} × {config.packing.seq_len} tokens"
    student = f"{shape.n_layers} layers, {shape.n_parameters / 1e6:.1f}M parameters, init {config.student.init}"
    return f"{spec.name} ({spec.n_parameters / 1e6:.1f}M) teaches a student of {student}: {rows}, {parts.impl} kernels"


class Meter:
    """Tokens per second of training proper, since the last reading."""

    def __init__(self, state: "TrainingState") -> None:
        self.tokens, self.seconds, self.step = state.tokens, state.seconds, state.step

    def read(self, state: "TrainingState") -> dict[str, float]:
        """The rates since the last reading, and of the whole run."""
        seconds, steps = state.seconds - self.seconds, state.step - self.step
        rates = {
            "perf/tokens_per_s": (state.tokens - self.tokens) / max(seconds, 1e-9),
            "perf/seconds_per_step": seconds / max(steps, 1),
            "perf/mean_tokens_per_s": state.tokens / max(state.seconds, 1e-9),
        }
        self.tokens, self.seconds, self.step = state.tokens, state.seconds, state.step
        return rates


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    logging.basicConfig(level=logging.INFO if cli.speaks() else logging.ERROR, format="%(message)s")
    return cli.run(lambda: _command(list(sys.argv[1:] if argv is None else argv)))


def _command(argv: list[str]) -> None:
    about = "Distil a code model's next-token distribution into a small decoder of your own."
    from tutelage.training.run_directory import run_path

    config = cli.parse(RunConfig, argv, prog="train.py", description=about)
    if config.resume:
        run_path(config)  # says so where there is no run
        # the run's own configuration, under what this command line says
        recorded = str(Path(config.resume) / "config.yaml")
        config = cli.parse(RunConfig, ["--config", recorded, *argv], prog="train.py", description=about)
    if config.dry_run:
        from tutelage.training.plan import show

        return show(config)
    run = distill(config)
    from tutelage.training.display import summary

    if cli.speaks():
        summary(run.path, run.step, run.metrics)


if __name__ == "__main__":
    sys.exit(main())
