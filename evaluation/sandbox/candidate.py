"""The untrusted process: it loads the completion and answers calls, and never sees the test."""

from __future__ import annotations

import os
import sys

from .codec import brief, decode, encode
from .jail import confine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

LOAD = ""  # no function has this name


def become_candidate(config: dict[str, Any], null: int, requests: int, replies: int) -> NoReturn:
    """Shed every descriptor but the two pipes, then load the completion and answer calls until killed."""
    try:
        if config["jail"]:  # without a PID namespace, only its process group gathers it and its children
            os.setsid()
        for old, new in ((null, 0), (requests, 3), (replies, 4)):
            os.dup2(old, new)
        confine(config)
        output = os.open("output", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.unlink("output")
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.closerange(5, 1024)
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
    data = bytearray()  # grows in place: a large source must not cost its time twice
    while len(data) < size:
        if not (piece := os.read(3, min(size - len(data), 1 << 16))):
            os._exit(0)
        data += piece
    return bytes(data)


def _answer(request: tuple[str, Any], namespace: dict[str, Any]) -> tuple[str, object]:
    """What becomes of one request, (LOAD, source) or (function's name, (arguments, keywords))."""
    name, payload = request
    try:
        if name == LOAD:
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
