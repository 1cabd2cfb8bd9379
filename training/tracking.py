"""What a run writes down: metrics.jsonl always, TensorBoard beside it."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from accelerate.tracking import TensorBoardTracker

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Sample(NamedTuple):
    """One prompt, completed by teacher and student."""

    prompt: str
    teacher: str
    student: str


class Tracker:
    """A context that writes scalars and samples of one run; rows after `step`, where it goes on, are dropped."""

    def __init__(self, run: Path, kind: str, step: int) -> None:
        self.path = run / "metrics.jsonl"
        self.samples = run / "samples"
        self._keep(step)
        # accelerate names the directory of its events after the "project"
        self.board = TensorBoardTracker("tensorboard", str(run)) if kind == "tensorboard" else None

    def __enter__(self) -> "Tracker":
        if self.board:
            self.board.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.board:
            self.board.finish()

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes a row; a value that is not finite is written as null, as JSON knows no NaN."""
        finite = {key: value if math.isfinite(value) else None for key, value in scalars.items()}
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **finite}) + "\n")
        if self.board:
            self.board.log(dict(scalars), step=step)

    def log_samples(self, step: int, samples: Sequence[Sample]) -> None:
        """Writes prompt, teacher's and student's completion side by side, as text that cannot become markup."""
        texts = [side_by_side(sample) for sample in samples]
        self.samples.mkdir(exist_ok=True)
        (self.samples / f"step-{step}.md").write_text("\n\n---\n\n".join(texts) + "\n")
        for number, text in enumerate(texts):
            if self.board:
                self.board.writer.add_text(f"samples/{number}", text, step)

    def _keep(self, step: int) -> None:
        """Forgets rows after `step`: the steps they tell of are about to be made again."""
        if self.path.exists():
            lines = self.path.read_text().splitlines(keepends=True)
            whole = [line for line in lines if line.endswith("\n")]  # a kill may have torn the last one
            self.path.write_text("".join(line for line in whole if json.loads(line)["step"] <= step))


def side_by_side(sample: Sample, width: int = 56) -> str:
    """Markdown of one sample: a single block of code with teacher and student in two columns."""
    left, right = clean(sample.teacher).splitlines(), clean(sample.student).splitlines()
    rows = [("teacher", "student"), ("-" * width, "-" * width), *zip_longest(left, right, fillvalue="")]
    columns = "\n".join(f"{a:<{width}} | {b}" for a, b in rows)
    return f"{indent(sample.prompt)}\n\n{indent(columns)}"


def indent(text: str) -> str:
    """Every line four spaces in: markdown shows it as it is, and no image or tag in it comes alive."""
    return "\n".join("    " + line for line in clean(text).splitlines())


def clean(text: str) -> str:
    """Without terminal escapes and control characters; tabs become spaces."""
    return _CONTROL.sub("", text.expandtabs(4))
