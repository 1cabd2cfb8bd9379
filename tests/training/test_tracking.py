"""What a run writes down, read back with TensorBoard's own reader."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch.utils.tensorboard  # noqa: F401  # its first import takes longer than a test's patience

from tutelage.training import tracking
from tutelage.training.samples import Sample
from tutelage.training.trackers import TRACKERS
from tutelage.training.tracking import Tracker

HOSTILE = (
    "<script>alert(1)</script>\n![](http://x/y.png)\n\x1b[31mred\x1b[0m \x1b]0;title\x07\r\x08"
    ' [a](javascript:x)\u2028<img src="http://x">\x85<b>\x0c# x'
)


def rows(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def events(run: Path):  # type: ignore[no-untyped-def]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(run / "tensorboard")).Reload()


def text_of(found, tag: str) -> str:  # type: ignore[no-untyped-def]
    from tensorboard.util import tensor_util

    return str(tensor_util.make_ndarray(found.Tensors(tag)[0].tensor_proto)[0].decode())


def test_scalars_and_samples_reach_tensorboard(tmp_path: Path) -> None:
    sample = Sample("def f():\n", "teacher said", "student said")
    with Tracker(tmp_path, ["tensorboard"], 0) as tracker:
        tracker.log(1, {"train/loss": 2.5, "perf/tokens_per_s": 10.0})
        tracker.log(2, {"train/loss": 1.5})
        tracker.log_samples(2, [sample])
    found = events(tmp_path)
    assert [(e.step, e.value) for e in found.Scalars("train/loss")] == [(1, 2.5), (2, 1.5)]
    assert [e.value for e in found.Scalars("perf/tokens_per_s")] == [10.0]
    [tag] = found.Tags()["tensors"]
    shown = text_of(found, tag)
    assert "def f():" in shown
    assert "teacher said" in shown
    assert "student said" in shown
    assert (tmp_path / "samples" / "step-2.md").read_text().strip("\n") == shown.strip("\n")


def test_text_cannot_become_markup_or_reach_the_terminal(tmp_path: Path) -> None:
    from tensorboard.plugin_util import markdown_to_safe_html

    with Tracker(tmp_path, ["tensorboard"], 0) as tracker:
        tracker.log_samples(1, [Sample(HOSTILE, HOSTILE, HOSTILE)])
    found = events(tmp_path)
    shown = text_of(found, found.Tags()["tensors"][0])
    for text in (shown, (tmp_path / "samples" / "step-1.md").read_text()):
        assert all(line.startswith("    ") for line in text.splitlines() if line)
        assert not [c for c in text if ord(c) < 32 and c != "\n"]
    html = markdown_to_safe_html(shown)
    assert not [tag for tag in ("<script", "<img", "<a ", "<b>", "<h1") if tag in html]
    assert "&lt;script" in html


def test_a_number_that_is_none_is_null(tmp_path: Path) -> None:
    with Tracker(tmp_path, [], 0) as tracker:
        tracker.log(3, {"a": float("nan"), "b": float("inf"), "c": 1.0})
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    assert rows(tmp_path) == [{"step": 3, "a": None, "b": None, "c": 1.0}]
    assert not (tmp_path / "tensorboard").exists()


def test_rows_after_the_step_it_goes_on_from_are_dropped(tmp_path: Path) -> None:
    with Tracker(tmp_path, [], 0) as tracker:
        for step in range(1, 6):
            tracker.log(step, {"x": float(step)})
    with Tracker(tmp_path, [], 3) as tracker:
        tracker.log(4, {"x": 40.0})
    assert [(row["step"], row["x"]) for row in rows(tmp_path)] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)]


def test_a_torn_last_row_does_not_stop_a_resumed_run(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "x": 1.0}\n{"step": 2, "x"')
    with Tracker(tmp_path, [], 2) as tracker:
        tracker.log(3, {"x": 3.0})
    assert [row["step"] for row in rows(tmp_path)] == [1, 3]


class Fake:
    """A tracker that does what a test wants of it at a named call."""

    def __init__(self, at: str, does: Callable[[], object]) -> None:
        self.at, self.does = at, does
        self.seen: list[tuple[str, object]] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        def call(*args: object) -> None:
            self.seen.append((name, args))
            if name == self.at:
                self.does()

        return call


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Callable[[], object]], Fake]:
    def make(at: str, does: Callable[[], object]) -> Fake:
        made = Fake(at, does)
        monkeypatch.setitem(TRACKERS, "fake", lambda run, step: made)  # type: ignore[arg-type]
        return made

    return make


MakeFake = Callable[[str, Callable[[], object]], Fake]


def written(run: Path, n: int = 40) -> float:
    """Seconds in which `n` rows are tracked by a fake tracker and by TensorBoard."""
    started = time.monotonic()
    with Tracker(run, ["fake", "tensorboard"], 0, {"seed": 0}) as tracker:
        for step in range(1, n + 1):
            tracker.log(step, {"x": float(step)})
        tracker.log_samples(n, [Sample("p", "t", "s")])
    return time.monotonic() - started


def test_a_tracker_is_told_everything_in_order(tmp_path: Path, fake: MakeFake) -> None:
    made = fake("never", lambda: None)
    written(tmp_path, 2)
    assert [name for name, _ in made.seen] == ["start", "describe", "log", "log", "text", "finish"]
    assert made.seen[1] == ("describe", ({"seed": 0},))
    assert made.seen[3] == ("log", ({"x": 2.0}, 2))


@pytest.mark.parametrize("at", ["start", "describe", "log", "text", "finish"])
@pytest.mark.parametrize("error", [OSError("no server"), SystemExit(3), KeyboardInterrupt()])
def test_one_that_raises_is_dropped_with_one_warning(
    tmp_path: Path, fake: MakeFake, caplog: pytest.LogCaptureFixture, at: str, error: BaseException
) -> None:
    def fail() -> None:
        raise error

    fake(at, fail)
    written(tmp_path)
    [line] = [record.message for record in caplog.records if "dropped" in record.message]
    assert f"tracker fake dropped: {type(error).__name__}" in line
    assert len(rows(tmp_path)) == 40
    assert len(events(tmp_path).Scalars("x")) == 40


@pytest.mark.parametrize("at", ["start", "log", "finish"])
def test_one_that_hangs_is_dropped_with_one_warning(
    tmp_path: Path, fake: MakeFake, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    monkeypatch.setattr(tracking, "PATIENCE", 1.0)
    never = threading.Event()
    fake(at, never.wait)
    assert written(tmp_path) < 5
    assert sum("tracker fake dropped: it was not done 1 s after" in record.message for record in caplog.records) == 1
    assert len(rows(tmp_path)) == 40
    assert len(events(tmp_path).Scalars("x")) == 40
    never.set()


def test_one_that_falls_behind_is_dropped_at_once(
    tmp_path: Path, fake: MakeFake, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "WAITING", 45)
    never = threading.Event()
    made = fake("log", never.wait)
    assert written(tmp_path, 200) < 5
    assert sum("calls behind" in record.message for record in caplog.records) <= 2  # TensorBoard may be, too
    assert "tracker fake dropped: it is 45 calls behind" in caplog.text
    assert len(rows(tmp_path)) == 200
    assert [name for name, _ in made.seen] == ["start", "describe", "log"]
    never.set()


def test_a_password_in_an_address_is_not_repeated(
    tmp_path: Path, fake: MakeFake, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise OSError("no answer from https://me:hidden@tracker.example/api")

    fake("start", fail)
    written(tmp_path)
    assert "https://…@tracker.example/api" in caplog.text
    assert "hidden" not in caplog.text
