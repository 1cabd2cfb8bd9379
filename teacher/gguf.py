"""A `.gguf` file as a teacher: its weights are unpacked once, into the cache, and read from there ever after.

What transformers drops of the file is put back, or refused: a model that is nearly the same is another one.
"""

import hashlib
import logging
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tutelage.errors import UserError
from tutelage.files import cache_directory
from tutelage.store import fault, publish
from tutelage.student.huggingface import from_huggingface
from tutelage.student.weights import save_student
from tutelage.teacher.gguf_file import GgufFile, read
from tutelage.teacher.gguf_tokenizer import tokenizer_of

log = logging.getLogger(__name__)

FORMAT = 2
"""Of unpacked copies: one of another format is made again, under another name."""

CARRIED = {
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "context_length": "max_position_embeddings",
    "attention.layer_norm_epsilon": "norm_epsilon",
}
"""What the file may say of its model, and transformers' name for it where its configuration has one."""

ROPE_FREQUENCIES = "rope_freqs.weight"
"""By what Llama 3.1's longer context divides the rotary frequencies; transformers has the rule instead."""


def directory(name: str, digest: str, source: Callable[[Path], Path], chat_template: str | None = None) -> Path:
    """The unpacked model in bf16: a student directory where our decoder can carry it, else one of transformers.

    Made once for each `digest` (SHA-256 of the file), `chat_template` (instead of its own) and `FORMAT`, and
    hash-checked ever after. `source` gives the file, which it may write into the folder that it is given. Raises
    UserError where the file is broken, of a kind that is not known, or the cache cannot be written.
    """
    key = hashlib.sha256(f"{digest} {FORMAT} {chat_template}".encode()).hexdigest()[:16]
    target = cache_directory() / f"{name}-{key}"
    reason = fault(target) if os.path.exists(target) else "not there yet"
    if reason is not None:
        log.info("dequantising %s into %s (%s)", name, target, reason)
        try:
            with publish(target) as aside:
                file = source(aside)
                unpack(file, aside, chat_template)
                if file.parent == aside:
                    file.unlink()
        except OSError as error:
            if error.errno is None:  # of transformers, not of the disk
                raise
            way = "set TUTELAGE_CACHE to a directory with room for two bytes a weight"
            raise UserError(f"{target.parent} cannot be written ({error.strerror}): {way}") from error
    return target


def unpack(source: Path, target: Path, chat_template: str | None = None) -> None:
    """Writes the model and the tokenizer of a file into a directory that is there."""
    file = read(source)
    tokenizer = tokenizer_of(file, chat_template)
    model = _model(file)
    decoder = from_huggingface(model, model.config.to_dict(), tokenizer.vocab_size)
    if decoder is not None and len(decoder.head) == decoder.config.padded_vocab_size:
        save_student(decoder, tokenizer, target)
    else:
        model.save_pretrained(target)
        tokenizer.save(target)


def _model(file: GgufFile) -> Any:
    """The transformers model with the weights of the file, in bf16."""
    from transformers import AutoConfig, AutoModelForCausalLM, GgufConfig

    folder, name = file.path.parent, file.path.name
    config = AutoConfig.from_pretrained(folder, gguf_file=name)
    _carry(file, config)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        config=config,
        gguf_file=name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(gguf_file=name, dequantize=True),
        output_loading_info=True,
    )
    model, loading = loaded
    if absent := sorted(loading["missing_keys"]):  # left alone, transformers would draw these at random
        raise UserError(f"{file.path} lacks {len(absent)} of its weights, such as {absent[0]}")
    there = sum(math.prod(shape) for name, shape in file.shapes.items() if name != ROPE_FREQUENCIES)
    taken = sum(parameter.numel() for parameter in model.parameters())
    if there != taken:
        raise UserError(
            f"{file.path} holds {there:,} weights, of which transformers takes {taken:,} for its {file.architecture}:"
            " the rest would be missed; use the model's own folder instead"
        )
    if hasattr(model.config, "quantization_config"):  # the copy is not quantised any more
        del model.config.quantization_config
    return model


def _carry(file: GgufFile, config: Any) -> None:
    """Puts into a configuration what the file says and transformers does not read."""
    for ours, theirs in CARRIED.items():
        value = file.of_model(ours)
        if value is not None and hasattr(config, theirs):
            setattr(config, theirs, value)
    config.vocab_size = file.shapes["token_embd.weight"][0]  # some pad it beyond the tokens
    if "gemma" in file.architecture and config.head_dim != 256:  # as its makers have it for the 27B models alone
        config.query_pre_attn_scalar = config.hidden_size // config.num_attention_heads
    rope = _rope(file)
    if getattr(config, "rope_parameters", None) and rope:
        layers = config.rope_parameters.get("full_attention", config.rope_parameters)  # Gemma-3 has two kinds
        layers |= rope


def _rope(file: GgufFile) -> dict[str, Any]:
    """What the file says of rotary positions, in transformers' words. Raises UserError where that is not known."""
    base, kind = file.of_model("rope.freq_base"), file.of_model("rope.scaling.type")
    rope: dict[str, Any] = {} if base is None else {"rope_theta": float(base)}
    if ROPE_FREQUENCIES in file.shapes:
        return rope | _llama3(file)
    if kind in (None, "none"):
        return rope
    if kind not in ("linear", "yarn"):
        raise UserError(f"{file.path}: its rotary positions are scaled by {kind}, and known are linear and yarn")
    known = {
        "factor": "factor",
        "original_context_length": "original_max_position_embeddings",
        "yarn_beta_fast": "beta_fast",
        "yarn_beta_slow": "beta_slow",
    }
    said = {theirs: file.of_model(f"rope.scaling.{ours}") for ours, theirs in known.items()}
    return rope | {"rope_type": kind} | {name: value for name, value in said.items() if value is not None}


def _llama3(file: GgufFile) -> dict[str, Any]:
    """The parameters that give the file's frequencies. Raises UserError where none of those in use do."""
    from gguf import GGUFReader

    [tensor] = [tensor for tensor in GGUFReader(file.path).tensors if tensor.name == ROPE_FREQUENCIES]
    divisors = torch.from_numpy(tensor.data.copy()).double()
    base, factor = float(file.of_model("rope.freq_base")), round(float(divisors.max()), 3)
    frequencies = base ** -(torch.arange(len(divisors)).double() / len(divisors))
    waves = 8192 * frequencies / (2 * math.pi)  # in the context that the model was first trained for
    share = ((waves - 1) / (4 - 1)).clamp(0, 1)
    expected = 1 / ((1 - share) / factor + share)
    if not torch.allclose(divisors, expected, rtol=1e-3):
        raise UserError(f"{file.path}: its rotary frequencies ({ROPE_FREQUENCIES}) follow no rule that is known here")
    rule = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    return {"rope_type": "llama3", "factor": factor, **rule}
