"""The same prompts, completed by both sides."""

from pathlib import Path

import pytest
import torch

from tutelage.data.tokenizer import Tokenizer
from tutelage.errors import UserError
from tutelage.student.decoder import Decoder
from tutelage.training.processes import Processes
from tutelage.training.samples import (
    NEW_TOKENS,
    PROMPTS,
    WIDTH,
    Sample,
    clean,
    complete,
    indent,
    pair,
    read_prompts,
    side_by_side,
)


def test_completions_are_greedy_and_alone(teacher_decoder: Decoder, tokenizer: Tokenizer) -> None:
    prompts = ["def f(", "import os\n\nclass"]
    done = complete(teacher_decoder, tokenizer, Processes("cpu"), prompts)
    for prompt, text in zip(prompts, done, strict=True):
        tokens = tokenizer.encode(prompt)
        start = len(tokens)
        while len(tokens) - start < NEW_TOKENS:
            logits = teacher_decoder.logits(teacher_decoder(torch.tensor([tokens])).hidden)[0, -1]
            tokens.append(int(logits.argmax()))
            if tokens[-1] == tokenizer.eos_id:
                break
        assert text == tokenizer.decode(tokens[start:])


def test_pairs_keep_the_sides_apart() -> None:
    rows = pair(PROMPTS, ["t"] * len(PROMPTS), ["s"] * len(PROMPTS))
    assert [row.prompt for row in rows] == list(PROMPTS)
    assert {(row.teacher, row.student) for row in rows} == {("t", "s")}


def test_prompts_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("def f(x):\n    # --- not a separator\n---\nclass A:\n----\n\n---\nimport os\n")
    assert read_prompts(str(tmp_path / "p.txt")) == (
        "def f(x):\n    # --- not a separator\n", "class A:\n", "import os\n",
    )  # fmt: skip
    assert read_prompts(None) == PROMPTS


@pytest.mark.parametrize("content", [None, b"", b"\n---\n \n", b"\xff"])
def test_a_file_without_prompts_is_a_user_error(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "p.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"--prompts .*p\.txt"):
        read_prompts(str(path))


@pytest.mark.parametrize("text", ["", "\n\n", "a\nb", "\ta", "<b>\x1b[31mred\r\u2028<img>\x85# x\x0c![](http://x)"])
def test_every_line_is_indented_by_four(text: str) -> None:
    assert all(line.startswith("    ") for line in indent(text).splitlines())


def test_the_two_columns_show_all_lines_of_the_longer_side() -> None:
    shown = side_by_side(Sample("p", "one\ntwo", "uno\ndos\ntres"))
    assert [line.split("|")[1].strip() for line in shown.splitlines() if "|" in line][2:] == ["uno", "dos", "tres"]
    assert "one" in shown
    assert "two" in shown


def test_a_long_line_of_the_teacher_is_not_cut() -> None:
    long = "x" * 70 + "END"
    assert "END" in side_by_side(Sample("p", long, "s")).replace("\n", "")


def test_clean_keeps_the_text() -> None:
    assert clean("a b\n\n  ünï → ✓\n") == "a b\n\n  ünï → ✓\n"
    assert clean("a \x07b\x1b[1;31mc") == "a bc"


def test_both_columns_have_the_width_that_a_laptop_shows() -> None:
    shown = side_by_side(Sample("p", "x" * 100, "y" * 100))
    assert max(map(len, shown.splitlines())) == 4 + 2 * WIDTH + 3
