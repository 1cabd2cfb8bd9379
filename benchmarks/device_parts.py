"""The parts of `benchmarks.device`: what each runs, for how long at least and at most, and the tables it leaves."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks import kernel_report
from benchmarks.kernel_targets import PARTS as LAPS
from benchmarks.kernel_targets import TARGETS, MemoryRow, Row, judge

ROOT = Path(__file__).resolve().parents[1]
Line = dict[str, Any]
Tables = dict[str, list[Line]]
"""Rows of named columns by the table's title."""
START = 12.0
"""Seconds in which a process on a GPU host is up, and has drawn and written at its end."""


class NotReadyError(Exception):
    """What a part needs is not there, and why."""


@dataclass(frozen=True)
class Setting:
    """Where and how large."""

    device: str
    tiny: bool
    out: Path
    work: Path
    """A folder for what nobody keeps; `PART-I.out` is what command I of a part printed."""

    @property
    def teacher(self) -> str:
        """What `--teacher` is. Raises NotReadyError where the part `teacher` has not made one."""
        for found in outputs(self, "teacher"):
            return str(found["rows"][0]["teacher"])
        raise NotReadyError("needs what the part `teacher` makes")


@dataclass(frozen=True)
class Part:
    """Commands in order, of which one that fails does not keep the next from running."""

    title: str
    least: float
    """Seconds, of eight minutes, that are kept for it."""
    most: float
    commands: Callable[[Setting, float], list[list[str]]]
    """What to run where there are so many seconds for all of it."""
    read: Callable[[Setting], Tables]


def module(name: str, *flags: object) -> list[str]:
    """`python -m NAME FLAGS`."""
    return [sys.executable, "-m", name, *map(str, flags)]


def outputs(setting: Setting, part: str) -> Iterator[Any]:
    """The JSON that a part's commands printed, in order: whole, or line by line among others."""
    for path in sorted(setting.work.glob(f"{part}-*.out")):
        text = path.read_text()
        try:
            yield json.loads(text)
        except json.JSONDecodeError:
            yield from (json.loads(line) for line in text.splitlines() if line.startswith("{"))


def rows_of(part: str, title: str) -> Callable[[Setting], Tables]:
    """One table of the `rows` that a part's commands printed."""

    def read(setting: Setting) -> Tables:
        return {title: [row for found in outputs(setting, part) for row in found["rows"]]}

    return read


def environment(setting: Setting, seconds: float) -> list[list[str]]:
    """What is here, and the device's ceilings."""
    size = ["--size", 256, "--bytes", 1 << 22] if setting.tiny else []
    return [
        module("tutelage", "doctor", "--json"),
        module("benchmarks.ceilings", "--device", setting.device, "--json", *size),
    ]


def read_environment(setting: Setting) -> Tables:
    """The doctor's findings and the ceilings."""
    found = list(outputs(setting, "environment"))
    doctor = [line for part in found if isinstance(part, list) for line in part]
    return {"doctor": doctor, "ceilings": [row for part in found if isinstance(part, dict) for row in part["rows"]]}


def teacher(setting: Setting, seconds: float) -> list[list[str]]:
    """The embedded one where it is, else random weights of its shape."""
    where = setting.work / "teacher"
    if setting.tiny:
        small = ["--shape", "nano", "--data", Path(json.__file__).parent]
        return [module("benchmarks.random_teacher", *small, "--output", where, "--json")]
    return [module("benchmarks.random_teacher", "--unless_embedded", "--output", where, "--json")]


def tests(setting: Setting, seconds: float) -> list[list[str]]:
    """Those made for a device first."""
    first, folder = "tests/kernels/test_on_device.py", "tests/kernels"
    chosen = [[first], [folder, f"--ignore={first}"]] if (ROOT / first).exists() else [[folder]]
    if setting.tiny:
        chosen = [["tests/kernels/test_checks.py"]]
    quiet = ("-q", "-p", "no:cacheprovider", "--tb=short")
    return [
        module("pytest", *what, *quiet, f"--junitxml={setting.work}/tests-{i}.xml") for i, what in enumerate(chosen)
    ]


