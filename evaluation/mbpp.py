"""MBPP (arXiv:2108.07732): its 500 test problems, and the ways in which they are usually put.

A problem here has HumanEval's shape: its prompt is a docstring, which holds the task and the first of the three tests
(as InCoder put it, arXiv:2204.05999), and its test calls all of them.
"""

import ast
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from textwrap import indent
from typing import Any

from tutelage.data.hub import hub_rows
from tutelage.data.mbpp import DATASET
from tutelage.data.readers import Row, jsonl_rows
from tutelage.errors import UserError
from tutelage.evaluation.problems import Problem, Style

TEST_IDS = range(11, 511)
SHOTS = (2, 3, 4)
"""The examples of the paper's three-shot prompt; no test problem is among them."""
COLUMNS = ("task_id", "code", "test_list")
TEXTS = ("code", "text", "prompt", "test_setup_code", "test")  # those of them that a row has


def mbpp(path: Path | None) -> tuple[list[Problem], dict[str, Style]]:
    """The test problems and their styles, from a local JSONL file of Google's format or from the hub.

    A file whose rows have a `test`, as those of MBPP+ on the hub do, is asked whole, and not behind examples. Raises
    UserError naming the row that cannot be used, or what is missing.
    """
    try:
        read = [_read(*row) for row in _rows(path)]
    except OSError as error:
        raise UserError(f"--mbpp_file {path}: {error.strerror}") from error
    found = {number: problem for number, problem, _ in read}
    for number, count in Counter(number for number, *_ in read).items():
        if count > 1:
            raise UserError(f"{path or DATASET}: {count} rows have the task_id {number}")
    if read and all(whole for *_, whole in read):
        return list(found.values()), {name: style for name, style in styles([]).items() if name != "few-shot"}
    missing = [number for number in (*SHOTS, *TEST_IDS) if number not in found]
    if missing:
        raise UserError(f"{path or DATASET} lacks {len(missing)} of MBPP's problems, the first is task {missing[0]}")
    return [found[number] for number in TEST_IDS], styles([found[number] for number in SHOTS])


def _rows(path: Path | None) -> Iterator[Row]:
    if path:
        return jsonl_rows(path)
    return chain.from_iterable(hub_rows(DATASET, "full", split) for split in ("prompt", "test"))


def styles(examples: list[Problem]) -> dict[str, Style]:
    """How a problem is put: as a docstring, in the paper's words behind three examples, or as a chat."""
    shots = "".join(f"{one.task}[BEGIN]\n{one.canonical_solution}\n[DONE]\n" for one in examples)
    new = ("\nclass ", "\nassert", '\n"""', "\nprint", "\nif ", "\n```", "\n#")
    return {
        "completion": Style(lambda problem: problem.prompt, lambda problem: problem.prompt, new),
        "few-shot": Style(lambda problem: f"{shots}{problem.task}[BEGIN]\n", _nothing, ("[DONE]", "\nYou are")),
        "chat": Style(lambda problem: problem.task, _nothing, ("\n```",), answer="```python\n"),
    }


def _nothing(problem: Problem) -> str:
    return ""


def _read(origin: str, row: object) -> tuple[int, Problem, bool]:
    """The number of a row, its problem, and whether it has a `test` of its own. Raises UserError naming the row."""
    if not isinstance(row, Mapping) or not set(COLUMNS) <= row.keys():
        raise UserError(f"{origin} is no row of MBPP: {', '.join(COLUMNS)} are wanted")
    tests, others = row["test_list"], [row.get(name, "") for name in TEXTS]
    if not isinstance(tests, list) or not tests or not all(isinstance(one, str) for one in (*tests, *others)):
        raise UserError(f"{origin} is no row of MBPP: test_list must be a list of texts, {', '.join(TEXTS)} one each")
    try:
        return int(row["task_id"]), _problem(row), "test" in row
    except (ValueError, SyntaxError) as error:
        raise UserError(f"{origin} is no problem of MBPP: {error}") from error


def _problem(row: Mapping[str, Any]) -> Problem:
    code = row["code"].replace("\r\n", "\n").strip()
    text = row.get("text", row.get("prompt", "")).strip()
    tests = [test.replace("\r\n", "\n").strip() for test in row["test_list"]]
    imports = [ast.unparse(node) for node in ast.parse(code).body if isinstance(node, ast.Import | ast.ImportFrom)]
    setup = "\n".join([*imports, row.get("test_setup_code", "").replace("\r\n", "\n")])  # tests use what it imports
    told = "\n".join(tests)
    body = indent(row.get("test", told), "    ")
    return Problem(
        task_id=f"MBPP/{row['task_id']}",
        prompt=f'"""\n{text}\n{tests[0]}\n"""\n',
        entry_point=_tested(code, tests),
        test=f"{setup}\ndef check(candidate):\n{body}\n",
        canonical_solution=code,
        task=(
            f"You are an expert Python programmer, and here is your task: {text} "
            f"Your code should pass these tests:\n\n{told}\n"
        ),
    )


def _tested(code: str, tests: list[str]) -> str:
    """The function that the tests are about: the last one of the solution's that the first test calls."""
    functions = [node.name for node in ast.parse(code).body if isinstance(node, ast.FunctionDef)]
    called = {node.id for node in ast.walk(ast.parse(tests[0])) if isinstance(node, ast.Name)}
    for name in reversed(functions):
        if name in called:
            return name
    raise ValueError(f"its first test calls none of its functions ({', '.join(functions) or 'there are none'})")
