"""The same prompts, completed by both sides."""

from pathlib import Path

import pytest
import torch

from tutelage.data.tokenizer import Tokenizer
from tutelage.errors import UserError
from tutelage.student.decoder import Decoder
from tutelage.training.processes import Processes
from tutelage.training.samples import NEW_TOKENS, PROMPTS, complete, pair, read_prompts


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
