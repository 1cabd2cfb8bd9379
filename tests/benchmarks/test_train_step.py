"""A step taken apart is the step that training takes."""

from collections.abc import Callable

import pytest
import torch

from benchmarks.train_step import Options, cases, measure, ratio
from benchmarks.workload import STEP_PARTS, Workload, forward_flops
from tutelage.student.config import PRESETS, StudentConfig
from tutelage.training.config import RunConfig
from tutelage.training.optim import learning_rate, set_learning_rate


def test_the_parts_together_are_the_step(make_config: Callable[..., RunConfig]) -> None:
    config = make_config()
    whole, apart = Workload(config), Workload(config)
    before = [weight.detach().clone() for weight in apart.parts.student.parameters()]
    set_learning_rate(apart.parts.optimizer, learning_rate(0, apart.parts.steps, config.optim))
    whole.step()
    marks: list[int] = []
    apart.by_part(lambda: marks.append(1))
    assert len(marks) == len(STEP_PARTS) + 1
    moved = [not torch.equal(a, b) for a, b in zip(before, apart.parts.student.parameters(), strict=True)]
    assert all(moved)
    for mine, right in zip(apart.parts.student.parameters(), whole.parts.student.parameters(), strict=True):
        torch.testing.assert_close(mine, right)


def test_both_precisions_are_timed_in_one_process(make_config: Callable[..., RunConfig]) -> None:
    options = Options(precision="both", repeats=1)
    rows = measure(cases(options, make_config()), options)
    assert [row["case"] for row in rows] == ["fp32", "bf16"]
    for row in rows:
        assert row["step s"] > 0
        assert row["tokens/s"] == pytest.approx(4 * 32 / row["step s"])
        assert sum(row[f"{part} %"] for part in STEP_PARTS) == pytest.approx(100)
        assert row["MFU"] is None
        assert row["of matmul"] > 0
    found = ratio(rows)
    assert found == pytest.approx(rows[1]["step s"] / rows[0]["step s"])
    assert ratio(rows[:1]) is None


def test_flop_of_a_token() -> None:
    """By hand, of one layer: four projections, three matrices of the MLP, the head; attention over half of the row."""
    shape = StudentConfig(vocab_size=64, n_layers=1, n_heads=4, n_kv_heads=2, d_model=8, d_ff=10)
    matrices = 2 * 8 * 8 + 2 * 8 * 4 + 3 * 8 * 10 + 64 * 8
    norms = 3 * 8
    assert forward_flops(shape, 6) == 2 * (matrices + norms) + 2 * 2 * 3 * 8
    base = StudentConfig(vocab_size=49_152, **PRESETS["125m"])  # type: ignore[arg-type]
    assert 6 * forward_flops(base, 0) / 2 == pytest.approx(6 * base.n_parameters)
