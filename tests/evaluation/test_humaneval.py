"""The harness around the sandbox, with models whose answers are known."""

import json

import pytest

from tutelage.errors import UserError
from tutelage.evaluation import humaneval as harness
from tutelage.evaluation.candidate import Candidate
from tutelage.evaluation.config import EvaluateConfig
from tutelage.evaluation.problems import PROMPT_STYLES, humaneval


class Scripted:
    """A tokenizer whose ids are code points, so that any text can be generated."""

    eos_id = 0

    def encode_prompt(self, text):
        return [ord(c) for c in text]

    def decode(self, ids):
        return "".join(map(chr, ids))


def candidate(answers, monkeypatch, style="completion"):
    """A model that gives each prompt its answer, through the real batching and stopping."""

    def generate(model, prompts, *, max_new_tokens, eos_id, stop, **_):
        done = []
        for prompt in prompts:
            new = []
            for character in answers["".join(map(chr, prompt))]:
                new.append(ord(character))
                if len(new) == max_new_tokens or stop(new):
                    break
            done.append(new)
        return done

    monkeypatch.setattr(harness, "generate", generate)
    return Candidate("scripted", None, None, Scripted(), style, 0, 0)


def answers(problems, text, style="completion"):
    return {PROMPT_STYLES[style](problem): text(problem) for problem in problems}


def config(**fields):
    return EvaluateConfig(humaneval=True, max_new_tokens=2000, allow_weak_sandbox=True, **fields)


def test_right_and_wrong_answers_are_counted_and_kept(tmp_path, monkeypatch):
    problems = humaneval(6)
    right = {problem.task_id for problem in problems[:2]}
    text = lambda p: p.canonical_solution if p.task_id in right else "    return None\n"  # noqa: E731
    scores = harness.run_humaneval(
        candidate(answers(problems, text), monkeypatch), config(limit=6), tmp_path / "a.jsonl"
    )
    assert scores.metrics["pass@1"] == pytest.approx(2 / 6)
    assert set(scores.solved) == right
    kept = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [row["task_id"] for row in kept] == [problem.task_id for problem in problems]
    assert [row["verdict"] == "PASS" for row in kept] == [row["task_id"] in right for row in kept]


def test_what_follows_a_stop_is_cut_before_it_can_break_the_answer(tmp_path, monkeypatch):
    problems = humaneval(3)
    text = lambda p: p.canonical_solution.rstrip("\n") + "\n\ndef broken(:\n    nonsense"  # noqa: E731
    scores = harness.run_humaneval(
        candidate(answers(problems, text), monkeypatch), config(limit=3), tmp_path / "a.jsonl"
    )
    assert scores.metrics["pass@1"] == 1


def test_chat_answers_continue_the_begun_line(tmp_path, monkeypatch):
    [problem] = humaneval(1)
    text = lambda p: p.canonical_solution[3:]  # noqa: E731  # the prompt ends in three of its four spaces
    model = candidate(answers([problem], text, "chat"), monkeypatch, "chat")
    scores = harness.run_humaneval(model, config(limit=1), tmp_path / "a.jsonl")
    assert scores.metrics["pass@1"] == 1


def test_samples_and_k(tmp_path, monkeypatch):
    problems = humaneval(2)
    model = candidate(answers(problems, lambda p: p.canonical_solution), monkeypatch)
    scores = harness.run_humaneval(model, config(limit=2, samples=3, k="1,3", temperature=0.5), tmp_path / "a.jsonl")
    assert scores.metrics == {"pass@1": 1.0, "pass@3": 1.0}
    assert sum(scores.verdicts.values()) == 6


@pytest.mark.parametrize(("k", "samples"), [("2", 1), ("0", 1), ("1,x", 5), ("", 1)])
def test_k_that_cannot_be_estimated_is_refused(k, samples):
    with pytest.raises(UserError, match="--k"):
        harness.parse_ks(k, samples)


def test_a_weak_sandbox_needs_consent(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "layers", lambda: harness_layers())
    with pytest.raises(UserError, match="--allow_weak_sandbox"):
        harness.run_humaneval(None, EvaluateConfig(humaneval=True), tmp_path / "a.jsonl")


def harness_layers():
    from tutelage.evaluation.sandbox import Layers

    return Layers(jail=False, uid=0, missing="no namespaces")
