"""Small `.gguf` files, as llama.cpp's converter would write them from transformers models and tokenizers of ours."""

import json
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFWriter
from torch import Tensor

from tutelage.data.tokenizer import Tokenizer

NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm": "output_norm",
    "lm_head.weight": "output.weight",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.layers.": "blk.",
}
"""Of tensors, of transformers and of llama.cpp."""


def model_metadata(model: Any, architecture: str) -> dict[str, Any]:
    """What llama.cpp's converter says of a model like Llama."""
    config = model.config
    return {
        "general.architecture": architecture,
        f"{architecture}.block_count": config.num_hidden_layers,
        f"{architecture}.context_length": config.max_position_embeddings,
        f"{architecture}.embedding_length": config.hidden_size,
        f"{architecture}.feed_forward_length": config.intermediate_size,
        f"{architecture}.attention.head_count": config.num_attention_heads,
        f"{architecture}.attention.head_count_kv": config.num_key_value_heads,
        f"{architecture}.rope.freq_base": float(config.rope_parameters["rope_theta"]),
        f"{architecture}.rope.dimension_count": config.hidden_size // config.num_attention_heads,
        f"{architecture}.vocab_size": config.vocab_size,
    } | (
        {f"{architecture}.attention.layer_norm_rms_epsilon": config.rms_norm_eps}
        if hasattr(config, "rms_norm_eps")
        else {f"{architecture}.attention.layer_norm_epsilon": config.norm_epsilon}
    )


def tokenizer_metadata(tokenizer: Tokenizer, pre: str = "smollm") -> dict[str, Any]:
    """What it says of a byte-level vocabulary."""
    spec = json.loads(tokenizer._prompts.to_str())
    words = sorted(tokenizer._prompts.get_vocab(with_added_tokens=True).items(), key=lambda pair: pair[1])
    special = {token["content"] for token in spec["added_tokens"] if token["special"]}
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [word for word, _ in words],
        "tokenizer.ggml.token_type": [3 if word in special else 1 for word, _ in words],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in spec["model"]["merges"]],
        "tokenizer.ggml.eos_token_id": tokenizer.eos_id,
    }


def tensors(model: Any, heads: bool = True) -> dict[str, Tensor]:
    """The weights by llama.cpp's names; of Llama's queries and keys the rows in its order (`heads`)."""
    config, found = model.config, {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        short = name
        for theirs, ours in NAMES.items():
            short = short.replace(theirs, ours)
        if heads and ("attn_q." in short or "attn_k." in short):
            count = config.num_attention_heads if "attn_q." in short else config.num_key_value_heads
            tensor = tensor.unflatten(0, (count, 2, -1)).transpose(1, 2).flatten(0, 2)
        found[short] = tensor.float()
    return found


def write(path: Path, metadata: dict[str, Any], weights: dict[str, Tensor]) -> Path:
    """A file with these."""
    writer = GGUFWriter(str(path), metadata["general.architecture"])
    for key, value in metadata.items():
        if key == "general.architecture":
            continue
        add = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
        add.get(type(value), writer.add_array)(key, value)
    for name, tensor in weights.items():
        writer.add_tensor(name, tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def save(path: Path, model: Any, tokenizer: Tokenizer, architecture: str = "llama", **more: Any) -> Path:
    """A model and a tokenizer in one file; `more` metadata has `__` for dots, and None takes a key out."""
    metadata = model_metadata(model, architecture) | tokenizer_metadata(tokenizer)
    metadata |= {key.replace("__", "."): value for key, value in more.items()}
    given = {key: value for key, value in metadata.items() if value is not None}
    return write(path, given, tensors(model, heads=architecture == "llama"))


def drawn(model: Any) -> Any:
    """The model with weights that are the same in bf16, and logits that are not flat."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.1)
        parameter.data = parameter.data.bfloat16().float()
    return model.eval()
