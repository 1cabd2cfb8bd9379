"""Small transformers checkpoints on disk, and a packed batch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import HF_SHAPE
from tutelage.data.batch import Batch
from tutelage.data.packing import pack


def copy_of(checkpoint: Path, target: Path) -> Path:
    for file in checkpoint.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


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


@pytest.fixture(scope="session")
def gemma_that_sees() -> Any:
    """Gemma-3 with a picture tower: its sizes stand in a configuration inside the configuration."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    torch.manual_seed(0)
    layers = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}
    return Gemma3ForConditionalGeneration(
        Gemma3Config(
            text_config={**HF_SHAPE, "head_dim": 16, **layers},
            vision_config={
                "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
                "image_size": 16, "patch_size": 8,
            },
            mm_tokens_per_image=4, image_token_index=599, boi_token_index=598, eoi_token_index=597,
        )
    )  # fmt: skip
