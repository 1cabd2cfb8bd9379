"""Which implementation of an op runs. It is chosen here, logged once, and never silently another.

`auto` is Triton on a GPU that has it and plain PyTorch elsewhere. An explicit choice is an argument `impl=`, else what
`use` set (the flag `--impl`), else $TUTELAGE_IMPL; where it cannot be honoured it is an error.
"""

import logging
import os
import shutil
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor

from tutelage.errors import UserError

Impl = Literal["auto", "triton", "eager", "compile"]
IMPLS: tuple[Impl, ...] = ("auto", "triton", "eager", "compile")
VARIABLE = "TUTELAGE_IMPL"

logger = logging.getLogger(__name__)
_chosen: Impl | None = None


def use(impl: Impl, device: str = "cpu") -> Impl:
    """Makes `impl` this process's choice wherever an op is not told otherwise ("auto" forgets it); returns what it is.

    Raises UserError where this machine cannot honour it on `device`.
    """
    global _chosen
    _chosen = None if _known(impl, "impl") == "auto" else impl
    found: Impl = _resolve("kernels", "auto", device, True)
    return found


def pick(op: str, impl: Impl, tensor: Tensor, able: bool = True) -> Impl:
    """The implementation of an op where this tensor is: "triton", "eager" or "compile".

    `auto` passes by a Triton kernel that is not `able` to do it, and says so. Raises UserError where an explicit
    choice can't be honoured.
    """
    found: Impl = _resolve(op, impl, tensor.device.type, able)
    return found


def _resolve(op: str, impl: Impl, device: str, able: bool) -> Impl:
    asked = _known(impl, "impl")
    if asked == "auto":
        asked = _chosen or _known(os.environ.get(VARIABLE) or "auto", f"${VARIABLE}")
    picked = asked
    if asked == "auto":
        picked = "triton" if able and device == "cuda" and not lacks("triton", device) else "eager"
    if lack := lacks(picked, device):
        raise UserError(f"{op}: impl '{picked}' needs {lack}; the tensors are on '{device}': choose impl 'auto'")
    _announce(op, picked, device, logging.INFO if device == "cuda" and not able else logging.DEBUG)
    return picked


# Compiled code keeps the choice it was traced with. This is what torch.compiler.assume_constant_result does, but for
# importing torch._dynamo, which takes longer than all else here.
_resolve._dynamo_marked_constant = True  # type: ignore[attr-defined]


@cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`torch.compile` of a function, once per process."""
    return torch.compile(function)


def interpreted() -> bool:
    """Whether Triton kernels run in its interpreter, as tests have them."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@cache
def lacks(impl: Impl, device: str) -> str | None:
    """What this machine lacks for an implementation, or None."""
    if impl == "triton":
        if find_spec("triton") is None:
            return "the package triton (pip install triton)"
        return None if device == "cuda" or interpreted() else "a CUDA device (or TRITON_INTERPRET=1, for tests)"
    if impl == "compile" and device == "cpu" and not shutil.which(os.environ.get("CXX", "g++")):
        return "a C++ compiler (g++, or what $CXX names)"
    return None


@cache
def _announce(op: str, impl: Impl, device: str, level: int) -> None:
    logger.log(level, "%s on %s: %s", op, device, impl)


def _known(impl: str, source: str) -> Impl:
    for name in IMPLS:
        if impl == name:
            return name
    raise UserError(f"{source} '{impl}' is unknown: choose one of {', '.join(IMPLS)}")
