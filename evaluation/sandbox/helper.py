"""The warm interpreter: started once, it forks three processes per case, of which the last never sees the test.

    helper ──fork──▶ warden ──new namespaces, fork──▶ checker (PID 1: holds the test) ──fork──▶ candidate

Inside the checker the function under test is a proxy: it sends arguments over a pipe and gets back a plain value. So
PASS means that trusted code finished `check`; what the candidate prints, redefines or exits with cannot matter. Runs
under `python -I -S`, where nothing but the standard library is found, and reads no test itself: a candidate inherits
its memory.
"""

from __future__ import annotations

import importlib
import os
import select
import signal
import socket
import sys
from contextlib import suppress
from typing import Any, NoReturn

from . import jail
from .checker import check
from .codec import MESSAGE, PACKAGES, brief, decode, encode

# What completions import most: imported here, it costs them nothing.
WARM = "bisect collections copy datetime functools hashlib heapq itertools json math operator random re string typing"


def main() -> None:
    """Builds the world that the first message on stdin describes, says so, and takes a case per message after it."""
    control = socket.socket(fileno=os.dup(0))
    world = decode(control.recv(MESSAGE))[0]
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # wardens are never waited for
    try:
        control.send(encode((None, prepare(world))))
    except Exception as error:
        control.send(encode((brief(error), False)))
        return
    while True:
        message, channels, _, _ = socket.recv_fds(control, MESSAGE, 1)
        if not message:
            return  # who started us is gone
        if not os.fork():
            control.close()
            guard(decode(message)[0], null, channels[0])
        os.close(channels[0])


def prepare(world: dict[str, Any]) -> bool:
    """The root that all cases share, and what they will import; whether system calls can be filtered here."""
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        score.write("1000")  # what limits per process still let through: where memory ends, completions go first
    for name in WARM.split():
        importlib.import_module(name)
    if world["jail"]:
        jail.build(world["root"], world["libraries"], world["masked"], world["packages"])
    if world["warm"]:
        sys.path.append(PACKAGES if world["jail"] else world["root"] + PACKAGES)
    for name in world["warm"]:
        importlib.import_module(name)
    return _can_filter()


def _can_filter() -> bool:
    """Tried in a child, for there is no way back."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if not (child := os.fork()):
        with suppress(OSError):
            jail._call("prctl", 38, 1, 0, 0, 0)
            jail.deny_system_calls()
            os._exit(0)
        os._exit(1)
    status = os.waitpid(child, 0)[1]
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    return status == 0


def guard(config: dict[str, Any], null: int, channel: int) -> NoReturn:
    """The warden of one case: it ends everything when the checker is done, time is up or nobody waits any more."""
    try:
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if config["jail"]:
            jail.enter()
        else:
            jail._call("prctl", 36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER, see `_sweep`
            os.chdir(config["directory"])
        if not (checker := os.fork()):  # only a child is inside the new PID namespace
            jail._call("prctl", 1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG: nobody else would end it
            check(config, null, channel)
            os._exit(0)
        finished, gone = os.pidfd_open(checker), select.poll()
        gone.register(finished, select.POLLIN)
        gone.register(channel, 0)  # hanging up is told unasked
        late = not gone.poll(1e3 * (config["wall"] + config["grace"]))
        os.kill(checker, signal.SIGKILL)  # and with it, in its namespace, everything
        os.waitpid(checker, 0)
        if late:
            os.write(channel, encode(("TLE", "the checker had to be killed", config["wall"])))
    except BaseException as error:
        os.write(channel, encode(("CRASH", f"the checker died: {brief(error)}", 0.0)))
    finally:
        if not config["jail"]:
            with suppress(OSError):
                _sweep()
            os.killpg(0, signal.SIGKILL)
        os._exit(0)


def _sweep() -> None:
    """Ends what a PID namespace would have: whoever outlives its parent becomes our child, in whatever session."""
    while True:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            children = [int(pid) for pid in file.read().split()]
        if not children:
            return
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
