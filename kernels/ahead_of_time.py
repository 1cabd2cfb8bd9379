"""Compiles the Triton kernels without a GPU and says what they take of one: registers, spills, shared memory.

    python -m tutelage.kernels.ahead_of_time --arch 80,90

Each module in MODULES exports `variants()`. The command exits with 1 where a kernel that may not spill does, or where
one wants more shared memory than the chip has.
"""

import argparse
import importlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

MODULES = [f"tutelage.kernels.triton_{name}" for name in ("attention", "decode", "rows")]
SHARED_LIMIT = {80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024}
"""Bytes of shared memory that one program may have, by compute capability."""


class Variant(NamedTuple):
    """One kernel with one set of compile-time arguments.

    `signature` maps run-time arguments to Triton types; ":16" after a type says that the value, or address, is a
    multiple of 16, as Triton finds out by itself at a launch. `flops` and `bytes` are those of one program. `registers`
    caps those of a thread, from Hopper on.
    """

    name: str
    kernel: Any
    signature: dict[str, str]
    constexprs: dict[str, Any]
    warps: int
    stages: int
    flops: float
    bytes: float
    tile: str = ""
    may_spill: bool = False
    registers: int | None = None


class Resources(NamedTuple):
    """What a program takes: registers of a thread, spilled and shared bytes; and flops for each byte it moves."""

    registers: int
    spills: int
    shared: int
    intensity: float


def compile_variant(variant: Variant, arch: int) -> Resources:
    """Compiles for compute capability `arch` (90 is 9.0). Raises RuntimeError in Triton's interpreter."""
    if os.environ.get("TRITON_INTERPRET", "0") != "0":
        raise RuntimeError("TRITON_INTERPRET is set, and interpreted kernels cannot be compiled: unset it")
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = variant.kernel.arg_names
    signature = dict.fromkeys(names, "constexpr")
    aligned = {}
    for place, name in enumerate(names):
        if name not in variant.constexprs:
            signature[name], _, multiple = variant.signature[name].partition(":")
            if multiple:
                aligned[(place,)] = [["tt.divisibility", int(multiple)]]
    source = ASTSource(variant.kernel, signature, constexprs=variant.constexprs, attrs=aligned)
    options = {"num_warps": variant.warps, "num_stages": variant.stages}
    if variant.registers is not None and arch >= 90:
        options["maxnreg"] = variant.registers
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    registers, spills = _usage(compiled.asm["cubin"])
    return Resources(registers, spills, compiled.metadata.shared, variant.flops / variant.bytes)


def _usage(cubin: bytes) -> tuple[int, int]:
    """Registers, and bytes of stack and local memory, which kernels without arrays have only for spills."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [_cuobjdump(), "--dump-resource-usage", file.name]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = dict(re.findall(r"\b(REG|STACK|LOCAL):(\d+)", report))
    return int(found["REG"]), int(found["STACK"]) + int(found["LOCAL"])


def _cuobjdump() -> str:
    """The one in Triton's wheel, else one on PATH. Raises FileNotFoundError where there is none."""
    import triton

    inside = sorted(Path(triton.__file__).parent.rglob("bin/cuobjdump"))
    path = str(inside[0]) if inside else shutil.which("cuobjdump")
    if path is None:
        raise FileNotFoundError("cuobjdump is neither in Triton's package nor on PATH: install a Triton wheel for CUDA")
    return path


def main(arguments: list[str] | None = None) -> int:
    """Prints the table; returns the exit status."""
    parser = argparse.ArgumentParser(prog="ahead_of_time", description="What the Triton kernels take of a GPU.")
    parser.add_argument("--arch", default="80,90", help="compute capabilities, e.g. 80,90")
    parser.add_argument("--only", default="", help="a part of the names of the kernels to compile")
    options = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET", "0") != "0":
        parser.error("TRITON_INTERPRET is set, and interpreted kernels cannot be compiled: unset it")
    print(f"{'kernel':36} {'tile':>9} arch warps stages registers spills   shared / limit KiB  flops/byte")
    failures = 0
    for variant in (v for name in MODULES for v in importlib.import_module(name).variants() if options.only in v.name):
        for arch in map(int, options.arch.split(",")):
            used = compile_variant(variant, arch)
            limit = SHARED_LIMIT[arch]
            failed = used.shared > limit or (used.spills > 0 and not variant.may_spill)
            failures += failed
            print(
                f"{variant.name:36} {variant.tile:>9} {arch:4} {variant.warps:5} {variant.stages:6}"
                f" {used.registers:9} {used.spills:6} {used.shared / 1024:8.1f} / {limit / 1024:5.0f}"
                f" {used.intensity:15.1f}{'  FAILS' if failed else ''}",
                flush=True,
            )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
