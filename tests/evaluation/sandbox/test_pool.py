"""The sandbox as others use it: order, limits, grades, and the helper that is kept warm."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import psutil
import pytest

from tests.evaluation.sandbox.conftest import processes
from tests.evaluation.sandbox.test_hostile import HOSTILE, RIGHT, SHORT, TEST, WRONG, body
from tutelage.errors import UserError
from tutelage.evaluation.humaneval import STYLES, humaneval
from tutelage.evaluation.problems import program, split_case
from tutelage.evaluation.sandbox import pool
from tutelage.evaluation.sandbox.pool import (
    UIDS,
    Case,
    Layers,
    Limits,
    Result,
    Verdict,
    _run,
    describe,
    layers,
    run_many,
    run_one,
)


def wait_until(condition: Callable[[], bool]) -> None:
    """Waits 3 seconds at most for what must come true."""
    deadline = time.monotonic() + 3
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert condition()


def test_survivors_are_seen_while_they_run(private):
    """The check for survivors would find one: this is what makes its silence mean something."""
    running = threading.Thread(target=run_one, args=(Case(HOSTILE["sleeps"][0], TEST, "add"), SHORT))
    running.start()
    wait_until(lambda: len(processes()) == 3)  # warden, checker, candidate
    running.join()


def test_a_loaded_machine_fails_nobody(private):
    """CPU time is judged, not wall time: eight at once on few cores need far more than their second each."""
    busy = body("import time\nend = time.process_time() + 0.2\nwhile time.process_time() < end: pass\nreturn a + b")
    results = list(run_many([Case(busy, TEST, "add")] * 8, Limits(cpu_seconds=1), workers=8))
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
    pool._helper.cache_clear()


def test_a_weaker_grade_is_recorded_with_its_reason(monkeypatch, caplog, unprobed):
    def without_namespaces(case: Case, limits: Limits, active: Layers) -> Result:
        return Result(Verdict.CRASH, "unshare: no", 0.0) if active.jail else _run(case, limits, active)

    monkeypatch.setattr("tutelage.evaluation.sandbox.pool._run", without_namespaces)
    record = describe()
    assert record["grade"] in ("partial", "weak")
    assert record["missing"] == "unshare: no"
    assert "unshare: no" in caplog.text


def test_where_nothing_runs_the_reason_is_told(monkeypatch, unprobed):
    monkeypatch.setattr(pool, "BOOT", "raise SystemExit")
    pool._helper.cache_clear()
    with pytest.raises(UserError, match="not even a trivial one: the interpreter of the sandbox did not start"):
        describe()


def test_impossible_limits_are_refused():
    with pytest.raises(UserError, match="cpu_seconds is 0"):
        Limits(cpu_seconds=0)
    with pytest.raises(UserError, match="workers is 0"):
        list(run_many([], workers=0))


def programs(answer: str | None = None) -> list[Case]:
    """HumanEval with its own solutions, or one answer to every problem."""
    style = STYLES["completion"]
    return [split_case(p, program(p, style, answer or p.canonical_solution)) for p in humaneval()]


def test_every_canonical_solution_passes():
    assert [result for result in run_many(programs()) if result.verdict != "PASS"] == []


@pytest.mark.parametrize("stub", ["None", "True", "0", '""', "[]"])
def test_stubs_pass_nothing(stub):
    assert {result.verdict for result in run_many(programs(f"    return {stub}\n"))} == {Verdict.FAIL}


def test_a_solution_passes_fifty_times_on_busy_cores(private):
    busy = [threading.Thread(target=sum, args=(range(10**8),)) for _ in range(2)]
    for one in busy:
        one.start()
    assert {result.verdict for result in run_many([programs()[0]] * 50)} == {Verdict.PASS}


def test_a_helper_that_somebody_killed_is_started_again(private):
    helper = pool._helper(layers().jail, ())
    assert run_one(Case(RIGHT, TEST, "add")).verdict == Verdict.PASS
    os.kill(helper.process.pid, signal.SIGKILL)
    helper.process.wait()
    assert run_one(Case(RIGHT, TEST, "add")).verdict == Verdict.PASS


def test_cases_that_run_when_somebody_kills_the_helper_keep_their_verdicts(private):
    def kill() -> None:
        for _ in range(3):
            time.sleep(0.7)
            pool._helper(layers().jail, ()).process.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    results = list(run_many([Case(RIGHT, TEST, "add")] * 200, workers=8))
    killer.join()
    assert {result.verdict for result in results} == {Verdict.PASS}


def test_nobody_outlives_a_warden_that_somebody_killed(private):
    stuck = Case(RIGHT, "def check(candidate):\n    while True: pass", "add")
    running = threading.Thread(target=run_one, args=(stuck, Limits(wall_seconds=20)))
    running.start()
    wait_until(lambda: len(processes()) == 3)
    (warden,) = psutil.Process(pool._helper(layers().jail, ()).process.pid).children()
    warden.kill()
    running.join()
    wait_until(lambda: processes() == set())


def test_the_sandbox_ends_with_the_process_that_started_it(private):
    code = (
        "import os\nfrom tutelage.evaluation.sandbox.pool import *\nfrom tutelage.evaluation.sandbox import pool\n"
        "import threading, time\nsleeper = Case('import time\\ntime.sleep(600)', '', 'f')\n"
        "threading.Thread(target=run_one, args=(sleeper, Limits(wall_seconds=60)), daemon=True).start()\n"
        "time.sleep(1)\nos.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    wait_until(lambda: processes() == set())


def test_workers_are_different_users(private):
    """Otherwise the limit on processes, which the kernel counts per user, would be one for all that run together."""
    if not layers().users:
        pytest.skip("only root can give users away")
    test = f"def check(candidate):\n    assert candidate() in {UIDS}\n    raise ValueError(candidate())"
    slow = "import os, time\ndef f():\n    time.sleep(0.3)\n    return os.getuid()"
    assert len({result.detail for result in run_many([Case(slow, test, "f")] * 2)}) == 2


def test_threads_of_one_case_are_not_counted_for_another(private):
    threads = "[threading.Thread(target=time.sleep, args=(0.5,)) for _ in range(4)]"
    source = f"import threading, time\nfor one in {threads}: one.start()\ntime.sleep(0.5)\n{RIGHT}"
    results = run_many([Case(source, TEST, "add")] * 4, workers=4)
    assert {result.verdict for result in results} == {Verdict.PASS}


def test_packages_are_seen_where_they_are_asked_for(private):
    source = "def f():\n    import numpy\n    return numpy.arange(3).sum()"
    case = Case(source, "def check(f):\n    assert f() == 3", "f")
    assert run_one(case).verdict == Verdict.FAIL
    assert [result.verdict for result in run_many([case], packages=["numpy"])] == [Verdict.PASS]
    other = replace(case, source="def f():\n    import torch\n    return 3")
    assert [result.verdict for result in run_many([other], packages=["numpy"])] == [Verdict.FAIL]
    assert describe(["numpy"])["packages"] == "numpy"
    for absent in ("nothing_of_this_name", "os", "../os"):
        with pytest.raises(UserError, match="no such package"):
            list(run_many([case], packages=[absent]))
