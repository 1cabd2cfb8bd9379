"""What tests of evaluation share."""

import pytest

from tests.evaluation.test_passk import greedy
from tutelage.evaluation.report import Measured

BIN = {"count": 5, "confidence": 0.55, "accuracy": 0.4}
SLICE = {"name": "keyword", "share": 1.0, "count": 5, "agreement": 0.75, "kl": 0.5}
PIECE = {
    "kl": 1.25, "count": 20, "peak_kl": 3.5, "context": "def f(x):\n    <img src=x>", "target": " return",
    "student": {"text": "|", "probability": 0.5}, "teacher": {"text": " return", "probability": 0.9},
}  # fmt: skip
DEPTH = {
    "student": {"bins": [BIN], "error": 0.15}, "teacher": {"bins": [BIN], "error": 0.15},
    "by_position": [{**SLICE, "name": "0-7"}], "token_classes": [SLICE], "furthest": [PIECE],
}  # fmt: skip


def measured(solved: list[int], ms: float, size: float) -> Measured:
    scores = greedy(solved, of=20)
    metrics = {"latency/token_ms_p50": ms, "size/parameters": size, "humaneval/pass@1": scores.metrics["pass@1"]}
    return Measured(metrics, {"humaneval/pass@1": scores.intervals["pass@1"]}, {"humaneval": scores}, {})


@pytest.fixture
def models() -> dict[str, Measured]:
    """A student, whose fidelity is known, and its teacher."""
    student, teacher = measured([3], 4.0, 50e6), measured([3, 5], 20.0, 135e6)
    student.details["fidelity"] = DEPTH
    return {"student": student, "teacher:x/y": teacher}
