"""Where models run and in which arithmetic: both follow from the flags, never from a measurement.

Near ties in a model's logits fall otherwise in another dtype, and scores with them.
"""

import logging
from functools import cache
from typing import Literal

import torch

from tutelage.errors import UserError

log = logging.getLogger(__name__)
Precision = Literal["bf16", "fp32"]
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def choose_device(asked: str) -> torch.device:
    """The device of this name; `auto` is the best there is: CUDA, else MPS, else the CPU.

    Raises UserError for one that is not here.
    """
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(best if asked == "auto" else asked)
        torch.zeros(1, device=device).tolist()  # which `meta` has no answer to
        if device.type == "cuda":
            torch.cuda.set_device(device)  # kernels are launched on the current one
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {asked} is not available here: use auto, which is {best}") from error
    return device


def choose_precision(asked: str, device: torch.device) -> Precision:
    """The arithmetic of this name; `auto` is bf16 everywhere. Warns where the GPU only emulates that."""
    precision: Precision = "fp32" if asked == "fp32" else "bf16"
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        _say_emulated(device)
    return precision


@cache
def _say_emulated(device: torch.device) -> None:
    log.warning("--precision bf16: %s has no such units and emulates it, slowly: try --precision fp32", device)
