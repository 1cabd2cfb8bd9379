"""Problems, how they are put, and what their answers become."""

import json
from dataclasses import asdict

import pytest

from tutelage.data.tokenizer import Tokenizer
from tutelage.errors import UserError
from tutelage.evaluation.humaneval import STOPS, STYLES, humaneval
from tutelage.evaluation.problems import Problem, program, read_problems, split_case, truncate

ADD = Problem("Toy/0", '\ndef add(a, b):\n    """Sum."""\n', "add", "def check(candidate): ...", "    return a + b\n")


@pytest.mark.parametrize(("style", "text"), [("completion", "    return a + b"), ("chat", " return a + b")])
def test_a_program_continues_where_its_prompt_ended(style, text, tokenizer):
    namespace: dict = {}
    exec(program(ADD, STYLES[style], text), namespace)
    assert namespace["add"](2, 3) == 5
    code = program(ADD, STYLES[style], "")
    chatty = Tokenizer(tokenizer._prompts, tokenizer.specials, "{{ messages[0].content }}")
    assert STYLES[style].prompt(ADD, chatty).endswith(code)


def test_the_split_oracle_offers_the_prompts_helpers_to_the_test():
    namespace: dict = {}
    exec(split_case(humaneval()[32], "").test, namespace)
    assert namespace["poly"]([1, 2], 3) == 7
    assert callable(namespace["check"])


@pytest.mark.parametrize("stop", STOPS)
def test_truncate_cuts_at_each_stop(stop):
    assert truncate(f"    return 1{stop}rest", STOPS) == "    return 1"


def test_truncate_cuts_at_the_earliest_stop_and_leaves_clean_text_alone():
    assert truncate("a\n# b\ndef c", STOPS) == "a"
    assert truncate("    if x:\n        print(x)", STOPS) == "    if x:\n        print(x)"


GOOD = json.dumps(asdict(ADD))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "no row in it"),
        (f"{GOOD}\n\n{{", ":3: "),
        (f"{GOOD}\n[1]", ":2: "),
        (f"{GOOD}\n{{}}", ":2: no 'task_id'"),
        (GOOD.replace('"add"', "7"), ":1: entry_point is 7"),
        (GOOD.replace("def check(candidate): ...", "def check("), ":1: the test is no Python"),
    ],
)
def test_a_row_that_is_no_problem_is_named(text, named, tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        read_problems(path)
    assert str(path) in str(error.value)
    assert named in str(error.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.jsonl"):
        read_problems(tmp_path / "nowhere.jsonl")
