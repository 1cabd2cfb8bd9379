"""Where the tests of the kernels run: on the GPU where there is one."""

import pytest
import torch

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
on_cpu = pytest.mark.skipif(GPU, reason="what a GPU does not use, and a host without one tests")
"""For C++ of ours, and for what stands only in the interpreter's reach."""


def normal(*shape, seed=0, dtype=torch.float64, scale=1.0):
    """Normal numbers, the same on every device."""
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale
    return drawn.to(DEVICE, dtype)
