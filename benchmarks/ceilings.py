"""What this device can do at most: `python -m benchmarks.ceilings [--device cuda]`: matmuls and copies, measured.

Of random numbers: zeros run faster on some devices. Where the vendor's peak is known it stands beside the measured one.
"""

import argparse
import sys
from collections.abc import Sequence

import torch

from benchmarks.timing import Output, device_line, interleaved, publish
from tutelage.training.meter import peak_flops

SIZES = {"cpu": 1024, "cuda": 8192}
COPIES = {"cpu": 1 << 28, "cuda": 1 << 32}
"""Bytes that are copied: many times what caches hold."""


def matmul_rate(device: str, dtype: torch.dtype, size: int = 0, repeats: int = 10) -> float:
    """FLOP/s of a square product."""
    size = size or SIZES[device]
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    seconds = interleaved({"mm": lambda: torch.mm(a, b, out=out)}, repeats, device)["mm"][1]
    return 2 * size**3 / seconds


def copy_rate(device: str, size: int = 0, repeats: int = 10) -> float:
    """Bytes a second of a copy, read and written counted."""
    source = torch.empty(size or COPIES[device], dtype=torch.uint8, device=device).random_(256)
    target = torch.empty_like(source)
    return 2 * len(source) / interleaved({"copy": lambda: target.copy_(source)}, repeats, device)["copy"][1]


def main(argv: Sequence[str]) -> int:
    """Prints the rates."""
    parser = argparse.ArgumentParser("benchmarks.ceilings", description=__doc__)
    parser.add_argument("--device", choices=list(SIZES), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", type=int, default=0, help="rows and columns of the matrices")
    parser.add_argument("--bytes", type=int, default=0, help="bytes that are copied")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(argv)
    device = options.device
    peak = peak_flops(torch.device(device), "bf16") if device == "cuda" else None
    rows = [
        {
            "what": f"matmul, {str(dtype).removeprefix('torch.')}",
            "rate": matmul_rate(device, dtype, options.size) / 1e12,
        }
        | {"unit": "TFLOP/s", "data sheet": peak / 1e12 if peak and dtype == torch.bfloat16 else None}
        for dtype in (torch.bfloat16, torch.float32)
    ]
    rows.append({"what": "copy", "rate": copy_rate(device, options.bytes) / 1e9, "unit": "GB/s", "data sheet": None})
    if publish("ceilings", {"rows": rows}, Output(json=options.json), device):
        print(device_line(device))
        for row in rows:
            print(f"{row['what']:<20}{row['rate']:10,.2f} {row['unit']}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
