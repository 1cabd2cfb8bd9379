"""Tutelage distils a large code model into a small one that you can read and run."""

import os.path
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tutelage.evaluation.run import evaluate
    from tutelage.student.weights import load_student
    from tutelage.train import distill

__version__ = "0.1.0"
__all__ = ["distill", "evaluate", "load_student"]

if not os.path.isdir(os.path.join(os.path.dirname(__file__), "kernels")):
    print(
        "error: tutelage/kernels and its neighbours must be links to folders, and in this copy they are not: clone again with"
        " `git clone -c core.symlinks=true URL` (on Windows: in developer mode), or in this clone run"
        " `git config core.symlinks true` and `git checkout -f HEAD -- tutelage`",
        file=sys.stderr,
    )
    raise SystemExit(2)  # nothing below would be found

_HOMES = {"distill": "train", "evaluate": "evaluation.run", "load_student": "student.weights"}


def __getattr__(name: str) -> Any:
    """Finds the public functions on first use, so that `import tutelage` does not pay for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'tutelage' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(f"tutelage.{_HOMES[name]}"), name)
