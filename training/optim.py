"""The optimizer and its schedule."""

import math

import torch
from torch import Tensor, nn

from tutelage.training.config import OptimConfig
from tutelage.training.sharding import whole


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices and none on vectors. arXiv:1711.05101.

    Always the fused form: the default one takes a threaded square root whose first large call in a process is not
    bit-reproducible on CPUs, and a resumed run must be.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=True)


def clip(model: nn.Module, limit: float) -> Tensor:
    """Scales the whole gradient down to the norm `limit` where it is longer; returns the norm it had, 0-dim."""
    norm = nn.utils.clip_grad_norm_(model.parameters(), limit)
    return whole(norm)


def learning_rate(step: int, steps: int, config: OptimConfig) -> float:
    """The rate of step `step` (from 0) of `steps`: linear warm-up, then cosine, or stable and a linear decay."""
    peak = float(config.lr)
    if step < config.warmup_steps:
        return peak * (step + 1) / int(config.warmup_steps)
    floor = peak * float(config.min_lr_fraction)
    if config.schedule == "cosine":
        done = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
        return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    decay_steps = max(1, round(steps * float(config.decay_fraction)))
    left = min(1.0, max(0, steps - step) / decay_steps)
    return floor + (peak - floor) * left


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = rate
