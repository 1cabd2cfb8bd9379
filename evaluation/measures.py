"""The measurements by name, and what they share: held-out text and a teacher, loaded once and only if needed."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path

import torch

from tutelage.data.batch import Batch
from tutelage.data.corpus import build_corpus
from tutelage.data.loader import heldout_batches
from tutelage.data.tokenizer import check_fingerprint
from tutelage.errors import UserError
from tutelage.evaluation.candidate import Candidate, load_candidate
from tutelage.evaluation.closeness import closeness
from tutelage.evaluation.config import TEACHER, EvaluateConfig
from tutelage.evaluation.latency import NEW_TOKENS, PROMPT_TOKENS, latency
from tutelage.evaluation.passing import pass_at_k
from tutelage.evaluation.precision import choose_precision
from tutelage.evaluation.problem_sets import PROBLEM_SETS, load_problems
from tutelage.evaluation.problems import ProblemSet
from tutelage.evaluation.report import Measured
from tutelage.files import cache_directory
from tutelage.kernels.reference import IGNORE
from tutelage.numbers import perplexity
from tutelage.teacher.registry import entry
from tutelage.training.config import RunConfig
from tutelage.training.devices import find_device
from tutelage.training.fidelity import perplexity_loss

log = logging.getLogger(__name__)
DIVERGED = 4.0
"""Nats of a model that has diverged, as a multiple of those of guessing."""


@dataclass(eq=False)
class Bench:
    """What the measurements of one call share."""

    config: EvaluateConfig
    recorded: RunConfig  # of the run under evaluation
    output: Path

    @property
    def data(self) -> str:
        """The sources whose held-out part is scored."""
        return self.config.data or self.recorded.data or entry(self.recorded.teacher).data

    @property
    def device(self) -> torch.device:
        """Where the models run."""
        return find_device(self.config.device)

    def load(self, name: str) -> Candidate:
        """A model by its name, on the device and in the precision that were asked for."""
        precision = choose_precision(self.config.precision, self.device)
        return load_candidate(name, str(self.device), precision, self._quantisation(name))

    def _quantisation(self, name: str) -> str | None:
        """How a teacher's weights are packed: as the command says, or as in the run that it taught."""
        if not name.startswith(TEACHER):
            return None
        taught = name == TEACHER + self.recorded.teacher
        return self.config.teacher_quantization or (self.recorded.teacher_quantization if taught else None)

    @cached_property
    def teacher(self) -> Candidate:
        """The reference of fidelity."""
        return self.load(TEACHER + (self.config.teacher or self.recorded.teacher))

    @cache  # noqa: B019  # a bench lives as long as the command
    def problems(self, which: str) -> ProblemSet:
        """A problem set, loaded and checked once."""
        return load_problems(which, self.config)

    def heldout(self, candidate: Candidate) -> list[Batch]:
        """Held-out rows in a model's vocabulary, laid out as in training. Raises UserError beyond its context."""
        rows, context, tokenizer = self.recorded.packing.seq_len, candidate.generator.context, candidate.tokenizer
        if context is not None and rows > context:
            raise UserError(
                f"held-out rows of {rows} tokens are more than {candidate.name} can read, which is {context}:"
                " leave it out of --perplexity and --fidelity"
            )
        corpus = build_corpus(self.data, tokenizer, self.recorded.packing, cache_directory() / "data")
        batches = heldout_batches(corpus, self.config.batch_size, self.config.eval_rows)
        return [batch.to(self.device) for batch in batches]


def measure_passing(which: str, candidate: Candidate, bench: Bench, into: Measured) -> None:
    """pass@k, its intervals, and how the completions ended."""
    problems = bench.problems(which)
    name, scores = problems.name, pass_at_k(candidate, problems, bench.config, bench.output)
    counts = {"solved": len(scores.solved), "by_upstream_oracle": len(scores.upstream)}
    counts |= {verdict.lower(): count for verdict, count in scores.verdicts.items()}
    into.metrics |= {f"{name}/{key}": value for key, value in (scores.metrics | counts).items()}
    into.intervals |= {f"{name}/{key}": value for key, value in scores.intervals.items()}
    into.scores[name] = scores
    into.details[name] = {
        "passes": scores.passes, "failures": scores.failures, "upstream": scores.upstream, "samples": scores.file,
        "prompt_style": scores.prompt_style,
    }  # fmt: skip


