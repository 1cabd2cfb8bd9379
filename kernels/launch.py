"""What every launch of a kernel and every backward pass of ours has in common.

A Triton kernel is launched on the *current* device, wherever its tensors are, so each launch is made under a guard. And
our backward passes hand out gradients that have none themselves: who differentiates them is told so.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def on_its_device(launch: Callable[Concatenate[Tensor, P], R]) -> Callable[Concatenate[Tensor, P], R]:
    """The function, run with the device of its first argument as the current one."""

    @wraps(launch)
    def guarded(first: Tensor, *args: P.args, **kwargs: P.kwargs) -> R:
        with torch.cuda.device_of(first):  # type: ignore[no-untyped-call]
            return launch(first, *args, **kwargs)

    return guarded


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