def read_tests(setting: Setting) -> Tables:
    """Counts by file, and those that did not pass."""
    counts: dict[str, Line] = {}
    wrong: list[Line] = []
    for path in sorted(setting.work.glob("tests-*.xml")):
        for case in ElementTree.parse(path).iter("testcase"):
            file = case.get("classname", "").removeprefix("tests.")
            line = counts.setdefault(file, {"file": file, "passed": 0, "failed": 0, "skipped": 0, "seconds": 0.0})
            bad = next((child for child in case if child.tag in ("failure", "error")), None)
            verdict = "failed" if bad is not None else "skipped" if case.find("skipped") is not None else "passed"
            line[verdict] += 1
            line["seconds"] += float(case.get("time", 0))
            if bad is not None:
                message = " ".join((bad.get("message") or "").split())[:160]
                wrong.append({"test": f"{file}::{case.get('name')}", "message": message})
    return {"tests": list(counts.values()), "failed": wrong}


GROUPS = ("loss,logits,memory,accuracy", "attention,rope,packed,decode,norm", "step")
"""Tables of the kernels by process: what one brings down, the others do not miss."""


def kernels(setting: Setting, seconds: float) -> list[list[str]]:
    """A process for each group of tables."""
    groups = ("decode,memory",) if setting.tiny else GROUPS
    flags: list[object] = ["--device", setting.device, "--limit", 30, "--repeats", 15]
    if setting.tiny:
        flags += ["--tokens", 32, "--vocab", 200, "--students", 16, "--teacher", 12, "--repeats", 1]
    each = max(5.0, seconds / len(groups) - START)
    return [
        module(
            "benchmarks.kernels", "--rows", rows, *flags, "--seconds", each, "--output", setting.work / f"kernels-{i}"
        )
        for i, rows in enumerate(groups)
    ]


def read_kernels(setting: Setting) -> Tables:
    """All tables and the targets; also writes the CSV files and the picture of all groups."""
    rows: list[Row] = []
    memory: list[MemoryRow] = []
    line = ""
    for folder in sorted(path for path in setting.work.glob("kernels-*") if path.is_dir()):
        more, more_memory, at = kernel_report.read(folder, setting.device)
        rows, memory, line = rows + more, memory + more_memory, at or line
    if not rows and not memory:
        return {}
    kernel_report.write(rows, memory, setting.out, setting.device, line)
    kernel_report.draw(rows, memory, setting.out / f"kernels-{setting.device}.png", line)
    tables: Tables = {
        "targets": [_verdict(target, rows, setting.device) for target in TARGETS if target.device == setting.device]
    }
    for group in kernel_report.grouped(rows):
        tables[f"{group[0].op}: {group[0].setting}"] = [
            _contender(name, list(own)) for name, own in groupby(group, lambda row: row.contender)
        ]
    if memory:
        tables["memory: extra MB"] = [
            {"tokens": tokens} | {row.contender: row.extra_bytes / 1e6 for row in own}
            for tokens, own in groupby(memory, lambda row: row.tokens)
        ]
    return tables


def _verdict(target: Any, rows: Sequence[Row], device: str) -> Line:
    measured, verdict, between = judge(target, rows, device)
    return {
        "target": target.what,
        "measured": measured,
        "goal": target.bound(target.goal),
        "verdict": verdict,
        "between": between,
    }


def _contender(name: str, rows: list[Row]) -> Line:
    by_part = {row.part: row for row in rows}
    line: Line = {"contender": name}
    line |= {f"{part} ms": 1e3 * by_part[part].p50 if part in by_part and by_part[part].p50 else None for part in LAPS}
    extra = rows[-1].extra_bytes
    return line | {"extra MB": None if extra is None else extra / 1e6, "figure": rows[-1].figure, "note": rows[-1].note}


def train(setting: Setting, seconds: float) -> list[list[str]]:
    """The quickstart's step, and on a GPU that of the 125m preset under a teacher of StarCoder2-3B's shape."""
    common = ["--config", ROOT / "configs/quickstart.yaml", "--teacher", setting.teacher, "--device", setting.device]
    if setting.tiny:
        return [module("benchmarks.train_step", "--json", "--repeats", 1, "--", *common, *_tiny_run())]
    compiled = "both" if setting.device == "cuda" else "no"
    own = ["--json", "--repeats", 10, "--compile", compiled]
    if setting.device == "cpu":
        return [module("benchmarks.train_step", *own, "--precision", "both", "--seconds", seconds / 2, "--", *common)]
    large = ["--student.preset", "125m", "--student.init", "random", "--packing.seq_len", 1024, "--batch_size", 16]
    each = seconds / 4
    return [
        module(
            "benchmarks.train_step", *own, "--seconds", each, "--random_teacher", "starcoder2-3b", "--", *common, *large
        ),
        module("benchmarks.train_step", *own, "--seconds", each, "--", *common, "--batch_size", 32),
    ]


