"""C++ of ours, compiled on this machine at its first use and kept in the cache directory."""

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from ctypes import CDLL, c_float, c_int, c_int64, c_void_p
from functools import cache
from pathlib import Path

import torch  # before the library: OpenMP, which both use, is then one runtime with one pool of threads
from torch import Tensor

from tutelage.errors import UserError
from tutelage.files import cache_directory

DTYPES = {torch.bfloat16: "bf16", torch.float32: "fp32"}
"""What is taken, and its name in C++."""
NO_COMPILER = "a C++ compiler (g++, or what $CXX names)"
SOURCE = Path(__file__).with_suffix(".cpp")
FLAGS = (
    "-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-fopenmp",
    "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math",  # or mathematics would not be vectorised
    *(("-mprefer-vector-width=512",) if platform.machine() in ("x86_64", "AMD64") else ()),
)  # fmt: skip


def compiler() -> str | None:
    """The C++ compiler's path: $CXX, or g++."""
    return shutil.which(os.environ.get("CXX") or "g++")


@cache
def library() -> CDLL | str:
    """The functions of `native.cpp`, or why they cannot be had. The first call on a machine takes some seconds."""
    command = compiler()
    if command is None:
        return NO_COMPILER
    try:
        # its predefined macros name the compiler's version and what this processor can do
        macros = _run(command, "-march=native", "-dM", "-E", "-x", "c++", os.devnull)
        key = hashlib.sha256(b"\0".join((SOURCE.read_bytes(), " ".join(FLAGS).encode(), macros))).hexdigest()[:16]
        return CDLL(str(_built(command, cache_directory() / "native", f"{key}.so")))
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", b"") or str(error).encode()
        return f"a C++ compiler that builds {SOURCE.name}: {said.decode(errors='replace').strip()[:500]}"


def takes(*dtypes: torch.dtype) -> bool:
    """Whether tensors of these dtypes are."""
    return all(dtype in DTYPES for dtype in dtypes)


def sweep(
    s: Tensor,
    teacher: Tensor | None,
    targets: Tensor,
    vocab_size: int,
    weights: tuple[float, float, float, float],
    with_grad: bool,
) -> Tensor:
    """The row work of `rows.py`, of the forward KL: (divergence, cross-entropy) of each row `(R, 2)` in fp64.

    `weights` are kd_weight, ce_weight, temperature, and the least that a logit counts for. Raises IndexError for a
    target outside the vocabulary.
    """
    if len(targets) and not 0 <= targets.min() <= targets.max() < vocab_size:
        raise IndexError(f"targets leave the vocabulary of {vocab_size}")  # C++ would write there
    t = s if teacher is None else teacher if teacher.stride(1) == 1 else teacher.contiguous()
    threads = torch.get_num_threads()
    sums = torch.empty(len(s), 2, dtype=torch.float64)
    arrays = (s, None if teacher is None else t, targets.contiguous(), sums, torch.empty(threads, 3, vocab_size))
    _function("sweep", s, t)(
        *map(_pointer, arrays), *map(c_int64, (len(s), vocab_size, s.stride(0), t.stride(0))), *map(c_float, weights),
        c_int(with_grad), c_int(threads),
    )  # fmt: skip
    return sums


def scaled_transpose(source: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """`scale · source.T (V, D)` for a contiguous `source (D, V)`."""
    target = source.new_empty(source.shape[::-1], dtype=dtype)
    _function("transpose", source, target)(
        *map(_pointer, (source, target)), *map(c_int64, source.shape), c_float(scale), c_int(torch.get_num_threads())
    )
    return target


def _function(name: str, *tensors: Tensor) -> Callable[..., None]:
    functions = library()
    if isinstance(functions, str):
        raise UserError(f"this needs {functions}: choose impl 'eager'")
    found: Callable[..., None] = getattr(functions, "_".join((name, *(DTYPES[x.dtype] for x in tensors))))
    return found


def _pointer(x: Tensor | None) -> c_void_p:
    return c_void_p(None if x is None else x.data_ptr())


def _built(command: str, directory: Path, name: str) -> Path:
    if not (directory / name).exists():
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory) as aside:  # whole or absent, whoever else builds it now
            _run(command, *FLAGS, str(SOURCE), "-o", f"{aside}/{name}")
            os.replace(f"{aside}/{name}", directory / name)
    return directory / name


def _run(*command: str) -> bytes:
    return subprocess.run(command, check=True, capture_output=True).stdout
