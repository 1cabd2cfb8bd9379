"""One optimizer step, in reading order: batch → teacher → student → loss → gradient → weights."""

import logging
import math
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from tutelage.data.batch import Batch
from tutelage.errors import UserError
from tutelage.losses.term import Progress
from tutelage.numbers import perplexity
from tutelage.training.checkpoint import TrainingState
from tutelage.training.config import RunConfig
from tutelage.training.meter import Split
from tutelage.training.optim import clip, learning_rate, set_learning_rate
from tutelage.training.parts import Parts
from tutelage.training.processes import Processes

log = logging.getLogger(__name__)


def train_step(parts: Parts, config: RunConfig, state: TrainingState, interrupted: bool = False) -> dict[str, float]:
    """One optimizer step on the rows of `state.step`, which it advances; returns the row of metrics.

    "interrupted" in the row says whether any process is, as `interrupted` says it of this one. Raises UserError, naming
    the rows, when more steps in a row were not finite than `config.max_skipped` allows.
    """
    started = time.perf_counter()
    split = parts.distiller.split or Split(parts.processes.device)
    split.start()
    batch = parts.loader.batch(state.step)  # of all processes
    rate = learning_rate(state.step, parts.steps, config.optim)
    set_learning_rate(parts.optimizer, rate)
    sums = backward(parts, config, batch, state.step, split)
    flag = torch.tensor(float(interrupted), device=parts.processes.device)
    totals = parts.processes.all_reduce(torch.stack([*sums.values(), flag]))  # one exchange, and one wait below
    *found, stop, norm = torch.cat((totals, clip(parts.distiller, config.optim.clip)[None])).tolist()
    row = {f"train/{name}": value for name, value in zip(sums, found, strict=True)} | {"train/grad_norm": norm}
    if math.isfinite(row["train/loss"]) and math.isfinite(norm):
        parts.optimizer.step()
        state.skipped_in_a_row = 0
    else:
        _skip(row, batch, config, state)
    parts.optimizer.zero_grad()
    split.mark("optimizer")
    state.step += 1
    state.tokens += batch.tokens.numel()
    state.seconds += time.perf_counter() - started
    return row | {"train/perplexity": perplexity(row.get("train/ce", 0.0)), "train/lr": rate, "interrupted": stop}


def backward(parts: Parts, config: RunConfig, batch: Batch, step: int, split: Split) -> dict[str, Tensor]:
    """Adds the gradient of the whole batch's mean loss, by micro-batches; returns this process's share of the logs."""
    objective, processes = parts.distiller.objective, parts.processes
    counts = objective.counts(batch)  # of the whole step, however it is shared
    pieces = processes.shard(batch, config.accumulate)
    split.mark("data")
    sums: dict[str, Tensor] = {}
    for number, piece in enumerate(pieces, 1):
        signal = parts.teacher.signal(piece) if objective.needs else None
        split.mark("teacher")
        with processes.sync(parts.wrapped, now=number == len(pieces)):
            loss, logs = parts.wrapped(piece, signal, counts, Progress(step, max(1, parts.steps)))
            (loss * processes.size).backward()  # gradients are averaged over processes, and a sum is wanted
        split.mark("student")
        sums = {name: value + sums.get(name, 0) for name, value in logs.items()}
    return sums


def rehearse(parts: Parts, config: RunConfig, step: int) -> dict[str, float]:
    """The seconds of one step by its part, which leaves weights, optimizer and random numbers as they were.

    Its learning rate is zero. A teacher with a memory remembers what it was asked.
    """
    split = Split(parts.processes.device)
    parts.distiller.split = split
    with _unchanged(parts):
        split.start()
        backward(parts, config, parts.loader.batch(step), step, split)
        set_learning_rate(parts.optimizer, 0.0)
        if math.isfinite(clip(parts.distiller, config.optim.clip).item()):  # at a rate of zero NaN would still spread
            parts.optimizer.step()
        parts.optimizer.zero_grad()
        split.mark("optimizer")
    return split.read()


@contextmanager
def out_of_memory(config: RunConfig, processes: Processes) -> Iterator[None]:
    """Turns a device's or a host's refusal of memory into one line with the way out."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        refused = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not refused and not re.search("can't allocate memory|out of memory", str(error), re.IGNORECASE):
            raise
        said = " ".join(str(error).split())[:120]
        rows = 2 * config.accumulate * processes.size
        ways = [f"--accumulate {2 * config.accumulate}" if rows <= config.batch_size else "a smaller --batch_size"]
        ways += [] if config.gradient_checkpointing else ["--gradient_checkpointing"]
        ways += ["--precision bf16"] if config.precision == "fp32" else []
        if not processes.first:  # errors are printed by the first process, and this one may be alone with it
            log.error("process %d of %d: out of memory (%s)", processes.rank, processes.size, said)
        raise UserError(
            f"out of memory with {config.batch_size} rows of {config.packing.seq_len} tokens in {config.accumulate}"
            f" micro-batches ({said}): try {', '.join(ways)}, or a smaller --student.preset (see --dry_run)"
        ) from error


def _skip(row: dict[str, float], batch: Batch, config: RunConfig, state: TrainingState) -> None:
    state.skipped += 1
    state.skipped_in_a_row += 1
    loss, norm = row["train/loss"], row["train/grad_norm"]
    log.warning("step %d skipped: loss %s, gradient norm %s", state.step, loss, norm)
    if state.skipped_in_a_row > config.max_skipped:
        rows = ", ".join(f"{key & 2**64 - 1:016x}" for key in batch.keys.tolist())
        raise UserError(
            f"{state.skipped_in_a_row} steps in a row were not finite, the last one step {state.step} on rows {rows}:"
            " lower --optim.lr, try --precision fp32, or look at that text"
        )


@contextmanager
def _unchanged(parts: Parts) -> Iterator[None]:
    """A context after which the optimizer, which has made no step yet, and all generators are as they were."""
    cpu, cuda = torch.get_rng_state(), torch.cuda.get_rng_state_all()
    try:
        yield
    finally:
        parts.optimizer.state.clear()
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
