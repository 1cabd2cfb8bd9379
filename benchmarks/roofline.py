"""A model, not a measurement: the least times that flops, bytes and exponentials allow the kernels of a GPU.

    python -m benchmarks.roofline [--output docs/roofline.png] [--device h100|a100|NAME --tflops … --bandwidth …]

A part takes as long as the scarcest of its matmuls, bytes of device memory, bytes of L2 and exponentials; parts follow
each other. Shapes: N tokens, V vocabulary, D student, E teacher width; B rows, H heads, T tokens, DH head width.
"""

import argparse
import sys
from typing import NamedTuple

import numpy as np

N, V, D, E = 8192, 49_152, 768, 3072
B, H, T, DH, KEYS = 8, 12, 2048, 64, 4096
NAIVE_BYTES = 114  # per logit, by the operations of `naive` in benchmarks/kernel_peers.py, forward and backward


class Device(NamedTuple):
    """Peaks of dense bf16 (TFLOP/s) and memory (TB/s), what of them is sustained, and exponentials (10¹²/s)."""

    name: str
    peak: float
    peak_bandwidth: float
    tflops: float
    bandwidth: float
    exps: float


DEVICES = {  # exponentials: 16 a clock and processor, of which there are 132 at 1.755 GHz and 108 at 1.41 GHz
    "h100": Device("H100 SXM", 989, 3.35, 790, 3.0, 132 * 16 * 1.755e-3),
    "a100": Device("A100 SXM 80 GB", 312, 2.04, 250, 1.83, 108 * 16 * 1.41e-3),
}


class Part(NamedTuple):
    """`flops` of matmuls, `bytes` of device memory, `exps`, bytes read `again` from L2; `ops` are for the picture."""

    flops: float
    bytes: float
    exps: float = 0.0
    again: float = 0.0
    ops: float = 0.0

    def ms(self, on: Device) -> float:
        """Milliseconds in the model; L2 is assumed to give half as much again as the memory's peak."""
        cache = (self.bytes + self.again) / (1.5 * on.peak_bandwidth)
        return max(self.flops / on.tflops, self.bytes / on.bandwidth, cache, self.exps / on.exps) / 1e9


