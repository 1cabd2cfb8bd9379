"""Small transformers checkpoints on disk, and a packed batch."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import HF_SHAPE
from tutelage.data.batch import Batch
from tutelage.data.packing import pack


@pytest.fixture
def batch() -> Batch:
    """Three rows of 16, documents of many lengths, some of which end inside a row."""
    random = np.random.default_rng(0)
    documents = [random.integers(1, 600, size).tolist() for size in (5, 3, 20, 1, 9, 4)]
    return pack(documents, 0, 16).batch(np.arange(3))


@pytest.fixture(scope="session")
def starcoder_dir(tmp_path_factory: pytest.TempPathFactory, save_model: Callable[..., Path]) -> Path:
    from transformers import Starcoder2Config, Starcoder2ForCausalLM

    torch.manual_seed(0)
    model = Starcoder2ForCausalLM(Starcoder2Config(**HF_SHAPE, use_bias=True, sliding_window=4096))
    return save_model(model, tmp_path_factory.mktemp("starcoder"))


@pytest.fixture(scope="session")
def qwen_dir(tmp_path_factory: pytest.TempPathFactory, save_model: Callable[..., Path]) -> Path:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    return save_model(Qwen2ForCausalLM(Qwen2Config(**HF_SHAPE)), tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="session")
def olmo_dir(tmp_path_factory: pytest.TempPathFactory, save_model: Callable[..., Path]) -> Path:
    """An arithmetic that is not ours: norms without weights."""
    from transformers import OlmoConfig, OlmoForCausalLM

    torch.manual_seed(0)
    return save_model(OlmoForCausalLM(OlmoConfig(**HF_SHAPE)), tmp_path_factory.mktemp("olmo"))
