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


def warmup_steps(steps: int, config: OptimConfig) -> int:
    """Steps of linear warm-up in a run of `steps`."""
    if config.warmup_steps is not None:
        return int(config.warmup_steps)
    return round(steps * float(config.warmup_fraction))


def schedule_fault(steps: int, config: OptimConfig) -> str | None:
    """What is odd about the schedule of a run of `steps`, or None where the peak is reached and then left."""
    warm = warmup_steps(steps, config)
    named = f"warmup_steps {warm}" if config.warmup_steps is not None else f"warmup_fraction {config.warmup_fraction:g}"
    if warm >= steps:
        return f"--optim.{named}: the run of {steps} steps ends in its warm-up: lower it, or raise --steps"
    decay = round(steps * float(config.decay_fraction))
    if config.schedule == "wsd" and warm + decay > steps:
        return (
            f"--optim.{named} and --optim.decay_fraction {config.decay_fraction:g} are {warm} + {decay} steps of"
            f" {steps}: lower one of them, or raise --steps"
        )
    return None


def learning_rate(step: int, steps: int, config: OptimConfig) -> float:
    """The rate of step `step` (from 0) of `steps`: linear warm-up, then cosine, or stable and a linear decay."""
    peak, warm = float(config.lr), warmup_steps(steps, config)
    if step < warm:
        return peak * (step + 1) / warm
    floor = peak * float(config.min_lr_fraction)
    if config.schedule == "cosine":
        done = (step - warm) / max(1, steps - warm)
        return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    decay_steps = max(1, round(steps * float(config.decay_fraction)))
    left = min(1.0, max(0, steps - step) / decay_steps)
    return floor + (peak - floor) * left


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = rate
