"""What this machine has for Tutelage, and what each missing piece costs: `python -m tutelage doctor`.

A check is a function that yields findings; it never raises for what it looks at.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

from tutelage import cli
from tutelage.errors import UserError
from tutelage.files import cache_directory
from tutelage.locks import lack

GIB = 2**30
HUB_TEACHER = "bigcode/starcoder2-3b"


@dataclass(frozen=True)
class Finding:
    """One thing looked at: what is there, and what its absence costs (empty where nothing is missing)."""

    name: str
    found: str
    cost: str = ""


@dataclass(frozen=True)
class Options:
    """How to say it."""

    json: bool = False
    """Print JSON."""


def examine() -> list[Finding]:
    """Every check's findings, in the order of `CHECKS`."""
    return [finding for check in CHECKS for finding in check()]


def _versions() -> Iterator[Finding]:
    from tutelage.environment import PACKAGES, environment

    found = environment()
    yield Finding("python", f"{found['python']} on {found['machine']}")
    absent = [package for package in PACKAGES if found[package] is None]
    present = ", ".join(f"{package} {found[package]}" for package in PACKAGES if package not in absent)
    yield Finding("packages", present, f"without {', '.join(absent)}: pip install -e ." if absent else "")


def _processor() -> Iterator[Finding]:
    import torch

    from tutelage.training.precision import real_bf16

    capability = torch.backends.cpu.get_cpu_capability()
    cost = ""
    if not real_bf16(torch.device("cpu")):
        cost = "no bf16 units: training takes what it measures to be faster; pass --precision fp32 to evaluate.py"
    yield Finding("processor", f"{torch.get_num_threads()} threads, {capability}", cost)


def _accelerators() -> Iterator[Finding]:
    import torch

    cost = "training on the CPU: right for the embedded teacher, not for StarCoder2-3B"
    if not torch.accelerator.is_available():
        yield Finding("GPU", "none", cost)
    elif not torch.cuda.is_available():
        yield Finding("GPU", str(torch.accelerator.current_accelerator()))
    else:
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            with torch.cuda.device(index):
                real = torch.cuda.is_bf16_supported(including_emulation=False)
            cost = "" if real else "no bf16 units, so bf16 is emulated, slowly: pass --precision fp32"
            yield Finding(f"GPU {index}", f"{properties.name}, {properties.total_memory / GIB:.0f} GiB", cost)


def _kernels() -> Iterator[Finding]:
    import torch

    from tutelage.kernels.dispatch import IMPLS, best, lacks, use

    device = "cuda" if torch.cuda.is_available() else "cpu"
    missing = {impl: lacks(impl, device) for impl in IMPLS[1:]}
    able = ", ".join(impl for impl, lack in missing.items() if not lack)
    _, lack = best(device)
    cost = f"a slower loss: it needs {lack}" if lack else ""
    yield Finding("kernels", f"{use('auto', device)} on {device} (--impl: {able})", cost)


def _memory() -> Iterator[Finding]:
    try:
        import psutil
    except ImportError as error:
        return (yield Finding("memory", "unknown", f"no times and sizes in the log: psutil does not start ({error})"))
    memory = psutil.virtual_memory()
    cost = "" if memory.available > 4 * GIB else "the quickstart takes up to 4 GiB: lower --batch_size"
    yield Finding("memory", f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB available", cost)


def _disk() -> Iterator[Finding]:
    # A checkpoint of the 125m preset takes 1.5 GB, and one more while it is written.
    for name, path in (("runs", Path.cwd()), ("cache", cache_directory())):
        parent = next(p for p in (path, *path.parents) if p.exists())
        free = shutil.disk_usage(parent).free
        cost = "" if free > 5 * GIB else "checkpoints of the 125m preset take 1.5 GB each: lower --keep_last"
        if not os.access(parent, os.W_OK):
            cost = f"{parent} is not writable: " + ("pass --output_dir" if name == "runs" else "set TUTELAGE_CACHE")
        yield Finding(f"disk for {name}", f"{free / GIB:.1f} GiB free at {path}", cost)


def _locks() -> Iterator[Finding]:
    cost = "nothing keeps two processes from writing one run: see to it yourself"
    yield Finding("locks", "none" if lack() else "there", f"without {lack()}, {cost}" if lack() else "")


def _embedded_teacher() -> Iterator[Finding]:
    from tutelage.teacher.embedded import gguf_file

    try:
        yield Finding("embedded teacher", f"SmolLM2-135M, {gguf_file().stat().st_size / 1e6:.0f} MB")
    except UserError as error:
        yield Finding("embedded teacher", "none", f"no training without a network; {error}")


def _hub() -> Iterator[Finding]:
    from tutelage.hub import check_reachable

    try:
        check_reachable(HUB_TEACHER)
        yield Finding("hub", f"{HUB_TEACHER} is within reach")
    except UserError:
        cost = f"no {HUB_TEACHER}, CodeLlama, MBPP or hub: data; the embedded teacher and local files work"
        yield Finding("hub", "does not answer", cost)


def _extras() -> Iterator[Finding]:
    costs = {
        "bitsandbytes": "no teachers in 4 bits (codellama-7b): pip install -e '.[quant]'",
        "tensorboard": "no curves, no samples side by side: pip install tensorboard, or pass --tracker none",
        "mlflow": "no --tracker mlflow: pip install -e '.[track]'",
        "wandb": "no --tracker wandb: pip install -e '.[track]'",
    }
    for package, cost in costs.items():
        there = find_spec(package) is not None
        yield Finding(package, "installed" if there else "none", "" if there else cost)


def _sandbox() -> Iterator[Finding]:
    from tutelage.evaluation.sandbox.pool import describe

    logging.getLogger("tutelage.evaluation.sandbox").setLevel(logging.ERROR)  # the finding says it
    try:
        found = describe()
    except UserError as error:
        yield Finding("sandbox", "none", f"no HumanEval: {error}")
    else:
        cost = "" if found["grade"] == "strong" else f"completions are held back less: {found['missing']}"
        yield Finding("sandbox", f"{found['grade']}: namespaces {found['namespaces']}; root {found['root']}", cost)


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    _versions, _processor, _accelerators, _kernels, _memory, _disk, _locks, _embedded_teacher, _hub, _extras, _sandbox,
)  # fmt: skip


def main(argv: Sequence[str]) -> None:
    """The command line."""
    options = cli.parse(Options, argv, prog="tutelage doctor", description="What is here, and what is missing.")
    findings = examine()
    if options.json:
        return print(json.dumps([asdict(finding) for finding in findings], indent=1))
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    for finding in findings:
        table.add_row(*(finding.name, "!" if finding.cost else "", finding.found))
        if finding.cost:
            table.add_row("", "", finding.cost)
    Console(highlight=False, markup=False).print(table)
