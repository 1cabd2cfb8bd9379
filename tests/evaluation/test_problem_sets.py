"""Problem sets are loaded by name, and asked of nobody before their own solutions solve them."""

import json
from dataclasses import asdict, replace

import pytest

from tests.evaluation.test_passing import ADD, TREE
from tutelage.errors import UserError
from tutelage.evaluation import problem_sets
from tutelage.evaluation.config import EvaluateConfig
from tutelage.evaluation.problem_sets import load_problems
from tutelage.evaluation.sandbox.pool import Layers


def write(path, problems):
    path.write_text("".join(json.dumps(asdict(one)) + "\n" for one in problems))
    return EvaluateConfig(problems=str(path), allow_weak_sandbox=True)


def test_problems_of_ones_own(tmp_path):
    found = load_problems("problems", write(tmp_path / "mine.jsonl", [ADD, TREE]))
    assert found.name == "mine"
    assert found.problems == [ADD, TREE]


def test_a_solution_that_fails_its_own_test_stops_everything(tmp_path):
    wrong = replace(ADD, task_id="Toy/9", canonical_solution="    return a - b\n")
    with pytest.raises(UserError, match="mine: solutions that fail their own tests: Toy/9 FAIL"):
        load_problems("problems", write(tmp_path / "mine.jsonl", [ADD, wrong]))


def test_a_weak_sandbox_needs_consent(monkeypatch):
    monkeypatch.setattr(problem_sets, "layers", lambda packages: Layers(jail=False, missing="no namespaces"))
    with pytest.raises(UserError, match=r"only partial \(no namespaces\).*--allow_weak_sandbox"):
        load_problems("humaneval", EvaluateConfig(humaneval=True))


def test_problems_may_be_allowed_a_package(tmp_path):
    test = "import numpy as np\ndef check(candidate):\n    assert np.allclose(candidate(1, 2), 3)\n"
    config = write(tmp_path / "mine.jsonl", [replace(ADD, test=test)])
    with pytest.raises(UserError, match="No module named 'numpy'"):
        load_problems("problems", config)
    assert load_problems("problems", replace(config, sandbox_packages="numpy")).packages == ("numpy",)
