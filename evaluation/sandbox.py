"""Run one completion against one test, apart from everything else, and say how it ended.

The seam is `run_tests(source, test, entry_point, limits) -> Result`. Behind it stands `sandbox_worker`: a
fresh interpreter per completion, in which the completion and the test live in different processes.
"""

import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache
from math import ceil

from tutelage.errors import UserError
from tutelage.evaluation import sandbox_worker

log = logging.getLogger(__name__)

GRACE = 5.0  # seconds the worker gets beyond the wall limit before it is killed from outside
NOBODY = 65534
CANARY = "import collections, hashlib, heapq, math, random, re, string\ndef canary(x):\n    return [math.sqrt(x)]"
CANARY_TEST = "def check(candidate):\n    assert candidate(4) == [2.0]"


class Verdict(StrEnum):
    """How a completion ended; only PASS counts."""

    PASS = "PASS"
    FAIL = "FAIL"  # a wrong answer, an exception, a refused value
    CRASH = "CRASH"  # died or left before it answered
    TLE = "TLE"  # too much CPU time, or no answer in the wall time
    MLE = "MLE"  # MemoryError
    OLE = "OLE"  # printed, wrote or returned too much
    SYNTAX = "SYNTAX"


@dataclass(frozen=True)
class Limits:
    """What one completion may use; each process of it for the rlimits, all of them together for wall time."""

    cpu_seconds: float = 5.0  # rounded up: the kernel counts whole seconds
    wall_seconds: float = 20.0  # a backstop; generous, so that a loaded machine fails nobody
    memory_bytes: int = 1 << 30  # address space
    output_bytes: int = 64 << 10  # of each file, of everything printed, and of each returned value
    processes: int = 32

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0:
                raise UserError(f"sandbox limit {name} is {value}: it must be positive")


@dataclass(frozen=True)
class Result:
    """One verdict, the last line of the reason, and the CPU seconds of the completion's own process."""

    verdict: Verdict
    detail: str
    seconds: float


@dataclass(frozen=True)
class Case:
    """The untrusted source, the trusted test that defines `check(candidate)`, and the function's name."""

    source: str
    test: str
    entry_point: str


@dataclass(frozen=True)
class Layers:
    """What stands between a completion and the machine."""

    jail: bool  # namespaces and a read-only root of the standard library
    uid: int  # 0: the caller's own
    missing: str = ""  # why there is nothing stronger

    @property
    def grade(self) -> str:
        """`strong`, `partial` or `weak`."""
        return "strong" if self.jail else "partial" if self.uid else "weak"


def run_tests(source: str, test: str, entry_point: str, limits: Limits | None = None) -> Result:
    """Run `check` of the trusted `test` against `entry_point` of the untrusted `source`.

    Never raises for what the source does. Raises UserError where completions cannot be run at all.
    """
    return _run(Case(source, test, entry_point), limits or Limits(), layers())


def run_many(cases: Sequence[Case], limits: Limits | None = None, workers: int = 2) -> list[Result]:
    """`run_tests` for every case, `workers` at a time; results in the order of the cases."""
    if workers < 1:
        raise UserError(f"workers is {workers}: it must be at least 1")
    active = layers()  # probed once, before the threads
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(lambda case: _run(case, limits or Limits(), active), cases))


def describe() -> dict[str, str]:
    """Which layers are active here, for the record of every score."""
    active = layers()
    return {
        "grade": active.grade,
        "oracle": "split: the test runs in another process than the completion",
        "interpreter": f"{sys.implementation.name} {sys.version.split()[0]} -I -S, empty environment",
        "namespaces": "mount, pid, network, ipc, uts" if active.jail else "none",
        "root": "standard library, read-only" if active.jail else "the machine's own",
        "user": str(active.uid) if active.uid else "the caller's",
        "survivors": "killed with the pid namespace" if active.jail else "killed with the process group only",
        "missing": active.missing or "nothing",
    }


@cache
def layers() -> Layers:
    """The strongest layers under which the standard library still works, found by trying."""
    if sys.platform != "linux":
        raise UserError(f"completions are run on Linux only, this is {sys.platform}: score them on a Linux machine")
    uid = 0 if os.getuid() else NOBODY
    missing = ""
    for active in dict.fromkeys([Layers(True, uid), Layers(False, uid), Layers(False, 0)]):
        result = _run(Case(CANARY, CANARY_TEST, "canary"), Limits(), active)
        if result.verdict is Verdict.PASS:
            if missing:
                log.warning("the sandbox is only %s here: %s", active.grade, missing)
            return replace(active, missing=missing)
        missing = missing or result.detail
    raise UserError(f"no completion can be run here, not even a trivial one: {result.detail}")


def _run(case: Case, limits: Limits, active: Layers) -> Result:
    """One worker from start to removal of its directory."""
    job = sandbox_worker.encode((case.source, case.test, case.entry_point))
    root = tempfile.mkdtemp(prefix="sandbox-")
    try:
        if active.uid:
            os.chown(root, active.uid, active.uid)
        script = [sandbox_worker.__file__, _configuration(root, limits, active)]
        worker = subprocess.Popen(
            [sys.executable, "-I", "-S", "-X", "utf8", *script],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={}, cwd="/", start_new_session=True,
        )  # fmt: skip
        try:
            return _read(*worker.communicate(job, limits.wall_seconds + GRACE))
        except subprocess.TimeoutExpired:
            return Result(Verdict.TLE, "the checker had to be killed", limits.wall_seconds)
        finally:
            _kill(worker)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _configuration(root: str, limits: Limits, active: Layers) -> str:
    """The worker's one argument."""
    prefixes = [os.path.join(sys.base_prefix, name) for name in ("lib", sys.platlibdir)]
    candidates = [*prefixes, "/lib", "/lib64", "/usr/lib", "/usr/lib64"]
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = [os.path.join(path, version, f"{kind}-packages") for path in prefixes for kind in ("site", "dist")]
    return sandbox_worker.encode({
        "root": root, "jail": active.jail, "uid": active.uid,
        "libraries": [path for path in dict.fromkeys(candidates) if os.path.isdir(path)],
        "masked": [path for path in dict.fromkeys([*packages, "/usr/lib/python3"]) if os.path.isdir(path)],
        "cpu": ceil(limits.cpu_seconds), "wall": float(limits.wall_seconds), "memory": limits.memory_bytes,
        "output": limits.output_bytes, "processes": limits.processes,
    }).hex()  # fmt: skip


def _read(output: bytes, errors: bytes) -> Result:
    """The worker's own report; without one it died, which is never a pass."""
    try:
        verdict, detail, seconds = sandbox_worker.decode(output)[0]
        return Result(Verdict(verdict), detail, seconds)
    except (sandbox_worker.RefusedError, ValueError):
        reason = errors.decode(errors="replace").strip().splitlines()[-1:] or ["no reason given"]
        return Result(Verdict.CRASH, f"the checker died: {reason[0][:200]}", 0.0)


def _kill(worker: subprocess.Popen[bytes]) -> None:
    """End the worker's whole process group and collect it."""
    with suppress(ProcessLookupError):
        os.killpg(worker.pid, signal.SIGKILL)
    worker.communicate()
