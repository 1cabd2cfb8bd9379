"""The same prompts completed by teacher and student, side by side."""

import re
from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from tutelage.data.tokenizer import Tokenizer
from tutelage.errors import UserError
from tutelage.student.cache import CausalLM
from tutelage.student.generate import generate
from tutelage.training.processes import Processes

PROMPTS = (
    'def fibonacci(n):\n    """Return the n-th Fibonacci number."""\n',
    "import os\n\ndef list_files(path):\n",
    "class Stack:\n    def __init__(self):\n",
)
NEW_TOKENS = 48
WIDTH = 44
"""Columns of each side: both stand whole in TensorBoard in a window of 1,280 pixels."""
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Sample(NamedTuple):
    """One prompt, completed by teacher and student."""

    prompt: str
    teacher: str
    student: str


def read_prompts(path: str | None) -> tuple[str, ...]:
    """The prompts of a text file, between lines of three or more dashes; the built-in ones without a file.

    Raises UserError where it cannot be read or holds none.
    """
    if path is None:
        return PROMPTS
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--prompts {path} cannot be read ({type(error).__name__}): give a text file") from error
    found = tuple(part for part in re.split(r"^---+\n", text, flags=re.MULTILINE) if part.strip())
    if not found:
        raise UserError(f"--prompts {path} holds no prompt: write some, with a line of --- between two")
    return found


def complete(
    model: CausalLM | None,
    tokenizer: Tokenizer,
    processes: Processes,
    prompts: Sequence[str],
    stop: Callable[[], bool] = lambda: False,
) -> list[str]:
    """Greedy continuations, as raw text, cut short once `stop` says so; every process must ask.

    Instead of one for a prompt beyond the model's context, or of a teacher that does not generate, a line that says so.
    """
    if model is None:
        return ["(this teacher does not generate)"] * len(prompts)
    ids = [tokenizer.encode_prompt(prompt) for prompt in prompts]
    fits = [model.context is None or len(tokens) <= model.context for tokens in ids]
    done = generate(
        model,
        [tokens for tokens, fit in zip(ids, fits, strict=True) if fit],
        max_new_tokens=NEW_TOKENS,
        end_ids=tokenizer.end_ids,
        stop=lambda new: stop(),
        device=processes.device,
        broadcast=processes.broadcast,
    )
    texts = iter(done)
    return [
        tokenizer.decode(next(texts)) if fit else f"(a prompt of {len(tokens)} tokens, beyond the {model.context} read)"
        for tokens, fit in zip(ids, fits, strict=True)
    ]


def pair(prompts: Sequence[str], teacher: Sequence[str], student: Sequence[str]) -> list[Sample]:
    """Samples from both sides' completions."""
    return [Sample(*row) for row in zip(prompts, teacher, student, strict=True)]


def side_by_side(sample: Sample, width: int = WIDTH) -> str:
    """Markdown of one sample: a single block of code with teacher and student in two columns."""
    left, right = (_wrapped(clean(side), width) for side in (sample.teacher, sample.student))
    rows = [("teacher", "student"), ("-" * width, "-" * width), *zip_longest(left, right, fillvalue="")]
    columns = "\n".join(f"{a:<{width}} | {b}" for a, b in rows)
    return f"{indent(sample.prompt)}\n\n{indent(columns)}"


def _wrapped(text: str, width: int) -> list[str]:
    """Lines of `width` at most: a long one goes on below, or it would push the other column out of sight."""
    return [line[at : at + width] for line in text.splitlines() for at in range(0, max(1, len(line)), width)]


def indent(text: str) -> str:
    """Every line four spaces in: markdown shows it as it is, and no image or tag in it comes alive."""
    return "\n".join("    " + line for line in clean(text).splitlines())


def clean(text: str) -> str:
    """Without terminal escapes and control characters; tabs become spaces."""
    return _CONTROL.sub("", text.expandtabs(4))
