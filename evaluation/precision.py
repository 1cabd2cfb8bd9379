"""In which arithmetic models are measured: it follows from the flag, never from a measurement.

Near ties in a model's logits fall otherwise in another dtype, and scores with them.
"""

import logging
from functools import cache

import torch

from tutelage.training.precision import Name, real_bf16

log = logging.getLogger(__name__)


def choose_precision(asked: str, device: torch.device) -> Name:
    """The arithmetic of this name; `auto` is bf16 everywhere. Warns where the device only emulates that."""
    precision: Name = "fp32" if asked == "fp32" else "bf16"
    if precision == "bf16" and not real_bf16(device):
        _say_emulated(device)
    return precision


@cache
def _say_emulated(device: torch.device) -> None:
    log.warning("--precision bf16: %s has no such units and emulates it, slowly: try --precision fp32", device)
