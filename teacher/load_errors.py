"""What goes wrong while a teacher is loaded, as one line that names the way out."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch

from tutelage.errors import UserError

LONGEST = 400
"""Characters of a foreign error that are shown; some are pages."""


@contextmanager
def load_errors(name: str, source: str, device: str, dtype: torch.dtype) -> Iterator[None]:
    """Turns whatever is raised inside into a UserError that says which teacher, from where, and what to do."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # transformers, tokenizers, safetensors and their plug-ins raise dozens of kinds
        if out_of_memory(error):
            raise UserError(
                f"teacher {name} ({source}) in {str(dtype).removeprefix('torch.')} does not fit the memory of {device}:"
                " choose a smaller or a 4-bit --teacher, --precision bf16 instead of fp32, or several processes"
                " that share its weights with --fsdp"
            ) from error
        if "ignore_mismatched_sizes" in str(error):
            raise UserError(
                f"teacher {name}: the weights in {source} have other sizes than its config.json says"
                f"{_mismatch(source)}: the two do not belong together, fetch both again"
            ) from error
        raise UserError(
            f"teacher {name} cannot be loaded from {source} ({one_line(error)}):"
            " mend or update what it names, or choose another --teacher"
        ) from error


@contextmanager
def packing_errors(name: str, source: str, config: Any) -> Iterator[None]:
    """Names how the weights are packed in what goes wrong with them, if they are."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        packing = getattr(config, "quantization_config", None)
        if not isinstance(packing, dict) or out_of_memory(error):
            raise
        raise UserError(
            f"teacher {name}: {source} is packed by {packing.get('quant_method')}, which does not work here"
            f" ({one_line(error)}): choose the unpacked model"
        ) from error


def _mismatch(source: str) -> str:
    """The first weight whose size is another, with both."""
    from safetensors import safe_open
    from transformers import AutoConfig, AutoModelForCausalLM

    with suppress(Exception), torch.device("meta"):  # this only adds to what is said anyway
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        model: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
        expected = {key: [*tensor.shape] for key, tensor in model.state_dict().items()}
        for path in sorted(Path(source).glob("*.safetensors")):
            with safe_open(path, "pt") as file:
                for key in file.keys():  # noqa: SIM118
                    shape = file.get_slice(key).get_shape()
                    if shape != expected.get(key, shape):
                        return f" ({key} is {shape}, and should be {expected[key]})"
    return ""


def one_line(error: BaseException) -> str:
    """The kind of an error and the beginning of what it says."""
    return shorten(f"{type(error).__name__}: {error}".rstrip(": "), LONGEST, placeholder=" …")


def out_of_memory(error: BaseException) -> bool:
    """Whether a device or the host had no memory left; CPU and MPS say so in a RuntimeError's text alone."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "allocate memory" in text)
