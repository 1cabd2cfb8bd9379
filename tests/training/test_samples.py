"""The same prompts, completed by both sides."""

import torch

from tutelage.data.tokenizer import Tokenizer
from tutelage.student.decoder import Decoder
from tutelage.training.samples import NEW_TOKENS, PROMPTS, complete, pair


def test_completions_are_greedy_and_alone(teacher_decoder: Decoder, tokenizer: Tokenizer) -> None:
    prompts = ["def f(", "import os\n\nclass"]
    done = complete(teacher_decoder, tokenizer, torch.device("cpu"), prompts)
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
    rows = pair(["t"] * len(PROMPTS), ["s"] * len(PROMPTS))
    assert [row.prompt for row in rows] == list(PROMPTS)
    assert {(row.teacher, row.student) for row in rows} == {("t", "s")}
