"""∂head: its sum over chunks, and how it is handed over."""

import itertools

import pytest
import torch

from tests.kernels.device import DEVICE
from tutelage.kernels import native
from tutelage.kernels.head_gradient import STRIP, HeadGradient, scaled

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
