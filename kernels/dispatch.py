"""Which implementation of an op runs. It is chosen here, logged once, and never silently another.

`auto` is the fastest that starts at once: Triton on a GPU that has it; on a CPU our C++ where an op has some and this
machine can compile it, which is part of `compile`; else plain PyTorch. An explicit choice is an argument `impl=`, else
what `use` set (the flag `--impl`), else $TUTELAGE_IMPL; where it cannot be honoured it is an error.
"""

import logging
import os
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor

from tutelage.errors import UserError
from tutelage.kernels.native import NO_COMPILER, compiler, library

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
    found: Impl = _resolve("kernels", "auto", device, True, True)
    return found


def pick(op: str, impl: Impl, tensor: Tensor, able: bool = True, native: bool = False) -> Impl:
    """The implementation of an op where this tensor is: "triton", "eager" or "compile".

    `auto` passes by a Triton kernel that is not `able` to do it, and C++ that cannot be compiled, and says so; `native`
    tells that there is some. Raises UserError where an explicit choice can't be honoured.
    """
    found: Impl = _resolve(op, impl, tensor.device.type, able, native)
    return found


def _resolve(op: str, impl: Impl, device: str, able: bool, native: bool) -> Impl:
    asked = _known(impl, "impl")
    if asked == "auto":
        asked = _chosen or _known(os.environ.get(VARIABLE) or "auto", f"${VARIABLE}")
    picked, lack = asked, lacks(asked, device)
    if asked == "auto":
        picked, lack = best(device, able, native)
    elif lack:
        raise UserError(f"{op}: impl '{picked}' needs {lack}; the tensors are on '{device}': choose impl 'auto'")
    _announce(op, picked, device, lack)
    return picked


# Compiled code keeps the choice it was traced with. This is what torch.compiler.assume_constant_result does, but for
# importing torch._dynamo, which takes longer than all else here.
_resolve._dynamo_marked_constant = True  # type: ignore[attr-defined]


def best(device: str, able: bool = True, native: bool = True) -> tuple[Impl, str | None]:
    """What `auto` means, see `pick`, and what stands in the way of better."""
    if device == "cuda":
        lack = lacks("triton", device) if able else "a kernel for these shapes or this dtype"
        return ("eager" if lack else "triton"), lack
    if device == "cpu" and native:
        found = library()
        return ("eager", found) if isinstance(found, str) else ("compile", None)
    return "eager", None


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
    return NO_COMPILER if impl == "compile" and device == "cpu" and not compiler() else None


@cache
def _announce(op: str, impl: Impl, device: str, lack: str | None) -> None:
    if lack:
        logger.info("%s on %s: %s, as something faster needs %s", op, device, impl, lack)
    else:
        logger.debug("%s on %s: %s", op, device, impl)


def _known(impl: str, source: str) -> Impl:
    for name in IMPLS:
        if impl == name:
            return name
    raise UserError(f"{source} '{impl}' is unknown: choose one of {', '.join(IMPLS)}")
