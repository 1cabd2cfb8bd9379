"""Small transformers checkpoints on disk, and a packed batch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tutelage.data.batch import Batch
from tutelage.data.packing import pack
from tutelage.data.tokenizer import Tokenizer

SHAPE: dict[str, Any] = {
    "vocab_size": 600,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


@pytest.fixture
def batch() -> Batch:
    """Three rows of 16, documents of many lengths, some of which end inside a row."""
    random = np.random.default_rng(0)
    documents = [random.integers(1, 600, size).tolist() for size in (5, 3, 20, 1, 9, 4)]
    return pack(documents, 0, 16).batch(np.arange(3))


@pytest.fixture(scope="session")
def save_model(tokenizer: Tokenizer) -> Callable[..., Path]:
    """Writes a transformers model and the small tokenizer as a checkpoint directory."""

    def save(model: Any, folder: Path) -> Path:
        for parameter in model.parameters():  # the default's logits are nearly flat, and biases and norms are trivial
            torch.nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.1)
        model.bfloat16().save_pretrained(folder)
        tokenizer.save(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def llama_dir(tmp_path_factory: pytest.TempPathFactory, save_model: Callable[..., Path]) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return save_model(LlamaForCausalLM(LlamaConfig(**SHAPE, rope_theta=5e4)), tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def starcoder_dir(tmp_path_factory: pytest.TempPathFactory, save_model: Callable[..., Path]) -> Path:
    from transformers import Starcoder2Config, Starcoder2ForCausalLM

    torch.manual_seed(0)
    model = Starcoder2ForCausalLM(Starcoder2Config(**SHAPE, use_bias=True, sliding_window=4096))
    return save_model(model, tmp_path_factory.mktemp("starcoder"))


@pytest.fixture(scope="session")
def qwen_dir(tmp_path_factory: pytest.TempPathFactory, save_model: Callable[..., Path]) -> Path:
    """An arithmetic that is not ours: biases on queries, keys and values alone."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    return save_model(Qwen2ForCausalLM(Qwen2Config(**SHAPE)), tmp_path_factory.mktemp("qwen"))
