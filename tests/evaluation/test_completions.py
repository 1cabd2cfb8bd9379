"""Batches of prompts: their order, their seeds, and where an answer ends."""

from types import SimpleNamespace

import pytest

from tests.evaluation.test_passing import Scripted
from tutelage.errors import UserError
from tutelage.evaluation import completions
from tutelage.evaluation.candidate import Candidate
from tutelage.evaluation.completions import complete, stop_at
from tutelage.evaluation.config import EvaluateConfig
from tutelage.evaluation.ledger import Ledger

PROMPTS = {("long", 0): "aaaa", ("short", 0): "b", ("middle", 0): "cc"}


@pytest.fixture
def asked(monkeypatch):
    """The seed and the prompts of every batch that a model was given; it answers with twelve letters."""
    batches = []

    def generate(model, prompts, *, seed, max_new_tokens, **_):
        batches.append((seed, ["".join(map(chr, prompt)) for prompt in prompts]))
        room = [min(max_new_tokens, (model.context or 99) - len(prompt)) for prompt in prompts]
        return [[ord(c) for c in "return 1\n# x"[:count]] for count in room]

    monkeypatch.setattr(completions, "generate", generate)
    return batches


def answer(ledger, context=None, **fields):
    model = Candidate("scripted", SimpleNamespace(context=context), None, Scripted(), "completion", 0, 0)
    complete(model, PROMPTS, ["\n#"], EvaluateConfig(batch_size=2, seed=7, **fields), ledger)


def test_prompts_of_like_length_share_a_batch(asked, tmp_path):
    ledger = Ledger(tmp_path / "samples.jsonl")
    answer(ledger)
    assert asked == [(7, ["b", "cc"]), (9, ["aaaa"])]
    assert ledger.rows["short", 0]["prompt"] == "b"
    assert {row["completion"] for row in ledger.rows.values()} == {"return 1"}


def test_what_is_known_is_not_asked_and_changes_no_other_batch(asked, tmp_path):
    ledger = Ledger(tmp_path / "samples.jsonl")
    ledger.add({key: {"completion": "known"} for key in [("short", 0), ("middle", 0)]})
    answer(ledger)
    assert asked == [(9, ["aaaa"])]
    assert ledger.rows["short", 0]["completion"] == "known"


@pytest.mark.parametrize(("longest", "truncated"), [(8, True), (11, False), (12, False)])
def test_an_answer_without_its_stop_is_marked_as_cut_short(asked, tmp_path, longest, truncated):
    ledger = Ledger(tmp_path / "samples.jsonl")
    answer(ledger, max_new_tokens=longest)
    assert {row["truncated"] for row in ledger.rows.values()} == {truncated}


def test_a_stop_is_seen_among_the_newest_tokens_alone():
    done = stop_at(Scripted().decode, ["\n#"], tail=4)
    assert done([ord(c) for c in "x\n#"])
    assert not done([ord(c) for c in "x\n"])
    assert not done([ord(c) for c in "\n#abcd"])


def test_an_answer_that_the_context_ended_is_marked_as_cut_short(asked, tmp_path):
    ledger = Ledger(tmp_path / "samples.jsonl")
    answer(ledger, context=12)
    # eight tokens of an answer have room beside the longest prompt
    assert [key[0] for key, row in ledger.rows.items() if row["truncated"]] == ["long"]


def test_prompts_beyond_the_context_are_named_before_anything_is_asked(asked, tmp_path):
    with pytest.raises(UserError, match=r"^scripted reads 2 tokens, and 2 of 3 prompts .*: long \(4\), middle \(2\): "):
        answer(Ledger(tmp_path / "samples.jsonl"), context=2)
    assert asked == []
