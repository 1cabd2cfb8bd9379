"""Which implementation of an op runs. It is chosen here, logged once, and never silently another.

`auto` is the fastest that starts at once: on a GPU Triton for the losses, and for attention PyTorch's own kernels until
ours have been measured to win; on a CPU our C++ where an op has some and this machine can compile it, which is part of
`compile`; else plain PyTorch. An explicit choice is an argument `impl=`, else what `use` set (the flag `--impl`), else
$TUTELAGE_IMPL; where it cannot be honoured it is an error.
"""

import logging
import os
import shutil
import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from tutelage.errors import UserError
from tutelage.kernels.native import NO_COMPILER, compiler, library

Impl = Literal["auto", "triton", "eager", "compile"]
IMPLS: tuple[Impl, ...] = ("auto", "triton", "eager", "compile")
VARIABLE = "TUTELAGE_IMPL"
UNMEASURED = ("attention", "cached_attention")
"""Ops whose Triton kernel has not been measured to win on a GPU: `auto` leaves them to PyTorch."""
OLDEST = (8, 0)
"""Compute capability from which Triton compiles our kernels and tensor cores multiply bf16."""
Needs = tuple[str, *tuple[Any, ...]]
"""A Triton module's name, and what its `lacks` wants to know of the inputs."""

F = TypeVar("F", bound=Callable[..., Any])
logger = logging.getLogger(__name__)
_chosen: Impl | None = None


def use(impl: Impl, device: str | torch.device = "cpu") -> Impl:
    """Makes `impl` this process's choice wherever an op is not told otherwise ("auto" forgets it); returns what it is.

    Raises UserError where this machine cannot honour it on `device`.
    """
    global _chosen
    _chosen = None if _known(impl, "impl") == "auto" else impl
    found: Impl = _resolve("kernels", "auto", torch.device(device), None, True)
    return found


def pick(op: str, impl: Impl, tensor: Tensor, kernel: Needs | None = None, native: bool = False) -> Impl:
    """The implementation of an op where this tensor is: "triton", "eager" or "compile".

    `kernel` names the Triton module, followed by the arguments of its `lacks`; `native` tells that there is C++.
    `auto` passes by what lacks something, and says so. Raises UserError where an explicit choice can't be honoured.
    """
    found: Impl = _resolve(op, impl, tensor.device, kernel, native)
    return found


def constant(function: F) -> F:
    """Lets `torch.compile` call a function of constants while it traces, and keep what it returns.

    This is what torch.compiler.assume_constant_result does, but for importing torch._dynamo, which takes longer than
    all else here.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@constant
def _resolve(op: str, impl: Impl, device: torch.device, kernel: Needs | None, native: bool) -> Impl:
    asked = _known(impl, "impl")
    if asked == "auto":
        asked = _chosen or _known(os.environ.get(VARIABLE) or "auto", f"${VARIABLE}")
    if asked == "auto":
        picked, lack = best(device, op, kernel, native)
    else:
        picked, lack = asked, lacks(asked, device) or (_kernel_lacks(kernel) if asked == "triton" else None)
        if lack:
            raise UserError(f"{op}: impl '{picked}' needs {lack}; the tensors are on '{device}': choose impl 'auto'")
    _announce(op, picked, device.type, lack)
    return picked


def best(
    device: str | torch.device, op: str = "kernels", kernel: Needs | None = None, native: bool = True
) -> tuple[Impl, str | None]:
    """What `auto` means, see `pick`, and what stands in the way of better."""
    device = torch.device(device)
    if device.type == "cuda" and op not in UNMEASURED:
        lack = lacks("triton", device) or _kernel_lacks(kernel)
        return ("eager" if lack else "triton"), lack
    if device.type == "cpu" and native:
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
def lacks(impl: Impl, device: str | torch.device) -> str | None:
    """What this machine lacks for an implementation on a device, or None."""
    device = torch.device(device)
    if impl == "triton":
        return _triton_lacks(device)
    if impl == "compile" and device.type == "cuda":
        return _toolchain_lacks()
    return NO_COMPILER if impl == "compile" and device.type == "cpu" and not compiler() else None


def _triton_lacks(device: torch.device) -> str | None:
    if find_spec("triton") is None:
        return "the package triton (pip install triton)"
    if interpreted():
        return None
    if device.type != "cuda" or not torch.cuda.is_available():
        return "a CUDA device (or TRITON_INTERPRET=1, for tests)"
    capability = torch.cuda.get_device_capability(device)
    if torch.version.hip is None and capability < OLDEST:
        return f"a GPU of compute capability {_dotted(OLDEST)} or later, and this one has {_dotted(capability)}"
    return _toolchain_lacks()


def _toolchain_lacks() -> str | None:
    """Triton, and the C compiler with which it builds each kernel's launcher (on Windows it brings one)."""
    if find_spec("triton") is None:
        return "the package triton (pip install triton)"
    named = os.environ.get("CC")
    found = shutil.which(named.split()[0]) if named else shutil.which("gcc") or shutil.which("clang")
    return None if found or sys.platform == "win32" else "a C compiler (gcc or clang, or what $CC names)"


def _kernel_lacks(kernel: Needs | None) -> str | None:
    if kernel is None:
        return None
    module, *inputs = kernel
    lack: str | None = import_module(f"tutelage.kernels.{module}").lacks(*inputs)
    return lack


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))


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
