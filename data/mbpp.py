"""MBPP's training problems as documents: a description in a docstring, then its solution.

Only task_id 601 to 974 is ever read. 11 to 510 are the problems that pass@1 is measured on; reading the
split's bounds from the ids keeps a local file, which holds all of them, as safe as the hub's train split.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from tutelage.data.hub import hub_rows
from tutelage.data.readers import Row, Unreadable, jsonl_rows

DATASET = "google-research-datasets/mbpp"
TRAIN_IDS = range(601, 975)


def mbpp_hub() -> Iterator[Row]:
    """The training problems from the hub."""
    return _problems(hub_rows(DATASET, "full"))


def mbpp_file(path: Path) -> Iterator[Row]:
    """The training problems in a local JSONL file of Google's format (task_id, text, code)."""
    return _problems(jsonl_rows(path))


def _problems(rows: Iterator[Row]) -> Iterator[Row]:
    for origin, row in rows:
        if isinstance(row, Unreadable):
            yield origin, row
        elif not isinstance(row, Mapping) or not {"task_id", "text", "code"} <= row.keys():
            yield origin, Unreadable("not an MBPP row: task_id, text and code expected")
        elif row["task_id"] in TRAIN_IDS:
            yield origin, f'"""{row["text"]}"""\n{row["code"]}\n'
