"""The same prompts completed by teacher and student."""

from collections.abc import Sequence

import torch

from tutelage.data.tokenizer import Tokenizer
from tutelage.student.cache import CausalLM
from tutelage.student.generate import generate
from tutelage.training.tracking import Sample

PROMPTS = (
    'def fibonacci(n):\n    """Return the n-th Fibonacci number."""\n',
    "import os\n\ndef list_files(path):\n",
    "class Stack:\n    def __init__(self):\n",
)
NEW_TOKENS = 48


def complete(
    model: CausalLM, tokenizer: Tokenizer, device: torch.device, prompts: Sequence[str] = PROMPTS
) -> list[str]:
    """Greedy continuations, as raw text."""
    ids = [tokenizer.encode(prompt) for prompt in prompts]
    done = generate(model, ids, max_new_tokens=NEW_TOKENS, eos_id=tokenizer.eos_id, device=device)
    return [tokenizer.decode(new) for new in done]


def pair(teacher: Sequence[str], student: Sequence[str], prompts: Sequence[str] = PROMPTS) -> list[Sample]:
    """Samples from both sides' completions."""
    return [Sample(*row) for row in zip(prompts, teacher, student, strict=True)]
