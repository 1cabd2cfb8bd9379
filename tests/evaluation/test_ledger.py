"""What is known of samples, on disk."""

import json

from tutelage.evaluation.ledger import Ledger

A, B = ("task/0", 0), ("task/1", 0)


def test_lines_add_up_and_outlive_the_process(tmp_path):
    path = tmp_path / "new" / "samples.jsonl"
    Ledger(path).add({A: {"completion": "a"}, B: {"completion": "b"}})
    Ledger(path).add({A: {"split": {"verdict": "PASS"}}})
    found = Ledger(path)
    assert found.rows[A] == {"task_id": "task/0", "sample": 0, "completion": "a", "split": {"verdict": "PASS"}}
    assert found.lacking([A, B, ("task/2", 0)], "completion") == [("task/2", 0)]
    assert found.lacking([A, B], "split") == [B]


def test_a_torn_line_is_cut_off_and_the_next_one_is_whole(tmp_path):
    path = tmp_path / "samples.jsonl"
    Ledger(path).add({A: {"completion": "a"}})
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"task_id": "task/1", "sam')
    found = Ledger(path)
    assert path.read_bytes() == whole
    found.add({B: {"completion": "b"}})
    assert Ledger(path).rows.keys() == {A, B}


def test_closed_it_has_a_line_for_each_sample_in_the_order_asked(tmp_path):
    found = Ledger(tmp_path / "samples.jsonl")
    found.add({A: {"completion": "a"}, B: {"completion": "b"}})
    found.add({A: {"split": {}}, B: {"split": {}}})
    found.close([B, A])
    rows = [json.loads(line) for line in found.path.read_text().splitlines()]
    assert [row["task_id"] for row in rows] == ["task/1", "task/0"]
    assert all({"completion", "split"} <= row.keys() for row in rows)
    assert [path.name for path in tmp_path.iterdir()] == ["samples.jsonl"]
