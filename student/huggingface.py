"""Models of transformers in our arithmetic, and ours in transformers': one table of architectures, read both ways.

Module names are theirs but for a `model.` in front of all but the head.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tutelage.data.tokenizer import Tokenizer
from tutelage.errors import UserError
from tutelage.student.config import MLP, Norm, StudentConfig
from tutelage.student.decoder import Decoder


@dataclass(frozen=True)
class Architecture:
    """What a line of models fixes, and how its configuration calls the rest. A bias is there always (True), never
    (False), or where the flag of that name says so."""

    model: str
    qkv_bias: bool | str = False
    bias: bool | str = False  # of the attention's output
    mlp_bias: bool | str = False
    qk_norm: bool = False
    norm: Norm = "rmsnorm"
    mlp: MLP = "swiglu"
    activation: str = "silu"
    eps: str = "rms_norm_eps"
    width_of_heads: bool = False  # the width must be a multiple of the number of heads
    layer_types: bool = False  # which say in which layers the window is; elsewhere it is in all


ARCHITECTURES = {
    "llama": Architecture(
        "LlamaForCausalLM", "attention_bias", "attention_bias", "mlp_bias", width_of_heads=True
    ),
    "mistral": Architecture("MistralForCausalLM"),
    "qwen2": Architecture("Qwen2ForCausalLM", qkv_bias=True, layer_types=True),
    "qwen3": Architecture(
        "Qwen3ForCausalLM", "attention_bias", "attention_bias", qk_norm=True, layer_types=True
    ),
    "starcoder2": Architecture(
        "Starcoder2ForCausalLM", "use_bias", "use_bias", "use_bias",
        norm="layernorm", mlp="gelu", activation="gelu_pytorch_tanh", eps="norm_epsilon",
    ),
}  # fmt: skip
"""By `model_type`. A student is exported as the first that says all of it."""


def config_from_huggingface(config: Mapping[str, Any]) -> StudentConfig | None:
    """Our configuration of a transformers `config.to_dict()`; None where our arithmetic is another.

    A sliding window is full attention for texts no longer than it, so that is then the longest context.
    """
    line, theta = ARCHITECTURES.get(config.get("model_type", "")), _plain_rope(config)
    if line is None or theta is None or config.get("hidden_act") != line.activation:
        return None

    def biased(flag: bool | str) -> bool:
        return bool(config[flag]) if isinstance(flag, str) else flag

    bias, mlp_bias = biased(line.bias), biased(line.mlp_bias)
    return StudentConfig(
        vocab_size=config["vocab_size"],
        n_layers=config["num_hidden_layers"],
        n_heads=config["num_attention_heads"],
        n_kv_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
        d_model=config["hidden_size"],
        d_ff=config["intermediate_size"],
        d_head=config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"],
        max_seq_len=min(config["max_position_embeddings"], _window(config, line)),
        norm=line.norm,
        mlp=line.mlp,
        bias=bias,
        mlp_bias=None if mlp_bias == bias else mlp_bias,
        qkv_bias=biased(line.qkv_bias),
        qk_norm=line.qk_norm,
        rope_theta=theta,
        norm_eps=config[line.eps],
        tie_embeddings=bool(config["tie_word_embeddings"]),
    )


def from_huggingface(model: Any, config: Mapping[str, Any], vocab_size: int | None = None) -> Decoder | None:
    """A `Decoder` that shares the modules (so also 4-bit ones) of a transformers model, or None if unknown.

    Its head is tied where the model's is, whatever the configuration says. `vocab_size` tokens are scored, of as many
    as the head has. Generation through it has our per-row cache, which rewinds; nothing is copied.
    """
    ours = config_from_huggingface(config)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if ours is None or getattr(head, "bias", None) is not None:
        return None
    tied = head.weight is embedding.weight
    ours = replace(ours, tie_embeddings=tied, vocab_size=min(vocab_size or len(head.weight), len(head.weight)))
    with torch.device("meta"):
        decoder = Decoder(ours)
    for name, module in list(decoder.named_modules()):
        if not list(module.children()) and list(module.parameters()):
            parent, _, leaf = name.rpartition(".")
            setattr(decoder.get_submodule(parent), leaf, model.get_submodule(_their_name(name)))
    return decoder.eval()


def to_huggingface(config: StudentConfig) -> dict[str, Any]:
    """What `config.json` says of this shape, for transformers to load.

    Raises UserError where no architecture of the table has this arithmetic.
    """
    for kind, line in ARCHITECTURES.items():
        theirs = _their_config(config, kind, line)
        again = config_from_huggingface(theirs)
        fits = config.d_model % config.n_heads == 0 or not line.width_of_heads
        if fits and again is not None and again.explicit == replace(config, dropout=0.0).explicit:
            return theirs
    norms, biases = " and q/k norms" * config.qk_norm, (config.qkv_bias, config.bias, config.biased_mlp)
    raise UserError(
        f"no architecture of transformers that we write ({', '.join(ARCHITECTURES)}) has {config.position} positions,"
        f" {config.norm}{norms}, {config.mlp} and biases on q/k/v, o, MLP: {', '.join(map(str, biases))}"
    )


def save_huggingface(model: Decoder, tokenizer: Tokenizer, directory: Path) -> None:
    """Writes a directory that transformers loads: weights in their dtype, of the true vocabulary, and the tokenizer.

    Raises UserError, and writes nothing, where no architecture of the table has this arithmetic.
    """
    dtype = str(model.head.dtype).removeprefix("torch.")
    around = {"bos_token_id": next(iter(tokenizer.prefix_ids), None), "eos_token_id": sorted(tokenizer.end_ids)}
    record = {**to_huggingface(model.config), "dtype": dtype, **around}
    directory.mkdir(parents=True, exist_ok=True)
    for file, content in (("config.json", record), ("generation_config.json", around)):
        (directory / file).write_text(json.dumps(content, indent=2) + "\n")
    weights = {_their_name(name): _trimmed(name, tensor, model) for name, tensor in model.state_dict().items()}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(directory)


def _plain_rope(config: Mapping[str, Any]) -> float | None:
    """The base of rotary positions that nothing scales; older configurations name it at the top."""
    rope = {
        "rope_theta": config.get("rope_theta", 10_000.0),
        **(config.get("rope_scaling") or {}),
        **(config.get("rope_parameters") or {}),
    }
    kind = rope.pop("rope_type", None) or rope.pop("type", None) or "default"
    theta = rope.pop("rope_theta")
    odd = any(value is not None for name, value in rope.items() if name != "type")
    return None if kind != "default" or odd else float(theta)


def _window(config: Mapping[str, Any], line: Architecture) -> int:
    """Tokens that a token sees in every layer, itself included; a huge number where there is no window."""
    slides = not line.layer_types or "sliding_attention" in config["layer_types"]
    window = config.get("sliding_window")
    return int(window) if window and slides else 10**9


def _their_config(config: StudentConfig, kind: str, line: Architecture) -> dict[str, Any]:
    ours = {"qkv_bias": config.qkv_bias, "bias": config.bias, "mlp_bias": config.biased_mlp}
    flags = {flag: ours[name] for name in ours if isinstance(flag := getattr(line, name), str)}
    return {
        "architectures": [line.model],
        "model_type": kind,
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_size,
        "max_position_embeddings": config.max_seq_len,
        "sliding_window": None,
        "hidden_act": line.activation,
        line.eps: config.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "tie_word_embeddings": config.tie_embeddings,
        **flags,
        **({"layer_types": ["full_attention"] * config.n_layers} if line.layer_types else {}),
    }


def _their_name(ours: str) -> str:
    return ours if ours.startswith("lm_head") else f"model.{ours}"


def _trimmed(name: str, tensor: Tensor, model: Decoder) -> Tensor:
    """Without the rows that pad the vocabulary."""
    rows = model.config.vocab_size if name in ("embed_tokens.weight", "lm_head.weight") else len(tensor)
    return tensor.detach()[:rows].contiguous()
