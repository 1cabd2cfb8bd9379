"""The versions and the machine that a number was made with."""

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "datasets", "accelerate", "numpy", "triton")


def environment() -> dict[str, str | int | None]:
    """Versions and machine, as far as they decide speed or rounding."""
    import torch

    found: dict[str, str | int | None] = {"python": platform.python_version(), "machine": platform.machine()}
    found |= {"processor": processor(), "capability": torch.backends.cpu.get_cpu_capability()}
    found |= {"threads": torch.get_num_threads(), "command": " ".join(Path(sys.argv[0]).name.split())}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def processor() -> str:
    """The processor's model, as Linux has it, and those of its units that speed up bf16."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    told = dict(line.split(":", 1) for line in lines if ":" in line)
    said = {key.strip(): value.strip() for key, value in told.items()}
    flags = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in said.get("flags", "").split()]
    return " ".join((said.get("model name", platform.machine()), *flags))
