"""The program that runs one untrusted completion: three processes, of which the last never sees the test.

    outer ──unshare, chroot, fork──▶ checker (PID 1: holds the test) ──fork──▶ candidate (only the completion)

Inside the checker the function under test is a proxy: it sends arguments over a pipe and gets back a plain
value. So PASS means that trusted code finished `check`; what the candidate prints, redefines or exits with
cannot matter. Runs as a script under `python -I -S`, once per completion: it imports only what starts fast,
which rules out `json`, `signal`, `socket` and `typing` (10 to 20 ms each).
"""

from __future__ import annotations

import ctypes
import os
import resource
import select
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

DEPTH = 100
SIGKILL, SIGXCPU, SIGXFSZ = 9, 24, 25  # Linux's numbers
_HEADER = 12  # eight bytes of call id, four of length


class RefusedError(Exception):
    """A value, or a message, that may not cross the pipe."""


# The codec: tag, length, body. Only exact built-in types, so that no foreign `__eq__` reaches the checker.
_LEAVES: dict[type, tuple[bytes, Callable[[Any], bytes], Callable[[bytes], object]]] = {
    type(None): (b"N", lambda _: b"", lambda _: None),
    bool: (b"B", lambda value: b"1" if value else b"", lambda body: body == b"1"),
    int: (b"I", lambda value: str(value).encode(), int),  # Python itself bounds the digits, both ways
    float: (b"F", lambda value: repr(value).encode(), float),
    complex: (b"C", lambda value: repr(value).encode(), lambda body: complex(body.decode())),
    str: (
        b"S",
        lambda text: text.encode("utf-8", "surrogatepass"),
        lambda b: b.decode("utf-8", "surrogatepass"),
    ),
    bytes: (b"Y", bytes, bytes),
}
_BRANCHES: dict[type, tuple[bytes, Callable[[list[Any]], object]]] = {
    list: (b"l", list),
    tuple: (b"t", tuple),
    set: (b"s", set),
    frozenset: (b"z", frozenset),
    dict: (b"d", lambda items: dict(zip(items[::2], items[1::2], strict=True))),
}
_LOAD = {tag: load for tag, _, load in _LEAVES.values()}
_BUILD = dict(_BRANCHES.values())


def encode(value: Any, depth: int = DEPTH) -> bytes:
    """`value` as bytes; raises RefusedError for any but built-in types and beyond `depth` levels."""
    if leaf := _LEAVES.get(type(value)):
        body = leaf[1](value)
        return leaf[0] + len(body).to_bytes(4, "big") + body
    value = _downcast(value)
    if depth == 0:
        raise RefusedError("value nested too deeply")
    items = [part for pair in value.items() for part in pair] if type(value) is dict else list(value)
    tag = _BRANCHES[type(value)][0]
    return tag + len(items).to_bytes(4, "big") + b"".join([encode(item, depth - 1) for item in items])


def _downcast(value: Any) -> Any:
    """The built-in container behind a Counter, OrderedDict, defaultdict or namedtuple."""
    if type(value) in _BRANCHES:
        return value
    if isinstance(value, dict) and type(value).__module__ == "collections":
        return dict(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return tuple(value)
    raise RefusedError(f"a value of type {type(value).__name__!r} is refused")


def decode(data: bytes, at: int = 0, depth: int = DEPTH) -> tuple[Any, int]:
    """The value that starts at offset `at`, and the offset behind it; raises on anything malformed."""
    tag, size = data[at : at + 1], int.from_bytes(data[at + 1 : at + 5], "big")
    at += 5
    if tag in _LOAD:
        if at + size > len(data):
            raise RefusedError("message cut short")
        return _LOAD[tag](data[at : at + size]), at + size
    if depth == 0 or tag not in _BUILD:
        raise RefusedError("malformed message")
    items = []
    for _ in range(size):
        item, at = decode(data, at, depth - 1)
        items.append(item)
    return _BUILD[tag](items), at


def brief(error: BaseException) -> str:
    """Kind and last line of an error, at most 200 characters."""
    try:
        lines = str(error).strip().splitlines()
    except BaseException:  # a hostile __str__
        lines = []
    return ": ".join([type(error).__name__, *lines[-1:]])[:200]


# The outer process: a private world that holds the standard library and nothing else.


def enter_jail(root: str, libraries: list[str], masked: list[str]) -> None:
    """New namespaces, then a root of read-only `libraries` with the `masked` directories emptied."""
    libc = ctypes.CDLL(None, use_errno=True)

    def call(name: str, *arguments: Any) -> None:
        if getattr(libc, name)(*arguments):
            raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")

    def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
        call("mount", *[a and a.encode() for a in (source, target, kind)], flags, data and data.encode())

    uid, gid = os.getuid(), os.getgid()
    spaces = 0x00020000 | 0x04000000 | 0x08000000 | 0x20000000 | 0x40000000  # mount, UTS, IPC, PID, network
    call("unshare", spaces | (0x10000000 if uid else 0))  # a user namespace for those who are not root
    if uid:
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{uid} {uid} 1"),
            ("gid_map", f"{gid} {gid} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    mount("none", "/", None, 0x44000)  # MS_REC | MS_PRIVATE: nothing below is seen outside
    mount("jail", root, "tmpfs", 6, "size=16m,mode=755")  # MS_NOSUID | MS_NODEV
    for path in libraries:
        os.makedirs(root + path, exist_ok=True)
        mount(path, root + path, None, 0x1000)  # MS_BIND, which takes MS_RDONLY only in a second step
    for path in masked:
        mount("empty", root + path, "tmpfs", 7)
    for path in libraries:
        mount(path, root + path, None, 0x1000 | 0x20 | 7)
    os.mkdir(root + "/tmp")
    os.chmod(root + "/tmp", 0o1777)
    os.chroot(root)
    os.chdir("/tmp")


# The candidate's process.


def drop_privileges(config: dict[str, Any]) -> None:
    """Set every limit, then give up the user id (root) or the capabilities (anyone else), for good."""
    limits = {"AS": config["memory"], "FSIZE": config["output"], "NOFILE": 64, "CORE": 0}
    for name, value in (limits | {"NPROC": config["processes"]}).items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
    resource.setrlimit(resource.RLIMIT_CPU, (config["cpu"], config["cpu"] + 1))  # SIGXCPU, then SIGKILL
    libc = ctypes.CDLL(None)
    libc.signal(SIGXFSZ, None)  # back to the default: Python ignores it, but too much output must kill
    if config["uid"]:
        os.setgroups([])
        os.setresgid(config["uid"], config["uid"], config["uid"])
        os.setresuid(config["uid"], config["uid"], config["uid"])
    elif os.getuid():
        libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)())
    libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS


