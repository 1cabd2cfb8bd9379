"""What is known of each sample, written down as it becomes known: who starts again asks only for the rest."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Key = tuple[str, int]  # task_id, number of the sample


class Ledger:
    """A JSONL file whose lines each tell something of one sample; what lines of one sample tell adds up.

    A line that a kill has torn is cut off.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[Key, dict[str, Any]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            whole = path.read_bytes()
            whole = whole[: whole.rfind(b"\n") + 1]
            os.truncate(path, len(whole))
            for line in whole.splitlines():
                self._note(json.loads(line))

    def lacking(self, keys: Iterable[Key], what: str) -> list[Key]:
        """Those of the samples of which `what` is not known."""
        return [key for key in keys if what not in self.rows.get(key, {})]

    def add(self, facts: Mapping[Key, Mapping[str, Any]]) -> None:
        """Writes down what became known of some samples, all of it or, where we are killed now, a part."""
        lines = [{"task_id": task, "sample": sample, **told} for (task, sample), told in facts.items()]
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))
        for line in lines:
            self._note(line)

    def close(self, keys: Iterable[Key]) -> None:
        """Leaves one line per sample, in this order."""
        aside = self.path.with_suffix(".partial")
        aside.write_text("".join(json.dumps(self.rows[key]) + "\n" for key in keys), encoding="utf-8")
        aside.replace(self.path)

    def _note(self, line: dict[str, Any]) -> None:
        self.rows.setdefault((line["task_id"], line["sample"]), {}).update(line)
