"""Ways out that a completion may try, with the jail and without it."""

import os
import socket

import pytest

from tests.evaluation.sandbox.test_hostile import SHORT, body
from tutelage.evaluation.sandbox.pool import Case, Layers, Verdict, _run, layers

# Attempts that return True where nothing stands in their way.
ATTEMPTS = {
    "write to the standard library": "open(os.__file__, 'a')\nreturn True",
    "reach the network": "import socket\nsocket.create_connection(('127.0.0.1', PORT), 2)\nreturn True",
    "change the root": "os.chroot('/tmp')\nreturn True",
    "enter new namespaces": "import ctypes\nreturn ctypes.CDLL(None).unshare(0x10000000) == 0",
    "become root": "os.setuid(0)\nreturn os.getuid() == 0",
    "speak to processes of other names": "import socket\nsocket.socketpair()\nsocket.socket(1)\nreturn True",
    "keep memory that no limit counts": (
        "import ctypes\nlib = ctypes.CDLL(None)\nreturn lib.shmctl(lib.shmget(0, 4096, 0o1600), 0, None) == 0"
    ),
    "see other processes": "return len(os.listdir('/proc')) > 1",
    "see installed packages": "return len(os.listdir(os.path.dirname(os.__file__) + '/site-packages')) > 0",
}


def attempt(text: str, active: Layers) -> Verdict:
    with socket.create_server(("127.0.0.1", 0)) as server:
        text = text.replace("PORT", str(server.getsockname()[1]))
        test = "def check(candidate):\n    assert candidate(1, 2) is True"
        return _run(Case(body(text), test, "add"), SHORT, active).verdict


# These are tried nowhere else: they would succeed, and the machine would not be as before.
HARMFUL = {
    "trace its parent": "import ctypes\nreturn ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) == 0",
    "mount": "import ctypes\nreturn ctypes.CDLL(None).mount(b'x', b'/tmp', b'tmpfs', 0, None) == 0",
}


@pytest.mark.skipif(layers().grade != "strong", reason="needs namespaces")
@pytest.mark.parametrize("text", [*ATTEMPTS.values(), *HARMFUL.values()], ids=[*ATTEMPTS, *HARMFUL])
def test_the_jail_holds(private, text):
    assert attempt(text, layers()) == Verdict.FAIL


@pytest.mark.skipif(layers().grade != "strong", reason="needs namespaces")
def test_the_library_is_read_only_even_for_its_owner(private):
    assert attempt(ATTEMPTS["write to the standard library"], Layers(jail=True, users=False)) == Verdict.FAIL


@pytest.mark.skipif(os.getuid() != 0, reason="as another user some of the attempts fail anyway")
@pytest.mark.parametrize("text", ATTEMPTS.values(), ids=list(ATTEMPTS))
def test_without_layers_the_same_attempts_succeed(private, text):
    assert attempt(text, Layers(jail=False, users=False)) == Verdict.PASS
