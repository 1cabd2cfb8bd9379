"""A batch with holes, a student's output and a teacher's signal, in fp64."""

import numpy as np
import pytest
import torch

from tutelage.data.batch import Batch
from tutelage.data.packing import pack
from tutelage.kernels.linear_divergence import DenseTeacher
from tutelage.student.decoder import StudentOutput
from tutelage.teacher.signal import Signal

B, T, D, E, V = 5, 7, 6, 4, 50


@pytest.fixture
def batch() -> Batch:
    random = np.random.default_rng(1)
    documents = [random.integers(1, V, size).tolist() for size in (4, 9, 2, 6, 1, 8)]
    return pack(documents, 0, T).batch(np.arange(B))


@pytest.fixture
def output() -> StudentOutput:
    torch.manual_seed(0)
    return StudentOutput(torch.randn(B, T, D, dtype=torch.float64, requires_grad=True))


@pytest.fixture
def head() -> torch.Tensor:
    """Fourteen rows of padding after the vocabulary."""
    torch.manual_seed(1)
    return torch.randn(V + 14, D, dtype=torch.float64, requires_grad=True)


@pytest.fixture
def signal() -> Signal:
    torch.manual_seed(2)
    return Signal(DenseTeacher(torch.randn(B, T, E, dtype=torch.float64), torch.randn(V, E, dtype=torch.float64)))