def _tiny_run() -> list[object]:
    text = Path(json.__file__).parent
    small = ["--student.preset", "nano", "--student.init", "random", "--packing.seq_len", 32, "--batch_size", 2]
    return [*small, "--data", text, "--packing.heldout", 0.3, "--max_rows", 8, "--eval_rows", 2, "--precision", "fp32"]


def decoding(setting: Setting, seconds: float) -> list[list[str]]:
    """The presets."""
    sizes = ["--presets", "nano", "--vocab", 600] if setting.tiny else []
    return [module("benchmarks.decoding", "--device", setting.device, "--json", *sizes)]


def distil(setting: Setting, seconds: float) -> list[list[str]]:
    """The quickstart's student on all of the text, evaluated once, at the end."""
    flags: list[object] = ["--config", ROOT / "configs/quickstart.yaml", "--teacher", setting.teacher]
    flags += ["--device", setting.device, "--output_dir", setting.work / "run"]
    seldom = ["--eval_every", 1_000_000, "--checkpoint_every", 1_000_000]
    if setting.tiny:
        length: list[object] = [
            *_tiny_run(),
            "--minutes",
            "null",
            "--steps",
            4,
            "--log_every",
            1,
            "--tracker",
            "none",
            *seldom,
        ]
    else:
        minutes = min(2.0, max(0.2, (seconds - 3 * START) / 60))
        length = ["--minutes", f"{minutes:.2f}", "--batch_size", 32, "--max_rows", "null", *seldom]
    return [[sys.executable, str(ROOT / "train.py"), *map(str, [*flags, *length])]]


def curve(setting: Setting) -> list[Line]:
    """The rows of metrics.jsonl."""
    path = setting.work / "run" / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def read_distil(setting: Setting) -> Tables:
    """The last of every number."""
    last = {name: value for row in curve(setting) for name, value in row.items()}
    return {"the last row of metrics.jsonl": [{"name": name, "value": value} for name, value in last.items()]}


def evaluate(setting: Setting, seconds: float) -> list[list[str]]:
    """The student that the part before made, beside its teacher."""
    run = setting.work / "run"
    if not (run / "config.yaml").exists():
        raise NotReadyError("needs the run that the part `distil` makes")
    models = f"{run},teacher:{setting.teacher}"
    rows = 2 if setting.tiny else 64
    flags = ["--fidelity", "--latency", "--eval_rows", rows, "--batch_size", min(rows, 32), "--device", setting.device]
    command = [ROOT / "evaluate.py", "--model", models, *flags, "--output_dir", setting.work / "eval"]
    return [[sys.executable, *map(str, command)]]


def read_evaluate(setting: Setting) -> Tables:
    """A row per metric, a column per model."""
    path = setting.work / "eval" / "results.json"
    models = json.loads(path.read_text())["models"] if path.exists() else {}
    names = list(dict.fromkeys(name for model in models.values() for name in model["metrics"]))
    lines = [{"metric": m} | {name: model["metrics"].get(m) for name, model in models.items()} for m in names]
    return {"results.json": lines}


PARTS = {
    "environment": Part("What is here, and what the device can do at most", 15, 35, environment, read_environment),
    "teacher": Part(
        "A teacher: the embedded one, or random weights of its shape", 25, 60, teacher, rows_of("teacher", "teacher")
    ),
    "tests": Part("The kernels' tests on this device", 45, 90, tests, read_tests),
    "kernels": Part("Every kernel beside its peers", 60, 100, kernels, read_kernels),
    "train": Part("A training step and its parts", 45, 75, train, rows_of("train", "steps")),
    "decoding": Part("Students that decode", 15, 30, decoding, rows_of("decoding", "decoding")),
    "distil": Part("The quickstart's student, distilled for two minutes", 130, 165, distil, read_distil),
    "evaluate": Part("That student beside its teacher", 20, 45, evaluate, read_evaluate),
}