def gemm(width: int, chunk: int, traffic: float = 1, summed: int = 0) -> Part:
    """One of the loss's: a head read per chunk; or, of ∂head, entries of `summed` bytes written and read again."""
    chunks = -(-N // chunk)
    head = (2 * chunks - 1) * summed * V * width if summed else 2.0 * chunks * V * width
    return Part(2.0 * N * V * width, traffic * (2.0 * N * (V + width) + head))


def row_work(sweeps: int = 2, tensors: int = 2, cached: bool = True) -> Part:
    """The row kernel at τ = 1, over one tensor of logits (sparse teacher) or two; later sweeps from L2 if `cached`."""
    once, later = 2.0 * (tensors + 1) * N * V, 2.0 * tensors * (sweeps - 1) * N * V
    ops = (15.0 * sweeps - 10) * N * V  # 20 or 35 a logit, as in kernels/triton_rows.py
    return Part(0, once + later * (not cached), 1.0 * tensors * sweeps * N * V, later * cached, ops)


def loss(chunk: int, rows: Part, summed: int = 4, teacher: bool = True) -> list[Part]:
    """The fused loss: student's and teacher's logits, dH, dW, and the row work."""
    dw = gemm(D, chunk, summed=summed if chunk < N else 2)
    return [gemm(D, chunk), *[gemm(E, chunk)] * teacher, gemm(D, chunk), dw, rows]


def kernels() -> dict[str, list[Part]]:
    """What is modelled, by name."""
    ideal = [gemm(width, N, traffic=0) for width in (D, E, D, D)]
    product, row, exps = 1.0 * B * H * T * T * DH, 2.0 * B * H * T * DH, B * H * T * T / 2  # flops, a tensor's bytes
    liger = Part(0, 4.0 * N * V, again=15 * 4.0 * N * V)  # 15 fp32 passes, to its favour all in L2, and (N, V) in fp32
    return {
        **{"student logits, flops alone": ideal[:1], "teacher logits, flops alone": ideal[1:2]},
        **{"loss, flops alone": ideal, "… student's logits recomputed": [*ideal, ideal[0]]},
        "… both recomputed": [*ideal, *ideal[:2]],
        **{f"teacher logits, chunks of {c:,}": [gemm(E, c)] for c in (128, 1024)},
        **{f"dW, chunks of {c:,}": [gemm(D, c, summed=4)] for c in (128, 1024, 2048)},
        **{f"row work, {n} sweeps, {'L2' if c else 'HBM'}": [row_work(n, 2, c)] for n in (2, 3) for c in (True, False)},
        "row work, sparse teacher, L2": [row_work(tensors=1)],
        **{f"loss, chunks of {c:,}": loss(c, row_work()) for c in (1024, 2048)},
        "loss, chunks of 1,024, HBM": loss(1024, row_work(cached=False)),
        "loss, sparse teacher": loss(1024, row_work(tensors=1), teacher=False),
        "loss, naive": loss(N, Part(0, 1.0 * NAIVE_BYTES * N * V)),
        "loss, Liger-like, chunks of 128": loss(128, liger, summed=2),
        **{"attention forward, matmuls": [Part(2 * product, 0)], "… exponentials": [Part(0, 0, exps)]},
        "attention forward": [Part(2 * product, 4 * row, exps)],
        "attention backward, 5 matmuls": [Part(5 * product, 0)],
        "attention backward": [Part(3 * product, 6 * row, exps), Part(4 * product, 6 * row, exps)],
        f"decode, {KEYS:,} cached keys": [Part(4.0 * B * H * KEYS * DH, 4.0 * B * H * KEYS * DH, 1.0 * B * H * KEYS)],
        **{f"RMSNorm, {b} bytes a number": [Part(0, b * B * T * D, ops=4.0 * B * T * D)] for b in (4, 24)},
    }


def draw(on: Device, output: str) -> None:
    """Flops for each byte of device memory, and TFLOP/s in the model, of each kernel under the two roofs."""
    from matplotlib.figure import Figure

    chart = (figure := Figure(figsize=(8, 5.4))).subplots()
    x = np.geomspace(0.1, 1500, 200)
    chart.loglog(x, np.minimum(on.peak, x * on.peak_bandwidth), color="#999999", label="peak")
    chart.loglog(x, np.minimum(on.tflops, x * on.bandwidth), color="#2a5d8f", label="sustained")
    work = {name: (sum(p.flops + p.ops for p in ps), sum(p.bytes for p in ps), ps) for name, ps in kernels().items()}
    shown = sorted((f / b, f / sum(p.ms(on) for p in ps) / 1e9, name) for name, (f, b, ps) in work.items() if f and b)
    for place, (at, reached, name) in enumerate(shown, 1):
        chart.plot(at, reached, "o", color="#b5432a", markersize=5)
        chart.annotate(str(place), (at, reached), (4, 5 if place % 2 else -11), textcoords="offset points", fontsize=8)
        chart.text(1.02, 1 - place / 24, f"{place} {name}", transform=chart.transAxes, fontsize=8)
    chart.set(xlabel="flops per byte of memory", ylabel="TFLOP/s", title=f"{on.name}: a model, not a measurement")
    chart.legend(loc="lower right", fontsize=8)
    figure.savefig(output, dpi=90, bbox_inches="tight")


def main(argv: list[str]) -> int:
    """Prints the modelled times, and draws them where `--output` says."""
    parser = argparse.ArgumentParser(prog="benchmarks.roofline", description="A model of the kernels' times on a GPU.")
    parser.add_argument("--output", help="where the picture goes, e.g. docs/roofline.png")
    parser.add_argument("--device", default="h100", help="h100, a100, or a name for --tflops and --bandwidth")
    for flag, what in ("--tflops", "dense bf16; 0.8"), ("--bandwidth", "device memory, TB/s; 0.9"):
        parser.add_argument(flag, type=float, help=f"peak of {what} of it is taken as sustained")
    options = parser.parse_args(argv)
    name, peak, bandwidth = options.device, options.tflops, options.bandwidth
    if bool(peak) != bool(bandwidth) or not (peak or name in DEVICES):
        parser.error(f"--device {name}: only {', '.join(DEVICES)} go without --tflops and --bandwidth")
    on = Device(name, peak, bandwidth, 0.8 * peak, 0.9 * bandwidth, peak / 256) if peak else DEVICES[name]
    print(f"a model, not a measurement: {on.name}, {on.tflops:g} TFLOP/s and {on.bandwidth:.3g} TB/s sustained")
    for kernel, parts in kernels().items():
        print(f"{kernel:<34}{sum(p.flops for p in parts) / 1e12:>8.3f} TFLOP{sum(p.ms(on) for p in parts):>9.4f} ms")
    print(f"a logit is cheaper kept than computed again from a width of {2 * on.tflops / on.bandwidth:.0f} on")
    if options.output:
        draw(on, options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
