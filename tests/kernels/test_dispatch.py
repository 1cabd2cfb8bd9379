"""Which implementation is chosen, by whom, and what happens where it cannot be had."""

import logging
import subprocess
import sys

import pytest
import torch

from tutelage.kernels import dispatch
from tutelage.kernels.dispatch import pick

ON_CPU = torch.zeros(1)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    for cached in (dispatch.lacks, dispatch._announce):
        cached.cache_clear()
    monkeypatch.delenv(dispatch.VARIABLE, raising=False)
    monkeypatch.setattr(dispatch, "_chosen", None)
    yield
    for cached in (dispatch.lacks, dispatch._announce):
        cached.cache_clear()


def test_a_cpu_gets_plain_pytorch():
    assert pick("op", "auto", ON_CPU) == "eager"


def test_argument_over_flag_over_environment(monkeypatch):
    monkeypatch.setenv(dispatch.VARIABLE, "compile")
    assert pick("op", "auto", ON_CPU) == "compile"
    dispatch.use("eager")
    assert pick("op", "auto", ON_CPU) == "eager"
    assert pick("op", "compile", ON_CPU) == "compile"


def test_a_choice_is_refused_when_it_is_made(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="kernels: impl 'triton' needs a CUDA device"):
        dispatch.use("triton")


def test_an_unknown_name_is_refused_with_its_source(monkeypatch):
    with pytest.raises(ValueError, match="impl 'cuda' is unknown: choose one of auto, triton, eager, compile"):
        dispatch.use("cuda")
    monkeypatch.setenv(dispatch.VARIABLE, "fast")
    with pytest.raises(ValueError, match="TUTELAGE_IMPL 'fast' is unknown"):
        pick("op", "auto", ON_CPU)


def test_an_explicit_choice_that_cannot_be_honoured_is_an_error(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match=r"op: impl 'triton' needs a CUDA device .*on 'cpu': choose impl 'auto'"):
        pick("op", "triton", ON_CPU)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match=r"needs a C\+\+ compiler"):
        pick("op", "compile", ON_CPU)
    monkeypatch.setattr(dispatch, "find_spec", lambda name: None)
    dispatch.lacks.cache_clear()
    with pytest.raises(ValueError, match="needs the package triton"):
        pick("op", "triton", ON_CPU)


def test_the_choice_is_logged_once(caplog):
    with caplog.at_level(logging.DEBUG, logger=dispatch.__name__):
        for _ in range(3):
            pick("op", "auto", ON_CPU)
        dispatch._resolve("other", "auto", "cuda", able=False, native=False)
    said = [(record.levelname, record.getMessage()) for record in caplog.records]
    why = "as something faster needs a kernel for these shapes or this dtype"
    assert said == [("DEBUG", "op on cpu: eager"), ("INFO", f"other on cuda: eager, {why}")]


def test_the_kernels_are_imported_without_triton_or_the_compiler():
    """They take longer than everything else a decoder needs; who trains or compiles gets them then."""
    code = (
        "import sys, tutelage.kernels.attention, tutelage.kernels.logit_divergence;"
        "sys.exit(', '.join({'triton', 'torch._dynamo'} & {*sys.modules}) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
