"""Which dtype a run computes in."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tutelage.errors import UserError
from tutelage.training import precision as module
from tutelage.training.config import RunConfig
from tutelage.training.parts import build
from tutelage.training.precision import Precision, Widths, choose, matmul_rate

CPU, GPU = torch.device("cpu"), torch.device("cuda")
WIDTHS = Widths(tokens=64, student=8, student_ff=16, teacher=12, vocab_size=100)


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], list[tuple[int, int]]]:
    """Makes fp32 so many times as fast as bf16; returns the shapes that were measured."""

    def patch(times: float, among: Callable[[int, int], bool] = lambda inner, outer: True) -> list[tuple[int, int]]:
        seen: list[tuple[int, int]] = []

        def rate(device: torch.device, dtype: torch.dtype, tokens: int, inner: int, outer: int) -> float:
            seen.append((inner, outer))
            return times if dtype == torch.float32 and among(inner, outer) else 1.0

        monkeypatch.setattr(module, "matmul_rate", rate)
        return seen

    return patch  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("times", "name"), [(0.2, "bf16"), (1.0, "bf16"), (1.14, "bf16"), (1.16, "fp32"), (9.0, "fp32")]
)
def test_fp32_is_chosen_for_a_gain_beyond_noise_alone(rates: Any, times: float, name: str) -> None:
    rates(times)
    assert choose("auto", CPU, WIDTHS) == Precision(name, name, name)  # type: ignore[arg-type]


def test_each_part_is_chosen_by_its_own_shapes(rates: Any) -> None:
    seen = rates(2.0, lambda inner, outer: (inner, outer) == (8, 100))
    assert choose("auto", CPU, WIDTHS) == Precision("bf16", "bf16", "fp32")
    assert {*seen} == {(8, 16), (12, 48), (8, 100)}


def test_a_teacher_that_would_not_fit_stays_bf16(rates: Any) -> None:
    rates(5.0)
    huge = Widths(64, 8, 16, 12, 100, teacher_bytes=10**15)
    assert choose("auto", CPU, huge) == Precision("fp32", "bf16", "fp32")


def test_what_is_asked_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "matmul_rate", None)
    assert choose("fp32", CPU, WIDTHS) == Precision("fp32", "fp32", "fp32")
    assert choose("bf16", CPU, WIDTHS) == Precision()


@pytest.mark.parametrize("real", [True, False])
def test_a_gpu_computes_in_bf16_where_it_has_units_for_it(monkeypatch: pytest.MonkeyPatch, real: bool) -> None:
    asked: list[bool] = []

    def supported(including_emulation: bool = True) -> bool:
        asked.append(including_emulation)
        return real

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    assert choose("auto", GPU, WIDTHS).student == ("bf16" if real else "fp32")
    assert choose("fp32", GPU, WIDTHS) == Precision("fp32", "fp32", "fp32")
    if real:
        assert choose("bf16", GPU, WIDTHS) == Precision()
    else:
        with pytest.raises(UserError, match=r"--precision bf16: Tesla T4 only emulates bf16: pass --precision fp32"):
            choose("bf16", GPU, WIDTHS)
    assert not any(asked)


def test_a_rate_is_measured_once_per_process(monkeypatch: pytest.MonkeyPatch) -> None:
    random = torch.get_rng_state()
    rate = matmul_rate(CPU, torch.float32, 16, 24, 40)
    assert torch.equal(torch.get_rng_state(), random)
    assert 0 < rate < 1e16
    monkeypatch.setattr(module.F, "linear", None)
    assert matmul_rate(CPU, torch.float32, 16, 24, 40) == rate


def test_it_reads_as_one_word_where_it_is_one() -> None:
    assert str(Precision("fp32", "fp32", "fp32")) == "fp32"
    assert str(Precision("bf16", "fp32", "bf16")) == "student bf16, teacher fp32, head bf16"


def dtypes(parts: Any) -> tuple[torch.dtype, torch.dtype, set[torch.dtype]]:
    """What teacher, student and head compute in, seen from inside."""
    batch = parts.loader.batch(0)
    signal = parts.teacher.signal(batch)
    seen: dict[str, torch.dtype] = {}
    projection = parts.student.layers[0].mlp.down_proj
    hook = projection.register_forward_hook(lambda module, args, out: seen.update(student=out.dtype))
    heads: set[torch.dtype] = set()
    matmul = torch.mm

    def watched(left: torch.Tensor, right: torch.Tensor, **options: Any) -> torch.Tensor:
        heads.add(left.dtype)
        return matmul(left, right, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "mm", watched)
        counts = parts.distiller.objective.counts(batch)
        from tutelage.losses.term import Progress

        parts.distiller(batch, signal, counts, Progress(0, 1))
    hook.remove()
    return signal.dense.hidden.dtype, seen["student"], heads


@pytest.mark.parametrize(
    "chosen", [Precision("bf16", "bf16", "fp32"), Precision("bf16", "fp32", "bf16"), Precision("fp32", "bf16", "bf16"),
               Precision("fp32", "fp32", "fp32")], ids=str,
)  # fmt: skip
def test_each_part_computes_in_its_own(
    make_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch, chosen: Precision
) -> None:
    monkeypatch.setattr("tutelage.training.parts.choose", lambda *_: chosen)
    names = {torch.bfloat16: "bf16", torch.float32: "fp32"}
    parts = build(make_config(precision="auto", impl="eager"), None)
    teacher, student, heads = dtypes(parts)
    assert (names[student], names[teacher], {names[head] for head in heads}) == (
        chosen.student, chosen.teacher, {chosen.head},
    )  # fmt: skip
    assert parts.origin["precision"] == {"student": chosen.student, "teacher": chosen.teacher, "head": chosen.head}
    assert all(parameter.dtype == torch.float32 for parameter in parts.distiller.parameters())


def test_a_run_that_goes_on_keeps_what_it_began_with(
    make_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tutelage.training.parts.choose", None)  # nothing is measured anew
    recorded = {"precision": {"student": "bf16", "teacher": "fp32", "head": "bf16"}}
    assert build(make_config(precision="auto"), None, recorded=recorded).precision == Precision("bf16", "fp32", "bf16")
    assert build(make_config(precision="bf16"), None, recorded=recorded).precision == Precision("bf16", "fp32", "bf16")
    with pytest.raises(UserError, match="--precision fp32: the run began with student bf16, teacher fp32, head bf16"):
        build(make_config(precision="fp32"), None, recorded=recorded)


@pytest.mark.parametrize("name", ["bf16", "fp32"])
def test_older_runs_had_a_teacher_in_bf16(make_config: Callable[..., RunConfig], name: Any) -> None:
    parts = build(make_config(precision=name), None, recorded={"precision": name})
    assert parts.precision == Precision(name, "bf16", name)
