"""The trusted process: it holds the test, and asks the candidate for plain values over a pipe."""

from __future__ import annotations

import os
import resource
import select
import time

from .candidate import LOAD, become_candidate
from .codec import RefusedError, brief, decode, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

SIGKILL, SIGXCPU, SIGXFSZ = 9, 24, 25  # Linux's numbers
_HEADER = 12  # eight bytes of call id, four of length


class Candidate:
    """The checker's end of the pipes. `fate` is set when the candidate can never be asked again."""

    def __init__(self, pid: int, requests: int, replies: int, config: dict[str, Any]) -> None:
        self.pid, self.requests, self.replies, self.config = pid, requests, replies, config
        self.alive = os.pidfd_open(pid)  # a survivor may hold the pipe open: its end says nothing
        self.deadline = time.monotonic() + config["wall"]
        self.fate: tuple[str, str] | None = None
        self.seconds: float | None = None
        os.set_blocking(requests, False)

    def ask(self, name: str, payload: object) -> object:
        """The value of one call; raises when there is none, and sets `fate` when there never will be."""
        if self.fate:
            raise RefusedError(self.fate[1])
        call = os.urandom(8)  # so that no answer can be prepared
        body = encode((name, payload))
        try:
            self._send(call + len(body).to_bytes(4, "big") + body)
            kind, value = decode(self._reply(call))[0]
        except RefusedError:
            raise
        except Exception as error:
            raise RefusedError(f"malformed reply ({brief(error)})") from None
        if kind == "value":
            return value
        if kind in ("SYNTAX", "MLE"):
            self._end(kind, str(value)[:200])
        raise RefusedError(str(value)[:200] if kind == "raised" else "a reply of no known kind")

    def _send(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            self._wait(self.requests, write=True)
            try:
                left = left[os.write(self.requests, left) :]
            except BrokenPipeError:
                self._died()

    def _reply(self, call: bytes) -> bytes:
        header = self._read(_HEADER)
        size = int.from_bytes(header[8:], "big")
        if header[:8] != call:
            raise RefusedError("a reply to no call of ours")
        if size > self.config["output"]:
            self._end("OLE", f"a reply of {size} bytes")
        return self._read(size)

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            self._wait(self.replies)
            data += os.read(self.replies, size - len(data)) or self._died()
        return data

    def _wait(self, pipe: int, write: bool = False) -> None:
        """Until `pipe` is ready; ends the candidate when it died first or time ran out."""
        left = max(0.0, self.deadline - time.monotonic())
        ready = select.select([self.alive] if write else [pipe, self.alive], [pipe] if write else [], [], left)
        if not any(ready):
            self._end("TLE", f"no answer in {self.config['wall']:g} s of wall time")
        if pipe not in ready[write]:
            self._died()

    def _died(self) -> NoReturn:
        number = self.reap()
        if number == SIGXCPU or (self.seconds or 0) >= self.config["cpu"]:
            self._end("TLE", f"more than {self.config['cpu']} s of CPU time")
        if number == SIGXFSZ:
            self._end("OLE", f"wrote more than {self.config['output']} bytes")
        self._end("CRASH", f"died of signal {number}" if number else "left before it answered")

    def _end(self, verdict: str, detail: str) -> NoReturn:
        self.fate = (verdict, detail)
        raise RefusedError(detail)

    def reap(self) -> int:
        """End it if it still lives; note its CPU seconds, return the signal (0: none) it died of."""
        os.kill(self.pid, SIGKILL)  # changes nothing for one that is already dying
        _, status, usage = os.wait4(self.pid, 0)
        self.seconds = usage.ru_utime + usage.ru_stime
        return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def judge(candidate: Candidate, source: str, test: str, entry_point: str) -> tuple[str, str]:
    """Run the trusted `test` against the candidate: its verdict and, unless it is PASS, the reason."""
    try:
        candidate.ask(LOAD, source)
        namespace: dict[str, Any] = {"__name__": "checker"}
        exec(compile(test, "test.py", "exec", dont_inherit=True), namespace)
        check = namespace["check"]

        def proxy(*arguments: object, **keywords: object) -> object:
            return candidate.ask(entry_point, (arguments, keywords))

        namespace[entry_point] = proxy  # over the prompt's stub of the same name, or even a function called check
        check(proxy)
    except BaseException as error:
        reason = str(error) if isinstance(error, RefusedError) else brief(error)
        return candidate.fate or ("FAIL", reason)
    return candidate.fate or ("PASS", "")


def check(config: dict[str, Any], null: int, channel: int) -> None:
    """Forks the candidate, and only then reads the job from the channel; writes the result there."""
    requests, replies = os.pipe(), os.pipe()
    if not (pid := os.fork()):
        become_candidate(config, null, requests[0], replies[1])
    os.close(requests[0])
    os.close(replies[1])
    resource.setrlimit(resource.RLIMIT_AS, (config["memory"], config["memory"]))
    with open(channel, "rb", closefd=False) as job:
        source, test, entry_point = decode(job.read())[0]
    candidate = Candidate(pid, requests[1], replies[0], config)
    verdict, detail = judge(candidate, source, test, entry_point)
    if candidate.seconds is None:
        candidate.reap()
    os.write(channel, encode((verdict, detail, candidate.seconds)))
