"""C++ of ours, compiled on this machine at its first use and kept in the cache directory."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch  # noqa: F401  # before the library: OpenMP, which both use, is then one runtime with one pool of threads

from tutelage.files import cache_directory

NO_COMPILER = "a C++ compiler (g++, or what $CXX names)"
SOURCE = Path(__file__).with_name("native_rows.cpp")
FLAGS = (
    "-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-fopenmp",
    "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math",  # or mathematics would not be vectorised
    *(("-mprefer-vector-width=512",) if platform.machine() in ("x86_64", "AMD64") else ()),
)  # fmt: skip


def compiler() -> str | None:
    """The C++ compiler's path: $CXX, or g++."""
    return shutil.which(os.environ.get("CXX") or "g++")


@cache
def library() -> ctypes.CDLL | str:
    """The functions of `native_rows.cpp`, or why they cannot be had. The first call on a machine takes a second."""
    command = compiler()
    if command is None:
        return NO_COMPILER
    try:
        # its predefined macros name the compiler's version and what this processor can do
        macros = _run(command, "-march=native", "-dM", "-E", "-x", "c++", os.devnull)
        key = hashlib.sha256(b"\0".join((SOURCE.read_bytes(), " ".join(FLAGS).encode(), macros))).hexdigest()[:16]
        return ctypes.CDLL(str(_built(command, cache_directory() / "native", f"rows-{key}.so")))
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", b"") or str(error).encode()
        return f"a C++ compiler that builds {SOURCE.name}: {said.decode(errors='replace').strip()[:500]}"


def _built(command: str, directory: Path, name: str) -> Path:
    if not (directory / name).exists():
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory) as aside:  # whole or absent, whoever else builds it now
            _run(command, *FLAGS, str(SOURCE), "-o", f"{aside}/{name}")
            os.replace(f"{aside}/{name}", directory / name)
    return directory / name


def _run(*command: str) -> bytes:
    return subprocess.run(command, check=True, capture_output=True).stdout
