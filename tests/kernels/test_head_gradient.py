"""∂head: its sum over chunks, and how it is handed over."""

import itertools

import pytest
import torch

from tests.kernels.device import DEVICE
from tutelage.kernels import head_gradient as module
from tutelage.kernels import native
from tutelage.kernels.head_gradient import STRIP, HeadGradient, kept_dtype, scaled

built = pytest.mark.skipif(isinstance(native.library(), str), reason=f"needs {native.library()}")
# On a CPU ∂head lies transposed, and its transposition has C++.
IMPLS = [pytest.param("compile", marks=built), "eager"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [[5], [3, 2], [4, 4, 1], []])
def test_chunks_add_up_over_several_strips(dtype, rows):
    random = torch.Generator().manual_seed(0)
    weight = torch.empty(STRIP + 7, 3, dtype=dtype, device=DEVICE)
    width = 3 + len(weight)
    drawn = [torch.randint(-4, 5, (n, width), generator=random).to(DEVICE, dtype) for n in rows]  # exact in bf16
    chunks = [(both[:, :3], both[:, 3:]) for both in drawn]
    gradient = HeadGradient(torch.float32)
    for x, s in chunks:
        gradient.add(x, s)
    found = scaled(gradient.total(weight, dtype), torch.tensor(2.0, device=DEVICE), dtype, "eager")
    expected = 2 * sum((s.double().T @ x.double() for x, s in chunks), torch.zeros_like(weight).double())
    assert found.dtype == dtype
    assert torch.equal(found.double(), expected)
    assert gradient.total(weight, dtype).count_nonzero() == 0  # nothing is kept


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("shape", [(1, 1), (33, 257), (64, 512), (100, 1000), (0, 5), (5, 0)])
@pytest.mark.parametrize(("source", "target"), itertools.product(native.DTYPES, native.DTYPES))
def test_a_scaled_transpose(impl, shape, source, target):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(source)
    found = torch.ops.tutelage.scaled_transpose(x, torch.tensor(0.3), target, impl)
    assert found.is_contiguous()
    assert found.dtype == target
    torch.testing.assert_close(found.double(), 0.3 * x.t().double(), rtol=torch.finfo(target).eps * 2, atol=0)


@pytest.mark.parametrize("impl", IMPLS)
def test_opcheck_of_the_scaled_transpose(impl):
    x = torch.randn(5, 7).bfloat16()
    torch.library.opcheck(torch.ops.tutelage.scaled_transpose.default, (x, torch.tensor(2.0), torch.float32, impl))


@pytest.mark.parametrize(
    ("dtype", "accum", "head", "kept"),
    [
        ("bfloat16", "float32", "float32", "float32"),  # master weights: rounded by nobody
        ("bfloat16", "float32", "bfloat16", "bfloat16"),
        ("bfloat16", "bfloat16", "float32", "bfloat16"),  # as lean as was asked
        ("float32", "float32", "bfloat16", "float32"),
        ("float16", "float32", "float16", "float32"),
        ("float64", "float64", "float64", "float64"),
    ],
)
def test_what_is_kept_until_it_is_scaled(dtype, accum, head, kept):
    assert kept_dtype(*(getattr(torch, name) for name in (dtype, accum, head))) == getattr(torch, kept)


def test_a_sum_beyond_fp16_becomes_a_mean_within_it():
    """2,000 tokens of one frequent target, of hidden states of 64: their sum is −128,000, their mean −64."""
    x = torch.full((2000, 1), 64.0, dtype=torch.float16, device=DEVICE)
    s = -torch.ones(2000, 3, dtype=torch.float16, device=DEVICE)
    weight = torch.empty(3, 1, dtype=torch.float16, device=DEVICE)
    for pieces in (1, 3):
        gradient = HeadGradient(torch.float32)
        for part in zip(x.chunk(pieces), s.chunk(pieces), strict=True):
            gradient.add(*part)
        kept = gradient.total(weight, kept_dtype(torch.float16, torch.float32, torch.float16))
        found = scaled(kept, torch.tensor(1 / 2000, device=DEVICE), torch.float16, "eager")
        torch.testing.assert_close(found, torch.full_like(found, -64.0))


def test_without_a_wide_product_the_sum_is_still_wide(monkeypatch):
    """As on devices that do not add 16-bit products to an fp32 sum: each product is rounded, no sum is."""
    monkeypatch.setattr(module, "adds_wide", lambda *_: False)
    x, s = torch.ones(4, 2, device="meta").bfloat16(), torch.ones(4, 7, device="meta").bfloat16()
    gradient = HeadGradient(torch.float32)
    gradient.add(x, s)
    gradient.add(x, s)
    total = gradient.total(torch.empty(7, 2, device="meta"), torch.bfloat16)
    assert (total.shape, total.dtype) == ((7, 2), torch.bfloat16)
