"""The harness around the sandbox, with models whose answers are known."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from tutelage.errors import UserError
from tutelage.evaluation import completions
from tutelage.evaluation import passing as harness
from tutelage.evaluation.candidate import Candidate
from tutelage.evaluation.config import EvaluateConfig
from tutelage.evaluation.humaneval import STYLES, humaneval
from tutelage.evaluation.ledger import Ledger
from tutelage.evaluation.problem_sets import load_problems
from tutelage.evaluation.problems import Problem, ProblemSet


class Scripted:
    """A tokenizer whose ids are code points, so that any text can be generated."""

    end_ids = frozenset({0})
    segmentation = "code points"

    def chat_prompt(self, question):
        return f"{question}\nassistant: "

    def encode_prompt(self, text):
        return [ord(c) for c in text]

    def decode(self, ids):
        return "".join(map(chr, ids))


def candidate(answers, monkeypatch, style="completion"):
    """A model that gives each prompt its answer, through the real batching and stopping."""

    def generate(model, prompts, *, max_new_tokens, end_ids, stop, **_):
        done = []
        for prompt in prompts:
            new = []
            for character in answers["".join(map(chr, prompt))]:
                new.append(ord(character))
                if len(new) == max_new_tokens or stop(new):
                    break
            done.append(new)
        return done

    monkeypatch.setattr(completions, "generate", generate)
    return Candidate("scripted", SimpleNamespace(context=None), None, Scripted(), style, 0, 0)


def answers(problems, text, style="completion"):
    return {STYLES[style].prompt(problem, Scripted()): text(problem) for problem in problems}


def config(**fields):
    return EvaluateConfig(humaneval=True, max_new_tokens=2000, allow_weak_sandbox=True, **fields)


def scored(model, directory, **fields):
    """What the harness makes of a model on HumanEval."""
    asked = config(**fields)
    return harness.pass_at_k(model, load_problems("humaneval", asked), asked, directory)


def samples_in(directory):
    """The rows of the one file of samples."""
    [path] = directory.glob("*.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_right_and_wrong_answers_are_counted_and_kept(tmp_path, monkeypatch):
    problems = humaneval()[:6]
    right = {problem.task_id for problem in problems[:2]}
    text = lambda p: p.canonical_solution if p.task_id in right else "    return None\n"  # noqa: E731
    scores = scored(candidate(answers(problems, text), monkeypatch), tmp_path, limit=6)
    assert scores.metrics["pass@1"] == pytest.approx(2 / 6)
    assert set(scores.solved) == right
    kept = samples_in(tmp_path)
    assert [row["task_id"] for row in kept] == [problem.task_id for problem in problems]
    assert [row["prompt"] for row in kept] == [problem.prompt for problem in problems]
    assert [row["split"]["verdict"] == "PASS" for row in kept] == [row["task_id"] in right for row in kept]
    assert sum(scores.failures.values()) == 4


def test_what_follows_a_stop_is_cut_before_it_can_break_the_answer(tmp_path, monkeypatch):
    problems = humaneval()[:3]
    text = lambda p: p.canonical_solution.rstrip("\n") + "\n\ndef broken(:\n    nonsense"  # noqa: E731
    scores = scored(candidate(answers(problems, text), monkeypatch), tmp_path, limit=3)
    assert scores.metrics["pass@1"] == 1


def test_chat_answers_continue_the_begun_line(tmp_path, monkeypatch):
    [problem] = humaneval()[:1]
    text = lambda p: p.canonical_solution[3:]  # noqa: E731  # the prompt ends in three of its four spaces
    model = candidate(answers([problem], text, "chat"), monkeypatch, "chat")
    scores = scored(model, tmp_path, limit=1)
    assert scores.metrics["pass@1"] == 1


def test_samples_and_k(tmp_path, monkeypatch):
    problems = humaneval()[:2]
    model = candidate(answers(problems, lambda p: p.canonical_solution), monkeypatch)
    scores = scored(model, tmp_path, limit=2, samples=3, k="1,3", temperature=0.5)
    assert scores.metrics == {"pass@1": 1.0, "pass@3": 1.0}
    assert sum(scores.verdicts.values()) == 6


TREE = Problem(
    "Toy/1",
    '"""Count the nodes."""\n',
    "count",
    "root = Node()\nroot.left = Node()\ndef check(candidate):\n    assert count(root) == 2\n",
    "class Node:\n    left = None\ncount = lambda node: 0 if node is None else 1 + count(node.left)\n",
)
ADD = Problem(
    "Toy/0", "def add(a, b):\n", "add", "def check(candidate):\n    assert candidate(1, 2) == 3\n", "    return a + b\n"
)


def judged(toys, model, directory, oracle="split"):
    """The verdicts of one sample of each problem."""
    harness.pass_at_k(model, toys, config(oracle=oracle), directory)
    return [(row[oracle]["oracle"], row[oracle]["verdict"]) for row in samples_in(directory)]


def test_a_test_that_builds_the_completions_objects_goes_upstream_and_says_so(tmp_path, monkeypatch):
    toys = ProblemSet("toys", [ADD, TREE], STYLES)
    model = candidate(answers(toys.problems, lambda p: p.canonical_solution), monkeypatch)
    assert judged(toys, model, tmp_path) == [("split", "PASS"), ("upstream", "PASS")]
    assert harness.pass_at_k(model, toys, config(), tmp_path).upstream == ["Toy/1"]


def test_the_oracles_disagree_aloud_about_an_answer_that_equals_everything(monkeypatch, caplog, tmp_path):
    fooling = "    class Any:\n        def __eq__(self, other): return True\n    return Any()\n"
    toys = ProblemSet("toys", [ADD], STYLES)
    model = candidate(answers([ADD], lambda p: fooling), monkeypatch)
    assert judged(toys, model, tmp_path) == [("split", "FAIL")]
    assert judged(toys, model, tmp_path, "upstream") == [("upstream", "PASS")]
    assert caplog.text == ""
    scores = harness.pass_at_k(model, toys, config(oracle="both"), tmp_path)
    assert scores.metrics["pass@1"] == 0
    assert scores.failures == {"refused answer": 1}
    assert "Toy/0, sample 0: FAIL by the split oracle" in caplog.text
    assert "PASS upstream" in caplog.text


def test_a_style_that_a_set_does_not_have_is_refused(monkeypatch, tmp_path):
    model = candidate({}, monkeypatch)
    with pytest.raises(UserError, match="unknown prompt style of toys 'few-shot'"):
        harness.pass_at_k(model, ProblemSet("toys", [ADD], STYLES), config(prompt_style="few-shot"), tmp_path)


def test_an_answer_that_was_cut_short_is_told_from_a_wrong_one(monkeypatch, tmp_path):
    toys = ProblemSet("toys", [ADD], STYLES)
    endless = candidate(answers([ADD], lambda p: "    x = 1\n" * 1000), monkeypatch)
    assert judged(toys, endless, tmp_path) == [("split", "TRUNCATED")]


class Killed(BaseException):
    """As if the machine had gone down."""


@pytest.mark.parametrize("when", ["generating", "executing"])
def test_a_run_that_was_killed_goes_on_where_it_was(when, monkeypatch, tmp_path):
    problems = humaneval()[:6]
    text = lambda p: p.canonical_solution if p.task_id != "HumanEval/3" else "    return None\n"  # noqa: E731
    model = candidate(answers(problems, text), monkeypatch)
    whole = scored(model, tmp_path / "whole", limit=6, samples=2, batch_size=3)

    add, told = Ledger.add, []

    def failing(ledger, facts):
        kind = "executing" if any("split" in one for one in facts.values()) else "generating"
        if kind == when and told.count(kind) == 2:
            raise Killed
        told.append(kind)
        add(ledger, facts)

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "add", failing)
        with pytest.raises(Killed):
            scored(model, tmp_path / "killed", limit=6, samples=2, batch_size=3)
    [path] = (tmp_path / "killed").glob("*.jsonl")
    path.write_text(path.read_text() + '{"task_id": "HumanE')  # torn
    done = path.read_text().splitlines()[:-1]

    again = []
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "add", lambda ledger, facts: (again.extend(facts), add(ledger, facts)))
        resumed = scored(model, tmp_path / "killed", limit=6, samples=2, batch_size=3)
    assert resumed == whole
    assert len(done) + len(again) == 24  # twelve completions and twelve verdicts, none of them twice
    assert samples_in(tmp_path / "killed")[0]["completion"] == samples_in(tmp_path / "whole")[0]["completion"]
    assert len(samples_in(tmp_path / "killed")) == 12

    monkeypatch.setattr(completions, "generate", None)  # and once it is done, nothing is done again
    assert scored(model, tmp_path / "killed", limit=6, samples=2, batch_size=3) == whole


@pytest.mark.parametrize("changed", [{"seed": 1}, {"temperature": 0.5}, {"max_new_tokens": 50}, {"limit": 2}])
def test_other_settings_are_other_files(changed, monkeypatch, tmp_path):
    model = candidate(answers(humaneval()[:3], lambda p: "    return None\n"), monkeypatch)
    asked = [EvaluateConfig(humaneval=True, allow_weak_sandbox=True, **{"limit": 3, **more}) for more in ({}, changed)]
    names = {
        harness.file_name(one, load_problems("humaneval", settings), settings, {("HumanEval/0", 0): prompt})
        for one in (model, replace(model, identity="other weights"))
        for settings in asked
        for prompt in ("def f", "[INST] def f")
    }
    assert len(names) == 8
