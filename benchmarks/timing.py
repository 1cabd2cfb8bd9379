"""Interleaved timing and peak memory of callables in one process, and where they ran."""

import ctypes
import gc
import json
import platform
import resource
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Output:
    """Where a benchmark's result goes, besides the screen."""

    json: bool = False
    """Print JSON instead of a table."""
    history: str | None = None
    """Append the result as a line of JSON to this file, e.g. benchmarks/results/history.jsonl."""


def publish(benchmark: str, result: Mapping[str, Any], output: Output) -> bool:
    """Prints and keeps a result as `output` says; tells whether a table is still wanted."""
    line = json.dumps({"benchmark": benchmark, "device": device_line(), **result})
    if output.json:
        print(line)
    if output.history:
        path = Path(output.history)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(line + "\n")
    return not output.json


def interleaved(runs: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, tuple[float, float, float]]:
    """Seconds (p20, p50, p80) of each callable; all of them in turn, `repeats` rounds after a warm-up round."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return {name: tuple(np.percentile(values, [20, 50, 80])) for name, values in seconds.items()}


def extra_memory(run: Callable[[], object]) -> int:
    """Bytes by which the resident set peaks over where it stood, sampled every millisecond."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # or memory freed by others would hide what this one needs
    before, peak, done = _resident(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, _resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    run()
    done.set()
    watcher.join()
    return max(peak, _resident()) - before


def peak_resident() -> int:
    """The largest resident set of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def device_line() -> str:
    """Device, versions and date: what stands beside every figure."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    return f"{model}, {torch.get_num_threads()} threads, torch {torch.__version__}, {date.today().isoformat()}"


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