def measure_perplexity(candidate: Candidate, bench: Bench, into: Measured) -> None:
    """Loss and perplexity on held-out text; bits per byte, which other vocabularies can be compared by."""
    tokenizer = candidate.tokenizer
    batches = bench.heldout(candidate)
    loss = perplexity_loss(candidate.scorer, batches, tokenizer.vocab_size)
    targets = [token for batch in batches for token in batch.targets[batch.targets != IGNORE].tolist()]
    n_bytes = sum(len(tokenizer.token_bytes(token)) for token in targets if token not in tokenizer.special_ids)
    _tell_divergence(candidate.name, "held-out loss", loss, tokenizer.vocab_size, into)
    into.metrics |= {
        "perplexity/loss": loss,
        "perplexity/perplexity": perplexity(loss),
        "perplexity/bits_per_byte": loss * len(targets) / n_bytes / math.log(2),
    }


def measure_fidelity(candidate: Candidate, bench: Bench, into: Measured) -> None:
    """Closeness to the teacher, in the mean and in depth; of the teacher itself there is nothing to say."""
    if candidate.name == bench.teacher.name:
        return
    where, expected = f"{candidate.name} and {bench.teacher.name}", bench.teacher.tokenizer.fingerprint
    if not bench.config.fidelity and candidate.tokenizer.fingerprint != expected:
        log.warning("%s have different vocabularies: the report has no fidelity of the first", where)
        return
    check_fingerprint(expected, candidate.tokenizer.fingerprint, where)
    batches = bench.heldout(candidate)
    models, vocab_size = (candidate.scorer, bench.teacher.scorer), candidate.tokenizer.vocab_size
    found = closeness(*models, batches, vocab_size, candidate.tokenizer)
    _tell_divergence(candidate.name, "KL from its teacher", found.kl, vocab_size, into)
    into.metrics |= {f"fidelity/{key}": getattr(found, key) for key in ("kl", "agreement", "acceptance")}
    into.metrics["fidelity/calibration_error"] = found.student.error
    into.metrics["fidelity/calibration_error_of_teacher"] = found.teacher.error
    into.details["fidelity"] = found.plain()


def _tell_divergence(name: str, what: str, nats: float, vocab_size: int, into: Measured) -> None:
    """Says, once for each model, that its training has failed, where it is far worse than guessing."""
    guessing = math.log(vocab_size)
    if not nats <= DIVERGED * guessing and "diverged" not in into.details:
        told = f"{name} has diverged: its {what} is {nats:,.4g} nats per token, that of guessing {guessing:.1f}"
        into.details["diverged"] = told
        log.warning("%s: train it again with a lower --optim.lr", told)


def measure_latency(candidate: Candidate, bench: Bench, into: Measured) -> None:
    """Times and sizes."""
    context, needed = candidate.generator.context, PROMPT_TOKENS + NEW_TOKENS
    if context is not None and context < needed:
        raise UserError(f"--latency takes {needed} tokens, {candidate.name} can read {context}: leave it out")
    times = latency(candidate.generator, candidate.tokenizer.vocab_size, str(bench.device))
    into.metrics |= {"size/parameters": candidate.n_parameters, "size/bytes": candidate.n_bytes}
    if candidate.disk_bytes:
        into.metrics["size/disk_bytes"] = candidate.disk_bytes
    into.metrics |= {f"latency/{key}": value for key, value in times.items()}


MEASURES: dict[str, Callable[[Candidate, Bench, Measured], None]] = {
    **{which: partial(measure_passing, which) for which in PROBLEM_SETS},
    "perplexity": measure_perplexity,
    "fidelity": measure_fidelity,
    "latency": measure_latency,
}
