"""A training step, timed as training takes it."""

from collections.abc import Callable

import pytest

from benchmarks.train_step import Options, cases, measure, ratio
from tutelage.training.config import RunConfig
from tutelage.training.meter import PARTS


def test_both_precisions_are_timed_in_one_process(
    make_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.train_step.matmul_rate", lambda *_: 1e12)  # emulated bf16 takes half a minute
    options = Options(precision="both", repeats=1)
    rows = measure(cases(options, make_config()), options)
    assert [row["case"] for row in rows] == ["fp32", "bf16"]
    for row in rows:
        assert row["step s"] > 0
        assert row["tokens/s"] == pytest.approx(4 * 32 / row["step s"])
        assert sum(row[f"{part} %"] for part in PARTS) == pytest.approx(100)
        assert row["MFU"] is None
        assert row["of matmul"] > 0
    found = ratio(rows)
    assert found == pytest.approx(rows[1]["step s"] / rows[0]["step s"])
    assert ratio(rows[:1]) is None
