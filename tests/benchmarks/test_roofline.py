"""The model of the kernels' times: its figures are those that can be worked out by hand."""

import sys
from pathlib import Path

import pytest

from benchmarks.roofline import DEVICES, Part, gemm, kernels, loss, main, row_work

H100 = DEVICES["h100"]


def ms(name: str) -> float:
    return sum(part.ms(H100) for part in kernels()[name])


@pytest.mark.parametrize(
    ("name", "tflop", "expected"),
    [
        ("student logits, flops alone", 0.618, 0.78),
        ("teacher logits, flops alone", 2.474, 3.13),
        ("loss, flops alone", 4.33, 5.48),
        ("… student's logits recomputed", 4.95, 6.26),
        ("… both recomputed", 7.42, 9.39),
        ("attention forward", 0.0515, 0.065),
        ("attention backward, 5 matmuls", 0.1288, 0.163),
        ("attention backward", 0.1804, 0.228),
    ],
)
def test_flops_and_the_time_they_need(name: str, tflop: float, expected: float) -> None:
    assert sum(part.flops for part in kernels()[name]) / 1e12 == pytest.approx(tflop, rel=2e-3)
    assert ms(name) == pytest.approx(expected, abs=0.005 if expected > 0.5 else 5e-4)


def test_exponentials_of_the_attention() -> None:
    assert ms("… exponentials") == pytest.approx(0.054, abs=5e-4)


def test_what_a_part_is_bound_by() -> None:
    assert Part(790e9, 0).ms(H100) == pytest.approx(1)
    assert Part(0, 3e9).ms(H100) == pytest.approx(1)
    assert Part(1e9, 3e9, exps=2 * 3706.56e6).ms(H100) == pytest.approx(2)
    assert Part(0, 0, again=1.5 * 3.35e9).ms(H100) == pytest.approx(1)


def test_from_what_width_a_logit_is_kept() -> None:
    """Computed again it costs 2d flops, stored and loaded 4 bytes."""
    at = 2 * H100.tflops / H100.bandwidth
    assert Part(2 * at, 0).ms(H100) == pytest.approx(Part(0, 4).ms(H100))
    assert at == pytest.approx(527, abs=0.5)


def test_a_head_is_read_once_a_chunk_and_its_gradient_twice_but_for_the_first() -> None:
    head = 49_152 * 768
    assert gemm(768, 1024).bytes - gemm(768, 8192).bytes == 7 * 2 * head
    assert gemm(768, 2048, summed=4).bytes - gemm(768, 8192, summed=4).bytes == 6 * 4 * head


def test_the_row_work_moves_what_it_says() -> None:
    logits = 8192 * 49_152
    assert row_work(2, cached=False).bytes == row_work(2).bytes + row_work(2).again == 10 * logits
    assert row_work(3).bytes == 6 * logits
    assert row_work(tensors=1).bytes == 4 * logits


def test_the_loss_has_the_minimum_and_something_on_top() -> None:
    best = sum(part.ms(H100) for part in loss(2048, row_work()))
    assert ms("loss, flops alone") < best < ms("loss, chunks of 1,024") < ms("loss, naive")


def test_a_table_and_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    assert main(["--output", str(tmp_path / "roof.png")]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("a model, not a measurement: H100 SXM, 790 TFLOP/s and 3 TB/s")
    assert "from a width of 527 on" in printed
    assert (tmp_path / "roof.png").read_bytes()[:4] == b"\x89PNG"
    assert 10_000 < (tmp_path / "roof.png").stat().st_size < 120_000


def test_a_device_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--device", "mine", "--tflops", "100", "--bandwidth", "1"])
    assert "mine, 80 TFLOP/s and 0.9 TB/s" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--device", "mine"], ["--tflops", "100"]])
def test_half_a_device_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "--bandwidth" in capsys.readouterr().err


def test_the_drawing_library_is_loaded_only_to_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main([]) == 0
