"""What a run writes down: metrics.jsonl and samples always, and whatever trackers were asked for beside it."""

import json
import logging
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from queue import Full, Queue
from threading import Thread
from typing import Any

from tutelage.runs import METRICS
from tutelage.training.samples import Sample, side_by_side
from tutelage.training.trackers import TRACKERS, Sink

log = logging.getLogger(__name__)
WAITING = 1000
"""Calls that a tracker may be behind before it is dropped."""
PATIENCE = 30.0
"""Seconds that a run waits, at its end, for a tracker to write the rest."""


class AsyncTracker:
    """A tracker in a thread of its own: the run never waits for it, and drops one that raises or falls behind."""

    def __init__(self, name: str, sink: Sink) -> None:
        self.name, self.sink = name, sink
        self.dropped = False
        self._calls: Queue[Callable[[Sink], None] | None] = Queue(WAITING)
        self._thread = Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def put(self, call: Callable[[Sink], None] | None) -> None:
        """Asks for `call(sink)`, in its turn; None is the end."""
        if not self.dropped:
            try:
                self._calls.put_nowait(call)
            except Full:
                self._drop(f"it is {WAITING} calls behind")

    def close(self) -> None:
        """Lets it write the rest, for a while."""
        self.put(None)
        self._thread.join(0 if self.dropped else PATIENCE)
        if self._thread.is_alive() and not self.dropped:
            self._drop(f"it was not done {PATIENCE:g} s after the run")

    def _work(self) -> None:
        try:
            self.sink.start()
            while call := self._calls.get():
                call(self.sink)
            self.sink.finish()
        except BaseException as error:  # a tracker may even exit: none of it is the run's business
            self._drop(f"{type(error).__name__}: {error}")

    def _drop(self, reason: str) -> None:
        if not self.dropped:
            self.dropped = True
            line = re.sub(r"//[^/@\s]*@", "//…@", " ".join(reason.split()))  # an address may hold a password
            log.warning("tracker %s dropped: %s; metrics.jsonl goes on", self.name, line)


class Tracker:
    """A context that writes scalars and samples of one run; rows after `step`, where it goes on, are dropped."""

    def __init__(self, run: Path, names: Sequence[str], step: int, settings: Mapping[str, Any] | None = None) -> None:
        self.path = run / METRICS
        self.samples = run / "samples"
        self._waiting: list[str] = []
        self._keep(step)
        self.asides = [AsyncTracker(name, TRACKERS[name](run, step)) for name in names]
        if settings:
            self._all(lambda sink: sink.describe(settings))

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, *_: object) -> None:
        if self._waiting:
            self._write()
        for aside in self.asides:
            aside.close()

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes a row; a value that is not finite is written as null, as JSON knows no NaN."""
        finite = {key: value if math.isfinite(value) else None for key, value in scalars.items()}
        self._waiting.append(json.dumps({"step": step, **finite}) + "\n")
        self._write()
        self._all(lambda sink: sink.log(dict(scalars), step))

    def log_samples(self, step: int, samples: Sequence[Sample]) -> None:
        """Writes prompt, teacher's and student's completion side by side, as text that cannot become markup."""
        texts = [side_by_side(sample) for sample in samples]
        try:
            self.samples.mkdir(exist_ok=True)
            (self.samples / f"step-{step}.md").write_text("\n\n---\n\n".join(texts) + "\n")
        except OSError as error:
            log.warning("the samples of step %d were not written: %s", step, error)
        for number, text in enumerate(texts):
            self._all(lambda sink, tag=f"samples/{number}", text=text: sink.text(tag, text, step))  # type: ignore[misc]

    def _all(self, call: Callable[[Sink], None]) -> None:
        for aside in self.asides:
            aside.put(call)

    def _write(self) -> None:
        """Appends the rows that wait; they wait on, and leave no torn row behind, where the disk does not take them."""
        whole = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("a") as file:
                file.write("".join(self._waiting))
            self._waiting.clear()
        except OSError as error:
            log.warning("%s takes no rows now, %d wait: %s", self.path, len(self._waiting), error)
            if self.path.exists():
                os.truncate(self.path, whole)

    def _keep(self, step: int) -> None:
        """Forgets rows after `step`: the steps they tell of are about to be made again."""
        if self.path.exists():
            kept = takewhile(
                lambda line: line.endswith(b"\n") and json.loads(line)["step"] <= step,  # a kill may tear the last one
                self.path.read_bytes().splitlines(keepends=True),
            )
            os.truncate(self.path, sum(map(len, kept)))
