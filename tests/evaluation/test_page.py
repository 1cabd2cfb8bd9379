"""A report for people, read back from where it was written."""

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tutelage.evaluation.page import write_page
from tutelage.evaluation.pictures import PICTURES
from tutelage.evaluation.report import comparisons

SETTINGS = {"environment": {"torch": "2.0"}, "sandbox": {"grade": "strong"}, "date": "2026-01-01", "samples": 1}


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
