"""The problem sets by name, none of which is asked before its own solutions solve it."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from tutelage.errors import UserError
from tutelage.evaluation.config import EvaluateConfig
from tutelage.evaluation.humaneval import STYLES, humaneval
from tutelage.evaluation.mbpp import mbpp
from tutelage.evaluation.problems import ORACLES, Problem, ProblemSet, Style, chosen, program, read_problems
from tutelage.evaluation.sandbox.pool import Limits, Result, Verdict, layers, run_many

SLOW = Limits(cpu_seconds=20, wall_seconds=80)  # the solution of MBPP's task 123 takes 5 s on a slow core


def _humaneval(config: EvaluateConfig) -> ProblemSet:
    return ProblemSet("humaneval", humaneval(), STYLES)


def _mbpp(config: EvaluateConfig) -> ProblemSet:
    problems, styles = mbpp(Path(config.mbpp_file) if config.mbpp_file else None)
    return ProblemSet("mbpp", problems, styles, SLOW)


def _own(config: EvaluateConfig) -> ProblemSet:
    path = Path(config.problems or "")
    return ProblemSet(path.name.split(".")[0], read_problems(path), STYLES, SLOW)


PROBLEM_SETS: dict[str, Callable[[EvaluateConfig], ProblemSet]] = {
    "humaneval": _humaneval, "mbpp": _mbpp, "problems": _own,
}  # fmt: skip


def load_problems(which: str, config: EvaluateConfig) -> ProblemSet:
    """The problems by their name in the table, each of which its own solution solves.

    Raises UserError with those whose solution fails, for no score would mean anything; and where the sandbox is not
    strong and nobody agreed to that.
    """
    found = PROBLEM_SETS[which](config)
    packages = tuple(config.sandbox_packages.split(",")) if config.sandbox_packages else ()
    problems = replace(found, problems=found.problems[: config.limit], packages=packages)
    active = layers(packages)
    if active.grade != "strong" and not config.allow_weak_sandbox:
        raise UserError(
            f"the sandbox here is only {active.grade} ({active.missing}): completions are code that a model wrote;"
            " pass --allow_weak_sandbox to execute them all the same"
        )
    whole = Style(lambda problem: problem.prompt, lambda problem: problem.prompt, ())
    solved = [(problem, program(problem, whole, problem.canonical_solution)) for problem in problems.problems]
    failed = [
        f"{problem.task_id} {result.verdict} ({result.detail})"
        for (problem, _), result in zip(solved, execute(problems, solved, scored_by(config)), strict=True)
        if result.verdict is not Verdict.PASS
    ]
    if failed:
        more = f" and {len(failed) - 3} more" if len(failed) > 3 else ""
        raise UserError(f"{problems.name}: solutions that fail their own tests: {'; '.join(failed[:3])}{more}")
    return problems


def execute(problems: ProblemSet, programs: Iterable[tuple[Problem, str]], oracle: str) -> Iterator[Result]:
    """How each program ends, by the oracle that its problem admits; in their order."""
    cases = [ORACLES[chosen(problem, oracle)](problem, source) for problem, source in programs]
    return run_many(cases, problems.limits, packages=problems.packages)


def scored_by(config: EvaluateConfig) -> str:
    """The oracle whose verdicts count."""
    return "upstream" if config.oracle == "upstream" else "split"
