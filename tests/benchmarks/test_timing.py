"""The stopwatch behind every figure."""

import json
import time

import numpy as np

from benchmarks.timing import Output, device_line, extra_memory, interleaved, publish


def test_callables_are_timed_in_turn():
    calls = []
    runs = {"a": lambda: calls.append("a"), "b": lambda: (calls.append("b"), time.sleep(0.01))}
    found = interleaved(runs, repeats=3)
    assert calls == ["a", "b"] * 4  # a round to warm up, then three
    low, middle, high = found["b"]
    assert 0.01 <= low <= middle <= high < 0.1
    assert found["a"][1] < 0.005


def test_extra_memory_is_the_peak_and_not_what_remains():
    def run():
        block = np.ones(64 << 20, dtype=np.uint8)
        time.sleep(0.05)
        del block

    assert 50e6 < extra_memory(run) < 120e6


def test_the_device_is_named():
    assert "threads, torch" in device_line()


def test_a_result_is_printed_and_kept_as_lines_of_json(tmp_path, capsys):
    history = tmp_path / "results" / "history.jsonl"
    assert publish("one", {"seconds": 1.5}, Output(history=str(history)))
    assert not publish("two", {"seconds": 2.5}, Output(json=True, history=str(history)))
    kept = [json.loads(line) for line in history.read_text().splitlines()]
    assert [(row["benchmark"], row["seconds"]) for row in kept] == [("one", 1.5), ("two", 2.5)]
    assert all("threads, torch" in row["device"] for row in kept)
    assert json.loads(capsys.readouterr().out) == kept[1]
