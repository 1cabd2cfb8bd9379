"""Tutelage distils a large code model into a small one that you can read and run."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tutelage.evaluation.run import evaluate
    from tutelage.student.weights import load_student
    from tutelage.training.loop import distill

__version__ = "0.1.0"
__all__ = ["distill", "evaluate", "load_student"]

_HOMES = {"distill": "training.loop", "evaluate": "evaluation.run", "load_student": "student.weights"}


def __getattr__(name: str) -> Any:
    """Finds the public functions on first use, so that `import tutelage` does not pay for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'tutelage' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(f"tutelage.{_HOMES[name]}"), name)
