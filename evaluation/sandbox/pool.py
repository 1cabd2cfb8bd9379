"""Run completions against tests, apart from everything else, and say how each ended.

The seam is `run_many(cases, limits) -> list[Result]`. Behind it stands `helper`, an interpreter kept warm, in whose
forks the completion and the test live in different processes.
"""

import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache
from importlib.util import find_spec
from math import ceil
from pathlib import Path
from queue import SimpleQueue

from tutelage.errors import UserError
from tutelage.evaluation.sandbox import codec  # and nothing that only Linux has: that is for the helper

log = logging.getLogger(__name__)

GRACE = 5.0  # seconds the checker gets beyond the wall limit before its warden ends it, and the warden before we do
UIDS = range(65520, 65534)  # of no user, by systemd's list of what is taken
OTHERS = 1 + 4 * len(UIDS)  # processes that one user may have when nothing is forked: the kernel counts them all
NOWHERE = "/proc"  # the jail is mounted over what every machine has and no library lies in: no file of ours is left
BOOT = "import sys; sys.path.insert(0, sys.argv[1]); from sandbox.helper import main; del sys.path[0]; main()"
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
    TRUNCATED = "TRUNCATED"  # no verdict of the sandbox: it did not pass, and generation had been cut short


@dataclass(frozen=True)
class Limits:
    """What one completion may use; each process of it for the rlimits, all of them together for wall time."""

    cpu_seconds: float = 5.0  # rounded up: the kernel counts whole seconds
    wall_seconds: float = 20.0  # a backstop; generous, so that a loaded machine fails nobody
    memory_bytes: int = 1 << 30  # address space
    output_bytes: int = 64 << 10  # of each file, of everything printed, and of each returned value
    processes: int = 8  # and threads

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

    jail: bool = True  # namespaces and a read-only root of the standard library
    users: bool = True  # a uid of its own for each case that runs, not the caller's
    packages: tuple[str, ...] = ()  # what may be imported beyond the standard library
    filter: bool = False  # system calls; set where it works
    missing: str = ""  # why there is nothing stronger

    @property
    def grade(self) -> str:
        """`strong`, `partial` or `weak`."""
        return "strong" if self.jail else "partial" if self.users else "weak"


def run_many(
    cases: Sequence[Case], limits: Limits | None = None, workers: int = 2, packages: Sequence[str] = ()
) -> Iterator[Result]:
    """How each of the cases ends, `workers` at a time, in their order.

    Never raises for what a source does. Raises UserError where completions cannot be run at all.
    """
    if not 1 <= workers <= len(UIDS):
        raise UserError(f"workers is {workers}: it must be from 1 to {len(UIDS)}")
    active = layers(tuple(packages))  # probed once, before the threads
    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(lambda case: _run(case, limits or Limits(), active), cases)


def run_one(case: Case, limits: Limits | None = None) -> Result:
    """How one case ends; see `run_many`."""
    return next(run_many([case], limits, workers=1))


def describe(packages: Sequence[str] = ()) -> dict[str, str]:
    """Which layers are active here, for the record of every score."""
    active = layers(tuple(packages))
    return {
        "grade": active.grade,
        "oracle": "split: the test runs in another process than the completion",
        "interpreter": f"{sys.implementation.name} {sys.version.split()[0]} -I -S, empty environment",
        "packages": ", ".join(packages) or "none",
        "namespaces": "mount, pid, network, ipc, uts" if active.jail else "none",
        "root": "standard library, read-only" if active.jail else "the machine's own",
        "user": f"{UIDS[0]} and up, another for each worker" if active.users else "the caller's",
        "seccomp": "a list of denied calls" if active.filter else "none",
        "survivors": "killed with the pid namespace" if active.jail else "killed as children of their warden",
        "missing": active.missing or "nothing",
    }


@cache
def layers(packages: tuple[str, ...] = ()) -> Layers:
    """The strongest layers under which the standard library still works, found by trying.

    Raises UserError for a package that is not installed.
    """
    if sys.platform != "linux":
        raise UserError(f"completions are run on Linux only, this is {sys.platform}: score them on a Linux machine")
    missing = ""
    for jailed, users in dict.fromkeys([(True, os.getuid() == 0), (False, os.getuid() == 0), (False, False)]):
        active = Layers(jailed, users, packages)
        try:
            active = replace(active, filter=_helper(jailed, packages).can_filter)
            result = _run(Case(CANARY, CANARY_TEST, "canary"), Limits(), active)
            reason = result.detail
        except OSError as error:
            reason = str(error)
        else:
            if result.verdict is Verdict.PASS:
                if missing:
                    log.warning("the sandbox is only %s here: %s", active.grade, missing)
                return replace(active, missing=missing)
        missing = missing or reason
    raise UserError(f"no completion can be run here, not even a trivial one: {reason}")


