"""How fast students decode: `python -m benchmarks.decoding [--presets 30m,125m] [--device cuda]`.

Random weights in bf16, through `CausalLM.step` alone, as `generate` calls it: a prompt of 128 tokens, then 48 more, the
choice of each read by the host. `weights` is what every token must read at the least: all of them, once a step.
"""

import argparse
import sys
from collections.abc import Sequence

import torch

from benchmarks.timing import Output, device_line, publish
from tutelage.evaluation.latency import latency
from tutelage.student.config import PRESETS, StudentOptions, resolve
from tutelage.student.decoder import Decoder


def measure(preset: str, device: str, dtype: torch.dtype, vocab_size: int) -> dict[str, float | str]:
    """Speed and memory of one preset."""
    shape = resolve(StudentOptions(preset=preset), vocab_size, preset)
    model = Decoder(shape).to(device, dtype).eval().requires_grad_(False)
    if device != "cpu":
        latency(model, vocab_size, device)  # compiles what must be compiled
    found = latency(model, vocab_size, device)
    weights = shape.n_parameters * dtype.itemsize
    per_batch = {f"tokens/s, batch {n}": found[f"tokens_per_s_batch_{n}"] for n in (8, 32)}
    return {
        "preset": preset,
        "parameters": shape.n_parameters,
        "prompt ms": found["prompt_ms"],
        "token ms p50": found["token_ms_p50"],
        "token ms p95": found["token_ms_p95"],
        "tokens/s, batch 1": found["tokens_per_s"],
        **per_batch,
        "weights GB/s": weights * found["tokens_per_s"] / 1e9,
        "working MB": found.get("working_bytes", float("nan")) / 1e6,
    }


def main(argv: Sequence[str]) -> int:
    """Prints a row per preset as soon as it is measured."""
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser("benchmarks.decoding", description=__doc__)
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--presets", default="30m,60m,125m,smollm2-6l", help=f"of {', '.join(PRESETS)}")
    parser.add_argument("--vocab", type=int, default=49_152)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16" if cuda else "float32")
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each")
    options = parser.parse_args(argv)
    unknown = set(options.presets.split(",")) - set(PRESETS)
    if unknown:
        parser.error(f"--presets {', '.join(sorted(unknown))}: choose from {', '.join(PRESETS)}")
    torch.manual_seed(0)
    if not options.json:
        print(f"{device_line(options.device)}, {options.dtype}")
    for preset in options.presets.split(","):
        row = measure(preset, options.device, getattr(torch, options.dtype), options.vocab)
        if publish("decoding", {"rows": [row]}, Output(json=options.json), options.device):
            print("  ".join(f"{name} {value:,.4g}" for name, value in row.items() if name != "preset"), preset)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