def become_candidate(config: dict[str, Any], null: int, requests: int, replies: int) -> NoReturn:
    """Shed every descriptor but the two pipes, then load the completion and answer calls until killed."""
    try:
        if config["jail"]:  # without a PID namespace, only its process group gathers it and its children
            os.setsid()
        for old, new in ((null, 0), (requests, 3), (replies, 4)):
            os.dup2(old, new)
        drop_privileges(config)
        output = os.open("output", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.unlink("output")
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.closerange(5, 64)
        module = type(sys)("candidate")
        sys.modules["candidate"] = module
        while True:
            call, size = _take(8), int.from_bytes(_take(4), "big")
            body = encode(_answer(decode(_take(size))[0], vars(module)))
            left = memoryview(call + len(body).to_bytes(4, "big") + body)
            while left:
                left = left[os.write(4, left) :]
    finally:
        os._exit(1)


def _take(size: int) -> bytes:
    """Exactly `size` bytes of the request pipe."""
    data = b""
    while len(data) < size:
        if not (piece := os.read(3, size - len(data))):
            os._exit(0)
        data += piece
    return data


def _answer(request: tuple[str, Any], namespace: dict[str, Any]) -> tuple[str, object]:
    """What becomes of one request, ("load", source) or (function's name, (arguments, keywords))."""
    name, payload = request
    try:
        if name == "load":
            return _load(payload, namespace)
        value = namespace[name](*payload[0], **payload[1])
        encode(value)  # refuse here, where the error can be told
        return ("value", value)
    except MemoryError as error:
        return ("MLE", brief(error))
    except BaseException as error:
        return ("raised", brief(error))


def _load(source: str, namespace: dict[str, Any]) -> tuple[str, object]:
    """Compile and run the completion's source; leaving at this point is dying, not failing."""
    try:
        code = compile(source, "completion.py", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError) as error:
        return ("SYNTAX", brief(error))
    try:
        exec(code, namespace)
    except SystemExit:
        os._exit(1)
    return ("value", None)


# The checker's process.


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
            self._end(kind, str(value))
        raise RefusedError(str(value))

    def _send(self, data: bytes) -> None:
        while data:
            self._wait(self.requests, write=True)
            try:
                data = data[os.write(self.requests, data) :]
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
        candidate.ask("load", source)
        namespace: dict[str, Any] = {"__name__": "checker"}
        exec(compile(test, "test.py", "exec", dont_inherit=True), namespace)

        def proxy(*arguments: object, **keywords: object) -> object:
            return candidate.ask(entry_point, (arguments, keywords))

        namespace[entry_point] = proxy  # over the prompt's stub of the same name
        namespace["check"](proxy)
    except BaseException as error:
        reason = str(error) if isinstance(error, RefusedError) else brief(error)
        return candidate.fate or ("FAIL", reason)
    return candidate.fate or ("PASS", "")


def check(config: dict[str, Any], null: int) -> None:
    """Fork the candidate, and only then read the job from stdin; write the result to stdout."""
    requests, replies = os.pipe(), os.pipe()
    if not (pid := os.fork()):
        become_candidate(config, null, requests[0], replies[1])
    os.close(requests[0])
    os.close(replies[1])
    resource.setrlimit(resource.RLIMIT_AS, (config["memory"], config["memory"]))
    with open(0, "rb") as job:
        source, test, entry_point = decode(job.read())[0]
    candidate = Candidate(pid, requests[1], replies[0], config)
    verdict, detail = judge(candidate, source, test, entry_point)
    if candidate.seconds is None:
        candidate.reap()
    os.write(1, encode((verdict, detail, candidate.seconds)))


def main() -> None:
    """Build the world named by the configuration in `argv[1]`, and check one completion in it."""
    config = decode(bytes.fromhex(sys.argv[1]))[0]
    null = os.open("/dev/null", os.O_RDONLY)
    if config["jail"]:
        enter_jail(config["root"], config["libraries"], config["masked"])
    else:
        os.chdir(config["root"])
    if pid := os.fork():  # only a child is inside the new PID namespace; when it ends, all in there die
        os.waitpid(pid, 0)
    else:
        check(config, null)


if __name__ == "__main__":
    main()
