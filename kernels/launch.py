"""What every launch of a kernel and every backward pass of ours has in common.

A Triton kernel is launched on the *current* device, wherever its tensors are, so each launch is made under a guard. And
our backward passes hand out gradients that have none themselves: who differentiates them is told so.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

F = TypeVar("F", bound=Callable[..., Any])


def on_its_device(launch: F) -> F:
    """The function, run with the device of its first argument as the current one."""

    @wraps(launch)
    def guarded(first: Tensor, *args: Any, **kwargs: Any) -> Any:
        with torch.cuda.device_of(first):  # type: ignore[no-untyped-call]
            return launch(first, *args, **kwargs)

    return cast(F, guarded)


def matmul_dtype(x: Tensor) -> torch.dtype:
    """That of matmuls of `x` here: the autocast dtype, else its own."""
    device = x.device.type
    casts = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if casts else x.dtype


def only_once(*gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    """What a backward pass returns: under `create_graph=True`, differentiating it again raises RuntimeError."""
    if not torch.is_grad_enabled():
        return gradients
    anchor = torch.zeros((), requires_grad=True)  # or autograd would not remember the step
    return tuple(None if x is None else _Once.apply(x, anchor) for x in gradients)  # type: ignore[no-untyped-call]


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: Tensor, _: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> None:
        raise RuntimeError("the kernels of Tutelage have no second derivative: use kernels/reference.py for it")
