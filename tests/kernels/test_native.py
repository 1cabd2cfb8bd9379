"""The row work in C++ against the definitions in fp64, and what builds it.

Shapes: R rows, V vocabulary.
"""

import logging
import os
import subprocess
import sys
from functools import partial

import pytest
import torch

from tutelage.kernels import dispatch, native, reference, rows
from tutelage.kernels.linear_divergence import linear_divergence
from tutelage.kernels.logit_divergence import logit_divergence
from tutelage.kernels.rows import Work

pytestmark = pytest.mark.skipif(isinstance(native.library(), str), reason=f"needs {native.library()}")
KD, CE = 0.8, 0.2


def work(V, temperature=1.0, **other):
    return Work(**{"kind": "forward_kl", "vocab_size": V, "tempered": temperature != 1, "with_grad": True,
                   "by_temperature": False, "masked": False, **other})  # fmt: skip


def swept(s, t, targets, temperature=1.0, **other):
    """(divergence, cross-entropy) and what the row work leaves in a copy of the logits."""
    s = s.clone()
    knobs = torch.tensor([KD, CE, temperature, 0.0])
    return rows.compile(s, t, targets, knobs, work(s.shape[1], temperature, **other))[:2], s


def specified(s, t, targets, temperature=1.0):
    s = s.double().requires_grad_()
    divergence = s.new_zeros(()) if t is None else reference.forward_kl(s, t.double(), temperature).sum()
    cross_entropy = -s.log_softmax(-1).gather(1, targets[:, None]).sum()
    (KD * temperature**2 * divergence + CE * cross_entropy).backward()
    return torch.stack((divergence, cross_entropy)).detach(), s.grad


