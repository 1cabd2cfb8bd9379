"""How a step grows: one point measured, and what is written."""

from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks.scale import AXES, BASE, Point, measure, save

VARIED = {
    "tokens per step": {"rows"},
    "sequence length": {"rows", "seq_len"},
    "vocabulary": {"vocab_size"},
    "processes": {"processes"},
}


def test_a_point_is_measured_in_this_process(one_thread: None) -> None:
    found = measure(Point(rows=2, seq_len=16, vocab_size=96), steps=2)
    assert 0 < found["seconds"] < 30
    assert found["bytes"] > 2e8


def test_every_axis_varies_one_thing_around_the_same_base() -> None:
    for axis, points in AXES.items():
        varied = [{key for key, value in asdict(point).items() if value != asdict(BASE)[key]} for point in points]
        assert all(keys <= VARIED[axis] for keys in varied)
        assert set().union(*varied) == VARIED[axis]
    assert len({point.rows * point.seq_len for point in AXES["sequence length"]}) == 1


def test_table_and_picture_carry_the_device(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = [{"axis": "processes", **asdict(BASE), "seconds": 1.5, "bytes": 2.0**30, "tokens_per_s": 100.0}]
    save(rows, tmp_path)
    device, names, values = (tmp_path / "scale.csv").read_text().splitlines()
    assert "threads, torch" in device
    assert dict(zip(names.split(","), values.split(","), strict=True))["seconds"] == "1.5"
    assert (tmp_path / "scale.png").read_bytes()[:4] == b"\x89PNG"
