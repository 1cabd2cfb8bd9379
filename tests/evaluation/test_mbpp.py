"""MBPP's problems in HumanEval's shape; with Google's file where it is at hand."""

import json
from collections import Counter
from pathlib import Path

import pytest

from tutelage.errors import UserError
from tutelage.evaluation.mbpp import SHOTS, TEST_IDS, mbpp, styles
from tutelage.evaluation.mbpp import _problem as problem_of
from tutelage.evaluation.problem_sets import SLOW, execute
from tutelage.evaluation.problems import ProblemSet, chosen, program, truncate
from tutelage.evaluation.sandbox.pool import Verdict

FILE = Path(__file__).resolve().parents[3] / "shared" / "data" / "mbpp.jsonl"
needs_file = pytest.mark.skipif(not FILE.is_file(), reason="Google's mbpp.jsonl is not here")


def row(number=11, **changes):
    return {
        "task_id": number,
        "text": "Write a function to add two numbers.",
        "code": "def helper(x):\r\n  return x\r\ndef add(a, b):\r\n  return helper(a) + b",
        "test_list": ["assert add(1, 2) == 3", "assert add(0, 0) == 0"],
        "test_setup_code": "",
        **changes,
    }


def write(path, rows):
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


def test_a_row_becomes_a_problem_of_humanevals_shape():
    problem = problem_of(row())
    assert problem.task_id == "MBPP/11"
    assert problem.entry_point == "add"
    assert problem.prompt == '"""\nWrite a function to add two numbers.\nassert add(1, 2) == 3\n"""\n'
    assert problem.test == "\ndef check(candidate):\n    assert add(1, 2) == 3\n    assert add(0, 0) == 0\n"
    assert "\r" not in problem.canonical_solution


def test_the_prompts_of_each_style():
    shots = [problem_of(row(number)) for number in SHOTS]
    found, problem = styles(shots), problem_of(row(99))
    words = (
        "You are an expert Python programmer, and here is your task: Write a function to add two numbers. "
        "Your code should pass these tests:\n\nassert add(1, 2) == 3\nassert add(0, 0) == 0\n"
    )
    assert found["few-shot"].ask(problem).count("[BEGIN]") == 4
    assert found["few-shot"].ask(problem).endswith(f"[DONE]\n{words}[BEGIN]\n")
    assert words in found["chat"].ask(problem)
    for style, answer in (
        ("completion", problem.canonical_solution + "\nassert add(1, 2) == 3"),
        ("few-shot", problem.canonical_solution + "\n[DONE]\nYou are"),
        ("chat", problem.canonical_solution + "\n```\nThis adds"),
    ):
        namespace: dict = {}
        exec(program(problem, found[style], truncate(answer, found[style].stops)), namespace)
        assert namespace["add"](2, 3) == 5


def test_the_test_split_alone_is_asked(tmp_path):
    path = write(tmp_path / "mbpp.jsonl", [row(number) for number in range(1, 975)])
    problems, _ = mbpp(path)
    assert [problem.task_id for problem in problems] == [f"MBPP/{number}" for number in TEST_IDS]


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ([row(number) for number in range(1, 400)], "lacks 111 of MBPP's problems, the first is task 400"),
        ([row(1), {"task_id": 2}], "mbpp.jsonl:2 is no row of MBPP"),
        ([row(1), row(2, code=5)], "mbpp.jsonl:2 is no row of MBPP"),
        ([row(1), row(2, text=None)], "mbpp.jsonl:2 is no row of MBPP"),
        ([row(1), row(2, test_list=[])], "mbpp.jsonl:2 is no row of MBPP"),
        ([row(1), row(2, test_list="assert add(1, 2) == 3")], "mbpp.jsonl:2 is no row of MBPP"),
        ([row(1), row(2, code="def (:")], "mbpp.jsonl:2 is no problem of MBPP: invalid syntax"),
        ([row(1), row(2, code="def sub(a, b): pass")], r"mbpp.jsonl:2 is .* calls none of its functions \(sub\)"),
        ([row(1), row("two")], "mbpp.jsonl:2 is no problem of MBPP: .*'two'"),
        ([row(1), row(2), row(2)], "mbpp.jsonl: 2 rows have the task_id 2"),
    ],
)
def test_a_file_that_is_not_mbpp_is_refused(rows, named, tmp_path):
    with pytest.raises(UserError, match=named):
        mbpp(write(tmp_path / "mbpp.jsonl", rows))


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"--mbpp_file .*nowhere\.jsonl"):
        mbpp(tmp_path / "nowhere.jsonl")


@needs_file
@pytest.mark.long
def test_every_solution_of_all_974_passes_its_tests():
    """By the split oracle, but for the three whose tests build objects of the solution's own classes."""
    problems = [problem_of(json.loads(line)) for line in FILE.read_text().splitlines()]
    assert len(problems) == 974
    programs = [problem.prompt + problem.canonical_solution for problem in problems]
    results = execute(ProblemSet("mbpp", problems, {}, SLOW), zip(problems, programs, strict=True), "split")
    failed = [
        (problem.task_id, result)
        for problem, result in zip(problems, results, strict=True)
        if result.verdict is not Verdict.PASS
    ]
    assert failed == []
    oracles = Counter(chosen(problem, "split") for problem in problems)
    assert [p.task_id for p in problems if p.needs_upstream] == ["MBPP/367", "MBPP/601", "MBPP/927"]
    assert oracles == {"split": 971, "upstream": 3}
