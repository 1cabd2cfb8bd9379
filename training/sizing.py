"""`--minutes`: how many steps fit, from a few that are timed; the number is written down, so that the run repeats."""

import time

from tutelage.errors import UserError
from tutelage.training.config import RunConfig
from tutelage.training.parts import Parts
from tutelage.training.step import rehearse

LAPS = 3
"""Steps that are timed, after one that is not: it compiles, and meets every page of memory for the first time."""
SHARE = 0.08
"""Of the time, what timing may take before it ends early."""
MARGIN = 0.9
"""Of the time, what is planned with: samples and saves take some, and machines have neighbours."""


def timed_steps(parts: Parts, config: RunConfig, seconds: float) -> dict[str, float]:
    """The seconds of a step by its part: the fastest of a few, timed in about `seconds`; every process must ask."""
    begun = time.perf_counter()
    laps = [rehearse(parts, config, 0)]
    while len(laps) <= LAPS and parts.processes.broadcast(time.perf_counter() - begun < seconds):
        laps.append(rehearse(parts, config, len(laps)))
    return min(laps[1:] or laps, key=lambda lap: sum(lap.values()))


def steps_that_fit(parts: Parts, config: RunConfig, elapsed: float) -> int:
    """Steps for `config.minutes` of wall-clock time, of which `elapsed` seconds are over; the same in every process.

    Evaluations are paid for out of it too. Raises UserError where not one step fits.
    """
    whole = 60 * float(config.minutes or 0)
    begun = time.perf_counter()
    step = timed_steps(parts, config, SHARE * whole)
    elapsed += time.perf_counter() - begun
    count = parts.processes.broadcast(fitting(step, parts, config, MARGIN * whole - elapsed))
    if count < 1:
        raise UserError(
            f"--minutes {config.minutes:g} is too short: starting took {elapsed:.0f} s, a step takes"
            f" {sum(step.values()):.1f} s and the evaluation {evaluation_seconds(step, config):.0f} s: raise it, or"
            " lower --eval_rows"
        )
    return count


def fitting(step: dict[str, float], parts: Parts, config: RunConfig, seconds: float) -> int:
    """The most steps whose time, with that of their evaluations, is within `seconds`."""
    first, later = sum(step.values()), sum(step.values()) - step.get("teacher", 0.0)
    asked = parts.loader.steps_per_epoch if parts.remembers else 10**12  # later on the teacher is remembered
    evaluation = evaluation_seconds(step, config)

    def needed(steps: int) -> float:
        scored = 1 + (steps - 1) // config.eval_every
        return float(min(steps, asked) * first + max(0, steps - asked) * later + scored * evaluation)

    low, high = 0, max(1, int(seconds / max(min(first, later), 1e-6)) + 1)
    while low < high:  # the largest that fits
        middle = (low + high + 1) // 2
        low, high = (middle, high) if needed(middle) <= seconds else (low, middle - 1)
    return low


def evaluation_seconds(step: dict[str, float], config: RunConfig) -> float:
    """Of the held-out rows, estimated from a step: both models forward, and both heads with their softmaxes."""
    batches = config.eval_rows / config.batch_size
    return float(batches) * (step.get("teacher", 0.0) + step.get("student", 0.0) / 3 + step.get("loss", 0.0))
