"""What a model is asked to program: a problem, the text the model reads, and the program its answer becomes."""

import ast
import gzip
import json
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

from tutelage.data.tokenizer import Tokenizer
from tutelage.errors import UserError
from tutelage.evaluation.evalplus import differential_test
from tutelage.evaluation.sandbox.pool import Case, Limits


@dataclass(frozen=True)
class Problem:
    """The shape of HumanEval's rows: `test` defines `check(candidate)` for the function `entry_point`."""

    task_id: str
    prompt: str  # code that the canonical solution continues
    entry_point: str
    test: str
    canonical_solution: str
    task: str = ""  # in words, with the tests, for styles that are no code

    @cached_property
    def needs_upstream(self) -> bool:
        """Whether the test names something that only the solution defines: a class, say, whose objects it passes on.

        No value that could cross to the completion's process serves such a test.
        """
        wanted = {node.id for node in ast.walk(ast.parse(self.test)) if isinstance(node, ast.Name)}
        known = _defined(self.prompt) | {self.entry_point}
        return bool(wanted & _defined(self.prompt + self.canonical_solution) - known)


@dataclass(frozen=True)
class Style:
    """One way to put a problem."""

    ask: Callable[[Problem], str]
    """The text that the model reads, or the question of a chat."""
    head: Callable[[Problem], str]
    """The end of what it reads that the answer continues, as code."""
    stops: tuple[str, ...]
    """Where an answer ends; they are left out."""
    answer: str | None = None
    """In a chat, what stands between the question and `head`; None where it is no chat."""

    def prompt(self, problem: Problem, tokenizer: Tokenizer) -> str:
        """What the model reads; a chat in its own template. Raises UserError where it has none, or one that fails."""
        if self.answer is None:
            return self.ask(problem)
        return tokenizer.chat_prompt(self.ask(problem)) + self.answer + self.head(problem)


@dataclass(frozen=True)
class ProblemSet:
    """Problems under the name that their scores are reported by."""

    name: str
    problems: Sequence[Problem]
    styles: Mapping[str, Style]
    limits: Limits | None = None  # None: those of the sandbox
    packages: tuple[str, ...] = ()  # that programs and tests may import


def program(problem: Problem, style: Style, completion: str) -> str:
    """The untrusted source."""
    return style.head(problem) + completion


def split_case(problem: Problem, source: str) -> Case:
    """The test apart from the completion, behind the prompt whose helper functions some tests call."""
    helpers = problem.prompt if _body(problem.prompt) else ""
    return Case(source, f"{helpers}\n{problem.test}", problem.entry_point)


def upstream_case(problem: Problem, source: str) -> Case:
    """The test in the completion's own process, as public harnesses have it: a completion can fool it."""
    name = problem.entry_point  # which may be check
    test = f"__candidate = {name}\n{problem.test}\n__check = check\n{name} = __candidate\n__check({name})\n"
    return Case(f"{source}\n{test}", "def check(candidate):\n    pass\n", problem.entry_point)


ORACLES: dict[str, Callable[[Problem, str], Case]] = {"split": split_case, "upstream": upstream_case}


def chosen(problem: Problem, oracle: str) -> str:
    """The oracle for a problem: upstream where its test cannot be run apart from the completion."""
    return "upstream" if problem.needs_upstream else oracle


def truncate(text: str, stops: Sequence[str]) -> str:
    """`text` up to the earliest of the `stops`."""
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]


def read_problems(path: Path) -> list[Problem]:
    """Problems of the shape of HumanEval's rows or EvalPlus', one JSON object per line, the file as it is or gzipped.

    Raises UserError naming the row.
    """
    try:
        whole = path.read_bytes()
        lines = (gzip.decompress(whole) if path.suffix == ".gz" else whole).decode().split("\n")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"problems {path}: {error}") from error
    found = [_parsed(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise UserError(f"problems {path}: no row in it; one JSON object per line, with {', '.join(NEEDED)}")
    for task, count in Counter(problem.task_id for problem in found).items():
        if count > 1:
            raise UserError(f"problems {path}: {count} rows have the task_id {task!r}")
    return found


NEEDED = tuple(field.name for field in fields(Problem) if field.name != "task")


def _parsed(line: str, where: str) -> Problem:
    try:
        row = json.loads(line)
        if "base_input" in row:
            row["test"] = differential_test(row)
        problem = Problem(**{name: row[name] for name in NEEDED})
        for name, value in vars(problem).items():
            if not isinstance(value, str):
                raise UserError(f"problems {where}: {name} is {value!r}, a text is wanted")
        ast.parse(problem.test)
    except (ValueError, TypeError, KeyError) as error:
        if isinstance(error, UserError):
            raise
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"problems {where}: {reason}; wanted is a JSON object with {', '.join(NEEDED)}") from error
    except SyntaxError as error:
        raise UserError(f"problems {where}: the test is no Python ({error.msg}, line {error.lineno})") from error
    return problem


def _defined(source: str) -> set[str]:
    """Names of the functions and classes at the top of a program."""
    return {node.name for node in _body(source) if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def _body(source: str) -> list[ast.stmt]:
    """The statements of a program; none where it is unfinished, as the prompt of a function without docstring is."""
    try:
        return ast.parse(source).body
    except SyntaxError:
        return []
