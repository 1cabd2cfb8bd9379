"""Problems of EvalPlus, in both shapes that they are handed out in; the rows here are made in that shape."""

import gzip
import json

import pytest

from tutelage.errors import UserError
from tutelage.evaluation.humaneval import STYLES
from tutelage.evaluation.mbpp import mbpp
from tutelage.evaluation.problems import program, read_problems, split_case
from tutelage.evaluation.sandbox.pool import run_one

ROW = {
    "task_id": "HumanEval/900",
    "prompt": 'def powers(base, n):\n    """The first n powers."""\n',
    "canonical_solution": "    return [] if n == 0 else powers(base, n - 1) + [base ** n]\n",
    "entry_point": "powers",
    "contract": "",
    "base_input": [[2.0, 3], [0.1, 2]],
    "plus_input": [[1.5, 4], [7, 0]],
    "atol": 0,
}


def write(path, row):
    path.write_bytes(gzip.compress(json.dumps(row).encode()))
    return path


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (ROW["canonical_solution"], "PASS"),
        ("    return [base ** i * (1 + 1e-9) for i in range(1, n + 1)]\n", "PASS"),  # floats within a tolerance
        ("    return [base ** i * (1 + 1e-3) for i in range(1, n + 1)]\n", "FAIL"),
        ("    return tuple(base ** i for i in range(1, n + 1))\n", "FAIL"),
        ("    return [base ** i for i in range(1, n + 1)] or None\n", "FAIL"),  # seen by an added input alone
        ("    return powers\n", "FAIL"),
    ],
)
def test_answers_are_tested_against_the_solutions_on_every_input(answer, verdict, tmp_path):
    [problem] = read_problems(write(tmp_path / "HumanEvalPlus.jsonl.gz", ROW))
    assert not problem.needs_upstream
    result = run_one(split_case(problem, program(problem, STYLES["completion"], answer)))
    assert result.verdict == verdict, result


def test_a_row_that_lacks_something_is_named(tmp_path):
    path = write(tmp_path / "HumanEvalPlus.jsonl.gz", {**ROW, "atol": "much"})
    with pytest.raises(UserError, match=r"HumanEvalPlus\.jsonl\.gz:1: could not convert"):
        read_problems(path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match="HumanEvalPlus"):
        read_problems(path)


def test_mbpp_plus_as_on_the_hub(tmp_path):
    row = {
        "task_id": 2,
        "code": "def double(x):\n    return 2 * x",
        "prompt": "Write a function to double.",
        "test_imports": [],
        "test_list": ["assert double(1) == 2"],
        "test": "def assertion(out, exp):\n    assert out == exp\n\nfor inp, exp in zip([[1], [4]], [2, 8]):\n"
        "    assertion(double(*inp), exp)\n",
    }
    path = tmp_path / "MbppPlus.jsonl"
    path.write_text(json.dumps(row) + "\n")
    [problem], styles = mbpp(path)
    assert set(styles) == {"completion", "chat"}
    assert problem.prompt == '"""\nWrite a function to double.\nassert double(1) == 2\n"""\n'
    verdicts = [
        run_one(split_case(problem, f"def double(x):\n    return {answer}")).verdict for answer in ("2 * x", "x + 1")
    ]
    assert verdicts == ["PASS", "FAIL"]
