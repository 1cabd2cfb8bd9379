"""The same prompts completed by teacher and student."""

import re
from collections.abc import Sequence
from pathlib import Path

from tutelage.data.tokenizer import Tokenizer
from tutelage.errors import UserError
from tutelage.student.cache import CausalLM
from tutelage.student.generate import generate
from tutelage.training.processes import Processes
from tutelage.training.tracking import Sample

PROMPTS = (
    'def fibonacci(n):\n    """Return the n-th Fibonacci number."""\n',
    "import os\n\ndef list_files(path):\n",
    "class Stack:\n    def __init__(self):\n",
)
NEW_TOKENS = 48


def read_prompts(path: str | None) -> tuple[str, ...]:
    """The prompts of a text file, between lines of three or more dashes; the built-in ones without a file.

    Raises UserError where it cannot be read or holds none.
    """
    if path is None:
        return PROMPTS
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--prompts {path} cannot be read ({type(error).__name__}): give a text file") from error
    found = tuple(part for part in re.split(r"^---+\n", text, flags=re.MULTILINE) if part.strip())
    if not found:
        raise UserError(f"--prompts {path} holds no prompt: write some, with a line of --- between two")
    return found


def complete(model: CausalLM, tokenizer: Tokenizer, processes: Processes, prompts: Sequence[str]) -> list[str]:
    """Greedy continuations, as raw text; every process must ask."""
    ids = [tokenizer.encode(prompt) for prompt in prompts]
    done = generate(
        model,
        ids,
        max_new_tokens=NEW_TOKENS,
        eos_id=tokenizer.eos_id,
        device=processes.device,
        broadcast=processes.broadcast,
    )
    return [tokenizer.decode(new) for new in done]


def pair(prompts: Sequence[str], teacher: Sequence[str], student: Sequence[str]) -> list[Sample]:
    """Samples from both sides' completions."""
    return [Sample(*row) for row in zip(prompts, teacher, student, strict=True)]
