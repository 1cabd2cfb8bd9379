"""Generation with a transformers model, row by row."""

from pathlib import Path

import torch

from tutelage.student.generate import generate
from tutelage.teacher.registry import load_teacher

PROMPTS = [[5, 6, 7, 8], [9], [10, 11]]


def greedy(model: torch.nn.Module, prompt: list[int], count: int) -> list[int]:
    """The slow way: the whole text again for every token."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def test_rows_of_other_lengths_do_not_touch_each_other(olmo_dir: Path) -> None:
    teacher = load_teacher(str(olmo_dir))
    assert teacher.decoder is None
    teacher.model.float()  # type: ignore[attr-defined]  # bf16 may break ties another way
    done = generate(teacher.generator(), PROMPTS, max_new_tokens=6, end_ids={10_000})
    assert done == [greedy(teacher.model, prompt, 6) for prompt in PROMPTS]  # type: ignore[attr-defined]


def test_rows_that_end_leave_the_batch(olmo_dir: Path) -> None:
    teacher = load_teacher(str(olmo_dir))
    teacher.model.float()  # type: ignore[attr-defined]
    whole = generate(teacher.generator(), PROMPTS, max_new_tokens=6, end_ids={10_000})
    end = whole[0][2]
    cut = [row[: row.index(end)] if end in row else row for row in whole]
    assert generate(teacher.generator(), PROMPTS, max_new_tokens=6, end_ids={end}) == cut