def _run(case: Case, limits: Limits, active: Layers) -> Result:
    """One case from start to the removal of its directory."""
    job = codec.encode((case.source, case.test, case.entry_point))
    directory = "" if active.jail else tempfile.mkdtemp(prefix="sandbox-")
    uid = _FREE.get()
    config = {
        "jail": active.jail, "uid": uid if active.users else 0, "filter": active.filter, "directory": directory,
        "cpu": ceil(limits.cpu_seconds), "wall": float(limits.wall_seconds), "grace": GRACE,
        "memory": limits.memory_bytes, "output": limits.output_bytes,
        "processes": limits.processes + (0 if active.users else OTHERS),
    }  # fmt: skip
    try:
        if directory and active.users:
            os.chown(directory, uid, uid)
        answer = _ask(active, config, job, limits.wall_seconds + 2 * GRACE)
        verdict, detail, seconds = codec.decode(answer)[0]
        told = "".join(character if character.isprintable() else "?" for character in detail)
        return Result(Verdict(verdict), told[:200], seconds)
    except (codec.RefusedError, ValueError):
        return Result(Verdict.CRASH, "the checker died", 0.0)
    finally:
        _FREE.put(uid)
        if directory:  # of any depth, at which shutil.rmtree would fail
            subprocess.run(["rm", "-rf", directory], stderr=subprocess.DEVNULL, check=False)


_FREE: SimpleQueue[int] = SimpleQueue()
for _uid in UIDS:
    _FREE.put(_uid)


class Helper:
    """Our end of a warm interpreter, see `helper`. Raises OSError where it cannot build its world."""

    def __init__(self, jailed: bool, packages: Sequence[str]) -> None:
        made = tempfile.mkdtemp(prefix="sandbox-") if packages and not jailed else None
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-X", "utf8", "-c", BOOT, str(Path(__file__).parents[1])],
                stdin=theirs.fileno(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                cwd="/", start_new_session=True,
                env=dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1") if packages else {},
            )  # fmt: skip
        self.close = weakref.finalize(self, _close, self.control, self.process, made)
        self.control.send(codec.encode(_world(made or NOWHERE, jailed, packages)))
        try:
            problem, self.can_filter = codec.decode(self.control.recv(codec.MESSAGE))[0]
        except (codec.RefusedError, OSError):
            problem = "the interpreter of the sandbox did not start"
        if problem:
            self.close()
            raise OSError(problem)

    def ask(self, config: dict[str, object], job: bytes, patience: float) -> bytes:
        """What the checker says of one case; nothing where it died, or after `patience` seconds."""
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                socket.send_fds(self.control, [codec.encode(config)], [theirs.fileno()])
            ours.settimeout(patience)
            answer = b""
            with suppress(OSError):
                ours.sendall(job)
                ours.shutdown(socket.SHUT_WR)
                while piece := ours.recv(codec.MESSAGE):
                    answer += piece
        return answer

    def ended(self) -> bool:
        """Whether somebody killed it, or is about to have done so."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(0.1)
        return self.process.returncode is not None


def _ask(active: Layers, config: dict[str, object], job: bytes, patience: float) -> bytes:
    """What the helper answers; where somebody killed it, another one."""
    with suppress(OSError):
        first = _helper(active.jail, active.packages)
        if (answer := first.ask(config, job, patience)) or not first.ended():
            return answer
    _helper.cache_clear()
    return _helper(active.jail, active.packages).ask(config, job, patience)


@cache
def _helper(jailed: bool, packages: tuple[str, ...]) -> Helper:
    return Helper(jailed, packages)


def _close(control: socket.socket, process: subprocess.Popen[bytes], root: str | None) -> None:
    """Ends a helper; those it has forked see that nobody waits for them."""
    control.close()
    process.kill()
    process.wait()
    if root:
        shutil.rmtree(root, ignore_errors=True)


def _world(root: str, jailed: bool, packages: Sequence[str]) -> dict[str, object]:
    """The helper's first message."""
    prefixes = [os.path.join(sys.base_prefix, name) for name in ("lib", sys.platlibdir)]
    candidates = [*prefixes, "/lib", "/lib64", "/usr/lib", "/usr/lib64"]
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    installed = [os.path.join(path, version, f"{kind}-packages") for path in prefixes for kind in ("site", "dist")]
    found = {path.name: str(path) for name in packages for path in _parts(name)}
    if found and not jailed:
        os.mkdir(root + codec.PACKAGES)
        for name, path in found.items():
            os.symlink(path, f"{root}{codec.PACKAGES}/{name}")
    return {
        "root": root, "jail": jailed, "packages": found, "warm": list(packages),
        "libraries": [path for path in dict.fromkeys(candidates) if os.path.isdir(path)],
        "masked": [path for path in dict.fromkeys([*installed, "/usr/lib/python3"]) if os.path.isdir(path)],
    }  # fmt: skip


def _parts(package: str) -> list[Path]:
    """What is installed under the name of a package: its directory or file, and the libraries of its wheel."""
    spec = find_spec(package) if package.isidentifier() else None
    if not spec or not spec.origin or package in sys.stdlib_module_names:
        raise UserError(f"--sandbox_packages {package}: no such package is installed here: pip install {package}")
    path = Path(spec.origin)
    path = path.parent if spec.submodule_search_locations else path
    return [part for part in (path, path.with_name(f"{package}.libs")) if part.exists()]
