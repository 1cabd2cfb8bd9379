"""A report for people, read back from where it was written."""

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.evaluation.test_passk import greedy
from tutelage.evaluation.page import write_page
from tutelage.evaluation.pictures import PICTURES, draw
from tutelage.evaluation.report import Measured, comparisons

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
SETTINGS = {"environment": {"torch": "2.0"}, "sandbox": {"grade": "strong"}, "date": "2026-01-01", "samples": 1}


def measured(solved, ms, size):
    scores = greedy(solved, of=20)
    metrics = {"latency/token_ms_p50": ms, "size/parameters": size, "humaneval/pass@1": scores.metrics["pass@1"]}
    return Measured(metrics, {"humaneval/pass@1": scores.intervals["pass@1"]}, {"humaneval": scores}, {})


@pytest.fixture
def models():
    student, teacher = measured([3], 4.0, 50e6), measured([3, 5], 20.0, 135e6)
    student.details["fidelity"] = DEPTH
    return {"student": student, "teacher:x/y": teacher}


def test_every_picture_is_drawn(models, tmp_path):
    drawn = draw(models, tmp_path)
    assert set(drawn) == set(PICTURES)
    for path in drawn.values():
        with Image.open(path) as image:
            assert image.width > 600
            assert len(image.convert("RGB").getcolors(1 << 24)) > 20


def test_what_nobody_measured_is_not_drawn(tmp_path):
    assert draw({"a": Measured({"perplexity/loss": 2.0})}, tmp_path) == {}
    assert list(tmp_path.iterdir()) == []


def test_the_page_holds_numbers_comparison_failures_pictures_and_settings(models, tmp_path):
    write_page(tmp_path, models, SETTINGS, comparisons(models, 1))
    text = (tmp_path / "report.md").read_text()
    for part in (
        "# student and teacher:x/y",
        "| humaneval/pass@1 | 5.0% (0.0%–15.0%) | 10.0%",
        "student − teacher:x/y = -5.0 points",
        "![Latency against score",
        "| wrong answer | 19 | 18 |",
        "| 3 | 1 | 1 |",
        "| keyword | 100.0% | 75.0% | 0.500 |",
        "student '|' (50%), teacher ' return' (90%), text ' return'",
        "grade: strong",
        "samples 1",
    ):
        assert part in text
    assert "\n<img" not in text  # what a model or a file says stays text
    for path in ("pictures/verdicts.png", "pictures/latency-score.png"):
        assert f"]({path})" in text
        assert (tmp_path / path).is_file()


def test_tensorboard_shows_the_same(models, tmp_path):
    write_page(tmp_path, models, SETTINGS, [])
    events = {path.name: EventAccumulator(str(path)) for path in (tmp_path / "tensorboard").iterdir()}
    assert set(events) == {"student", "teacher-x_y", "report"}
    for one in events.values():
        one.Reload()
    assert events["student"].Scalars("latency/token_ms_p50")[0].value == 4
    assert events["teacher-x_y"].Scalars("humaneval/pass@1")[0].value == pytest.approx(0.1)
    assert set(events["report"].Tags()["images"]) == set(PICTURES)
    assert events["report"].Tags()["tensors"] == ["report/text_summary"]
