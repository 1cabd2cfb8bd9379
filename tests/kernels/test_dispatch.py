"""Which implementation is chosen, by whom, and what happens where it cannot be had."""

import logging
import re
import subprocess
import sys
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch

from tutelage.errors import UserError
from tutelage.kernels import dispatch
from tutelage.kernels.ahead_of_time import MODULES
from tutelage.kernels.dispatch import pick

ON_CPU = torch.zeros(1)


def on_a_gpu(index=0):
    """What a choice looks at of a tensor on a GPU."""
    return SimpleNamespace(device=torch.device("cuda", index))


@pytest.fixture
def gpu(monkeypatch):
    """A host with a GPU and all that Triton wants; `gpu(...)` takes something away or changes it."""
    pytest.importorskip("triton")
    for name in MODULES:  # now, for they are interpreted or not as this environment says when they are first imported
        import_module(name)

    def host(capability=(9, 0), hip=None, which=lambda name: f"/bin/{name}", installed=True):
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        monkeypatch.delenv("CC", raising=False)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.version, "hip", hip)
        monkeypatch.setattr(dispatch.shutil, "which", which)
        monkeypatch.setattr(dispatch, "find_spec", lambda name: object() if installed else None)
        dispatch.lacks.cache_clear()

    host()
    return host


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


def test_on_a_gpu_auto_is_triton_for_the_loss_and_pytorch_for_attention(gpu):
    assert pick("linear_divergence", "auto", on_a_gpu(), ("triton_rows", 0)) == "triton"
    for op in dispatch.UNMEASURED:
        assert pick(op, "auto", on_a_gpu(), ("triton_attention", torch.float16, 64)) == "eager"
    assert pick("attention", "triton", on_a_gpu(), ("triton_attention", torch.float16, 64)) == "triton"


@pytest.mark.parametrize(
    ("host", "lack"),
    [
        ({"which": lambda name: None}, "a C compiler"),
        ({"capability": (7, 5)}, r"compute capability 8\.0 or later, and this one has 7\.5"),
        ({"installed": False}, "the package triton"),
    ],
)
def test_what_a_gpu_lacks_is_said_and_passed_by(gpu, host, lack):
    gpu(**host)
    assert pick("linear_divergence", "auto", on_a_gpu(), ("triton_rows", 0)) == "eager"
    assert re.search(lack, dispatch.best("cuda")[1])
    with pytest.raises(UserError, match=rf"op: impl 'triton' needs .*{lack}.*'cuda:0': choose impl 'auto'"):
        pick("op", "triton", on_a_gpu())
    with pytest.raises(UserError, match=lack):
        dispatch.use("triton", "cuda:0")


def test_rocm_has_other_capabilities(gpu):
    gpu(capability=(7, 0), hip="6.4")
    assert pick("op", "auto", on_a_gpu()) == "triton"


def test_the_compiler_may_be_named(gpu, monkeypatch):
    gpu(which=lambda name: name if name == "cc-of-mine" else None)
    monkeypatch.setenv("CC", "cc-of-mine -m64")
    assert dispatch.lacks("triton", "cuda") is None
    assert dispatch.lacks("compile", "cuda") is None


@pytest.mark.parametrize("type", ["mps", "xpu"])
def test_other_devices_get_plain_pytorch(gpu, type):
    tensor = SimpleNamespace(device=torch.device(type))
    assert pick("op", "auto", tensor, ("triton_rows", 0), native=True) == "eager"
    with pytest.raises(UserError, match=f"needs a CUDA device.*'{type}'"):
        pick("op", "triton", tensor)


@pytest.mark.parametrize(
    ("kernel", "lack"),
    [
        (("triton_attention", torch.float16, 11), "head size that is an even number from 2 to 128, got 11"),
        (("triton_decode", torch.float16, 256), "head size that is an even number from 2 to 128, got 256"),
        (("triton_attention", torch.int8, 64), r"one dtype of .*got torch\.int8"),
        (("triton_decode", torch.complex64, 64), r"one dtype of .*got torch\.complex64"),
        (("triton_rows", 1025), "at most 1024 tokens of a sparse teacher, got 1025"),
    ],
)
def test_a_kernel_says_what_it_does_not_take(gpu, kernel, lack):
    assert pick("op", "auto", on_a_gpu(), kernel) == "eager"
    with pytest.raises(UserError, match=f"op: impl 'triton' needs .*{lack}"):
        pick("op", "triton", on_a_gpu(), kernel)


def test_the_choice_is_logged_once(gpu, caplog):
    with caplog.at_level(logging.DEBUG, logger=dispatch.__name__):
        for _ in range(3):
            pick("op", "auto", ON_CPU)
        pick("other", "auto", on_a_gpu(), ("triton_rows", 5000))
    said = [(record.levelname, record.getMessage()) for record in caplog.records]
    why = "as something faster needs at most 1024 tokens of a sparse teacher, got 5000"
    assert said == [("DEBUG", "op on cpu: eager"), ("INFO", f"other on cuda: eager, {why}")]


def test_the_kernels_are_imported_without_triton_or_the_compiler():
    """They take longer than everything else a decoder needs; who trains or compiles gets them then."""
    code = (
        "import sys, tutelage.kernels.attention, tutelage.kernels.logit_divergence;"
        "sys.exit(', '.join({'triton', 'torch._dynamo'} & {*sys.modules}) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
