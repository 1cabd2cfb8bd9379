"""Interleaved timing and peak memory of callables in one process, on a CPU or a GPU, and where they ran."""

import ctypes
import gc
import json
import logging
import math
import platform
import resource
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

log = logging.getLogger(__name__)
HEAD_START, LONGEST_HEAD_START = 1e-3, 0.06
"""Seconds that a GPU is kept busy while the host queues what is timed: at first, and at most."""
SLEEP_RATE = 2e9
"""Cycles of a GPU's clock in a second, or a few more than there are."""
CACHE_BYTES = 256 << 20
"""What is written to empty a GPU's L2 cache; the largest has half of it."""

Lap = Callable[[], None]
"""Marks a moment. What is timed calls it where it starts, between its parts, and where it ends."""
Quantiles = tuple[float, float, float]
"""p20, p50 and p80."""


@dataclass(frozen=True)
class Output:
    """Where a benchmark's result goes, besides the screen."""

    json: bool = False
    """Print JSON instead of a table."""
    history: str | None = None
    """Append the result as a line of JSON to this file, e.g. benchmarks/results/history.jsonl."""


def publish(benchmark: str, result: Mapping[str, Any], output: Output, device: str = "cpu") -> bool:
    """Prints and keeps a result as `output` says; tells whether a table is still wanted."""
    line = json.dumps({"benchmark": benchmark, "device": device_line(device), **result})
    if output.json:
        print(line)
    if output.history:
        path = Path(output.history)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(line + "\n")
    return not output.json


def interleaved(runs: Mapping[str, Callable[[], object]], repeats: int, device: str = "cpu") -> dict[str, Quantiles]:
    """Seconds (p20, p50, p80) of each callable; all of them in turn, `repeats` rounds after a warm-up round."""
    whole = {name: (lambda lap, run=run: (lap(), run(), lap())) for name, run in runs.items()}
    return {name: quantiles(rounds[:, 0]) for name, rounds in laps(whole, repeats, device, rotate=False).items()}


def laps(
    runs: Mapping[str, Callable[[Lap], object]],
    repeats: int,
    device: str = "cpu",
    rotate: bool = True,
    until: float = math.inf,
) -> dict[str, np.ndarray]:
    """Seconds from lap to lap of each callable, `(rounds, laps − 1)`; all in turn, after a warm-up round.

    What stands before a callable's first lap is not counted. `rotate` starts each round with the next one, so that
    nobody always runs after the same neighbour. There are `repeats` rounds, or fewer (but one) once `time.monotonic()`
    has passed `until`.
    """
    seconds: dict[str, list[list[float]]] = {name: [] for name in runs}
    starts = dict.fromkeys(runs, HEAD_START)
    late = dict.fromkeys(runs, 0)
    names = list(runs)
    for turn in range(repeats + 1):
        if turn > 1 and time.monotonic() > until:
            break
        first = turn % len(names) if rotate and names else 0
        for name in names[first:] + names[:first]:
            clock = _Clock(device, starts[name])
            runs[name](clock.lap)
            if clock.late():
                starts[name] = min(2 * max(clock.host_seconds(), HEAD_START), LONGEST_HEAD_START)
                late[name] += turn > 0
            if turn:
                seconds[name].append(clock.seconds())
    for name in filter(late.get, names):
        log.warning("%s: the GPU waited for the host in %d of %d rounds", name, late[name], len(seconds[name]))
    return {name: np.array(rounds) for name, rounds in seconds.items()}


class _Clock:
    """A stopwatch: the host's on a CPU, events in the stream on a GPU.

    There the L2 cache is emptied first, and the GPU then sleeps for `head_start` seconds while the host queues what is
    timed: without it a kernel of a tenth of a millisecond would be timed by how fast Python launches it.
    """

    def __init__(self, device: str, head_start: float = HEAD_START) -> None:
        self.device = device
        self.marks: list[Any] = []
        self.host: list[float] = []
        if device == "cuda":
            torch.empty(CACHE_BYTES, dtype=torch.uint8, device=device).zero_()
            torch.cuda._sleep(int(head_start * SLEEP_RATE))
            self.host.append(time.perf_counter())

    def lap(self) -> None:
        """Marks this moment."""
        if self.device == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        self.host.append(time.perf_counter())

    def late(self) -> bool:
        """Whether the GPU came to the first mark before all was queued, so that it may have waited for the host."""
        return self.device == "cuda" and bool(self.marks[0].query())

    def host_seconds(self) -> float:
        """What the host needed to queue everything."""
        return self.host[-1] - self.host[0]

    def seconds(self) -> list[float]:
        """Between each mark and the next."""
        if self.device == "cuda":
            torch.cuda.synchronize()
            return [start.elapsed_time(end) / 1e3 for start, end in pairwise(self.marks)]
        return [end - start for start, end in pairwise(self.host)]


def quantiles(seconds: np.ndarray) -> Quantiles:
    """p20, p50 and p80."""
    low, middle, high = np.percentile(seconds, [20, 50, 80])
    return float(low), float(middle), float(high)


def extra_memory(run: Callable[[], object], device: str = "cpu") -> int:
    """Bytes by which memory peaks over where it stood: PyTorch's on a GPU, else the resident set, every millisecond."""
    gc.collect()
    return _extra_allocated(run) if device == "cuda" else _extra_resident(run)


def _extra_allocated(run: Callable[[], object]) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _extra_resident(run: Callable[[], object]) -> int:
    ctypes.CDLL(None).malloc_trim(0)  # or memory freed by others would hide what this one needs
    before = _resident()
    return max(most_while(run, _resident), _resident()) - before


def most_while(run: Callable[[], object], look: Callable[[], int], every: float = 0.001) -> int:
    """The largest number that `look`, asked again after so many seconds, saw while `run` was at work; 0 for none."""
    most, done = 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(every):
            most = max(most, look())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        run()
    finally:
        done.set()
        watcher.join()
    return most


def peak_resident() -> int:
    """The largest resident set of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def device_line(device: str = "cpu") -> str:
    """Device, versions and date: what stands beside every figure."""
    if device == "cuda":
        name = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    else:
        name = f"{_processor()}, {torch.get_num_threads()} threads"
    return f"{name}, torch {torch.__version__}, {date.today().isoformat()}"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
