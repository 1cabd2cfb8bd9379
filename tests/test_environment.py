"""What a number was made with."""

from pathlib import Path

import pytest

from tutelage.environment import environment, processor


def test_it_names_what_decides_rounding() -> None:
    assert {"python", "machine", "processor", "threads", "torch", "numpy", "triton"} <= set(environment())


def test_the_processor_is_named_with_its_units(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "processor\t: 0\nmodel name\t: A  B-1\nflags\t\t: fpu avx2 amx_bf16 sse\n\n"
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: said)
    assert processor() == "A  B-1 avx2 amx_bf16"

    def refuse(*_: object, **__: object) -> str:
        raise OSError

    monkeypatch.setattr(Path, "read_text", refuse)
    assert processor()