def draw(R=7, V=1000, seed=0, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    return *(torch.randn(2, R, V, generator=generator) * scale), torch.randint(V, (R,), generator=generator)


@pytest.mark.parametrize("s_dtype", native.DTYPES)
@pytest.mark.parametrize("t_dtype", [*native.DTYPES, None])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("V", [1, 33, 1000, 49_152])
def test_equals_the_definitions(s_dtype, t_dtype, temperature, V):
    s, t, targets = draw(R=3, V=V)
    s, t = s.to(s_dtype), None if t_dtype is None else t.to(t_dtype)
    truth, slope = specified(s, t, targets, temperature)
    found, grad = swept(s, t, targets, temperature)
    assert ((found - truth).abs() <= 1e-5 * truth + 3e-6).all()
    rounding = torch.finfo(s_dtype).eps
    assert ((grad.double() - slope).abs() <= rounding * slope.abs() + 1e-6).all()


def test_is_what_auto_does():
    """The whole loss agrees with the eager one, and is not the same computation."""
    s, t, targets = draw()
    ours, plain = (logit_divergence(s, t, targets, ce_weight=CE, impl=impl).total for impl in ("auto", "eager"))
    torch.testing.assert_close(ours, plain)
    hidden, head = s[:, :8].bfloat16(), t.flatten()[:4000].view(500, 8).bfloat16()
    for given in ("auto", "compile"):
        assert dispatch.pick("op", given, hidden, native=True) == "compile"
    loss = partial(linear_divergence, hidden, head, None, targets % 500, ce_weight=1.0)
    torch.testing.assert_close(loss().total, loss(impl="eager").total)


@pytest.mark.parametrize("R", [1, 2, 7])
def test_any_number_of_threads_gives_the_same_bits(R):
    s, t, targets = draw(R=R)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            found.append(swept(s, t, targets, 2.0))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_strides_and_padding():
    s, t, targets = draw(V=40)
    padded = torch.full((7, 48), float("nan"))
    padded[:, :40] = s
    truth = swept(s, t, targets)
    knobs = torch.tensor([KD, CE, 1.0, 0.0])
    found = rows.compile(padded, t.t().contiguous().t(), targets.repeat_interleave(2)[::2], knobs, work(40))
    assert torch.equal(found[:2], truth[0])
    assert torch.equal(padded[:, :40], truth[1])
    assert padded[:, 40:].isnan().all()


def test_without_a_gradient_nothing_is_written():
    s, t, targets = draw()
    for teacher in (t, None):
        expected = swept(s, teacher, targets, 2.0)[0]
        found, after = swept(s, teacher, targets, 2.0, with_grad=False)
        assert torch.equal(found, expected)
        assert torch.equal(after, s)


@pytest.mark.parametrize("dtype", native.DTYPES)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_masked_tokens_have_no_share(dtype, temperature):
    s, t, targets = draw(V=50)
    gone = torch.arange(50) % 7 == 3
    s, t, targets = s.to(dtype).masked_fill(gone, -torch.inf), t.to(dtype).masked_fill(gone, -torch.inf), targets * 0
    truth, slope = specified(s[:, ~gone], t[:, ~gone], targets, temperature)
    found, grad = swept(s, t, targets, temperature, masked=True)
    torch.testing.assert_close(found.double(), truth, rtol=1e-5, atol=1e-5)
    assert (grad[:, gone] == 0).all()
    assert (grad[:, ~gone].double() - slope).abs().max() <= 2 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", native.DTYPES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_row_says_so_and_spoils_no_other(dtype, value):
    s, t, targets = draw()
    whole = swept(s.to(dtype), t.to(dtype), targets)[1]
    s[2, 5] = value
    found, grad = swept(s.to(dtype), t.to(dtype), targets)
    assert found.isnan().all()
    assert grad[2].isnan().all()
    assert torch.equal(grad[torch.arange(7) != 2], whole[torch.arange(7) != 2])


@pytest.mark.parametrize("target", [-1, 1000])
def test_a_target_outside_the_vocabulary_is_refused(target):
    s, t, targets = draw()
    targets[3] = target
    with pytest.raises(IndexError, match="targets leave the vocabulary of 1000"):
        swept(s, t, targets)


def test_no_rows():
    found, _ = swept(*(x[:0] for x in draw()))
    assert found.tolist() == [0, 0]


def test_any_nan_stays_one_when_it_is_rounded():
    """All its bits set, it would carry over into the sign and become −0."""
    x = torch.full((2, 3), -1, dtype=torch.int32).view(torch.float32)
    assert x.isnan().all()
    assert native.scaled_transpose(x, 1.0, torch.bfloat16).isnan().all()


# --- the build -------------------------------------------------------------------------------------------------


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """An empty cache, and nothing remembered before or after."""
    monkeypatch.setenv("TUTELAGE_CACHE", str(tmp_path))
    native.library.cache_clear()
    yield tmp_path
    native.library.cache_clear()


def test_is_built_once(fresh):
    assert not isinstance(native.library(), str)
    (built,) = (fresh / "native").iterdir()  # and nothing half-written beside it
    before = built.stat().st_mtime_ns
    native.library.cache_clear()
    assert not isinstance(native.library(), str)
    assert built.stat().st_mtime_ns == before


def test_two_processes_may_build_it_at_once(fresh):
    code = "from tutelage.kernels.native import library; library().sweep_bf16_bf16"
    both = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[1] for process in both] == ["", ""]
    assert [process.returncode for process in both] == [0, 0]
    assert len(list((fresh / "native").iterdir())) == 1


def test_a_compiler_that_cannot_build_it_is_passed_by_aloud(fresh, monkeypatch, caplog):
    broken = fresh / "broken-g++"
    broken.write_text("#!/bin/sh\necho unknown option -fopenmp >&2; exit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    dispatch._announce.cache_clear()
    with caplog.at_level(logging.INFO, logger=dispatch.__name__):
        assert dispatch.pick("op", "auto", torch.empty(0), native=True) == "eager"
    assert "a C++ compiler that builds native.cpp: unknown option -fopenmp" in caplog.text
    assert not list((fresh / "native").glob("*")) if (fresh / "native").exists() else True


def test_without_a_compiler_auto_is_eager(fresh, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert dispatch.pick("op", "auto", torch.empty(0), native=True) == "eager"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_cache_that_cannot_be_written_is_passed_by(fresh):
    fresh.chmod(0o555)
    assert isinstance(native.library(), str)
