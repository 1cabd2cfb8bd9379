"""The first hour on a device in one command of eight minutes: `python -m benchmarks.device`.

Tests, every kernel beside its peers, a training step and its parts, decoding, and a student distilled and scored: each
part in processes of its own, with a time limit and a log, so that what fails costs itself alone. The page, one CSV
file, one picture and one log are written after every part: a run that is killed leaves what was done.
"""

import argparse
import importlib.metadata
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks import device_page, device_setup
from benchmarks.device_page import Outcome
from benchmarks.device_parts import PARTS, ROOT, NotReadyError, Part, Setting, Tables
from benchmarks.kernel_report import aligned

MINUTES = 8.0
"""What the seconds of a part refer to."""
GRACE = 8.0
"""Seconds that a process has to write what it found, once it is told to end."""
PACKAGES = ("torch", "triton", "transformers", "tokenizers", "numpy", "jsonargparse", "liger-kernel")


def limits(part: Part, rest: Sequence[Part], left: float, scale: float) -> float:
    """Seconds for a part: no more than its own, and what comes later keeps its least."""
    return min(part.most * scale, left - sum(later.least for later in rest) * scale)


def run_part(name: str, setting: Setting, limit: float, env: Mapping[str, str]) -> Outcome:
    """Runs a part's commands and reads what they left; never raises for what goes wrong in it."""
    part, started = PARTS[name], time.monotonic()
    found = Outcome("passed", limit=limit)
    try:
        commands = part.commands(setting, limit)
    except NotReadyError as error:
        return Outcome("skipped", limit=limit, reason=str(error))
    for place, command in enumerate(commands):
        left = (limit - (time.monotonic() - started)) / (len(commands) - place)
        status, log = run(command, setting.work / f"{name}-{place}", left, env)
        found.log += log
        if status:
            found.status, found.reason = "failed", f"{found.reason} {status}".strip()
    try:
        found.tables = without(part.read(setting), f"{setting.work}{os.sep}")
    except Exception as error:  # half a file, or one of another form
        found.status, found.reason = "failed", f"what it left cannot be read: {type(error).__name__}: {error}"
    found.seconds = time.monotonic() - started
    return found


def without(tables: Tables, prefix: str) -> Tables:
    """The tables with their paths cut short: the folder is gone when they are read."""

    def short(value: Any) -> Any:
        return value.replace(prefix, "") if isinstance(value, str) else value

    return {title: [{short(k): short(v) for k, v in row.items()} for row in rows] for title, rows in tables.items()}


def run(command: Sequence[str], to: Path, limit: float, env: Mapping[str, str]) -> tuple[str, str]:
    """What went wrong with a command, "" for nothing, and what it printed; its stdout also lies at `to`.out."""
    shown = " ".join(command).replace(str(ROOT) + os.sep, "").replace(sys.executable, "python")
    with to.with_suffix(".out").open("w") as out, to.with_suffix(".err").open("w") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, env=env, cwd=ROOT, start_new_session=True)
        status = ""
        try:
            process.wait(max(0.1, limit - min(GRACE, limit / 5)))
        except subprocess.TimeoutExpired:
            status = f"out of time after {limit:.0f} s"
        finally:
            end(process)
    if not status and process.returncode:
        status = f"exit code {process.returncode}"
    printed = to.with_suffix(".out").read_text(errors="replace") + to.with_suffix(".err").read_text(errors="replace")
    return status, f"$ {shown}\n{printed}\n"


def end(process: "subprocess.Popen[bytes]") -> None:
    """Ends a process and all that it started: it is asked first, and has time to write what it found."""
    for number, patience in ((signal.SIGINT, GRACE), (signal.SIGKILL, GRACE)):
        try:
            if process.poll() is None:
                os.killpg(process.pid, number)
                process.wait(patience)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def chip(device: str) -> str:
    """The device's name, of the processor where it is the CPU."""
    if device == "cpu":
        lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
        return next((line.split(":")[1].strip() for line in lines if "model name" in line), "cpu")
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout.splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return device


def versions() -> str:
    """Python and the packages that matter."""
    found = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "–"
    return ", ".join(f"{name} {version}" for name, version in found.items())


def environment(site: Path, setting: Setting) -> dict[str, str]:
    """That of every command: what was unpacked is found, and caches go where nobody keeps them."""
    path = os.pathsep.join([str(site), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    more = {"TUTELAGE_CACHE": str(setting.work / "cache"), "PYTHONUNBUFFERED": "1"}
    return {**more, **os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser("benchmarks.device", description=__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/device-<its name>-<date>")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="for everything (default: %(default)g)")
    parser.add_argument("--parts", default=",".join(PARTS), help="of %(default)s")
    parser.add_argument("--wheels", type=Path, default=ROOT / ".whl", help="folder of what is not installed here")
    parser.add_argument("--tiny", action="store_true", help="sizes that say nothing: does it run?")
    found = parser.parse_args(argv)
    found.parts = [name for name in PARTS if name in found.parts.split(",")]
    if unknown := set(parser.parse_args(argv).parts.split(",")) - set(PARTS):
        parser.error(f"--parts {', '.join(sorted(unknown))}: choose from {', '.join(PARTS)}")
    if not found.minutes > 0:
        parser.error(f"--minutes {found.minutes:g}: must be more than 0")
    return found


def main(argv: Sequence[str]) -> int:
    """Runs the parts; 0 where all passed, 1 where one did not, 130 where somebody ended it."""
    args, started = arguments(argv), time.monotonic()
    name = chip(args.device)
    slug = re.sub(r"[^a-z0-9]+", "-", name.split(",")[0].lower()).strip("-")
    out = (args.output or ROOT / "benchmarks" / "results" / f"device-{slug}-{date.today().isoformat()}").resolve()
    out.mkdir(parents=True, exist_ok=True)
    before = signal.signal(signal.SIGTERM, _interrupt)
    with tempfile.TemporaryDirectory(prefix="tutelage-device-", ignore_cleanup_errors=True) as work:
        setting, site = Setting(args.device, args.tiny, out, Path(work)), Path(work) / "site"
        brought = device_setup.unpack(args.wheels, site)
        head = [f"{name}, {date.today().isoformat()}", versions(), f"brought along: {', '.join(brought) or 'nothing'}"]
        head += ["tiny sizes: the figures say nothing"] if args.tiny else []
        outcomes = {name: Outcome() for name in args.parts}
        try:
            code = everything(args, setting, outcomes, environment(site, setting), head, started)
        finally:
            signal.signal(signal.SIGTERM, before)
    rows = [tuple(map(device_page.cell, row.values())) for row in device_page.summary(outcomes)]
    print("\n" + aligned([("part", "result", "seconds", "limit", "why"), *rows]))
    print(out / "README.md")
    return code


def everything(
    args: argparse.Namespace,
    setting: Setting,
    outcomes: dict[str, Outcome],
    env: Mapping[str, str],
    head: Sequence[str],
    started: float,
) -> int:
    """Runs part after part and writes the page after each; returns the exit code."""
    scale, names = args.minutes / MINUTES, args.parts
    device_page.write(outcomes, setting, head)
    for place, name in enumerate(names):
        part, left = PARTS[name], 60 * args.minutes - (time.monotonic() - started)
        limit = limits(part, [PARTS[later] for later in names[place + 1 :]], left, scale)
        try:
            if limit < part.least * scale / 3:
                outcomes[name] = Outcome("skipped", limit=limit, reason="no time left")
            else:
                outcomes[name] = run_part(name, setting, limit, env)
        except KeyboardInterrupt:
            outcomes[name] = Outcome("failed", limit=limit, reason="interrupted")
            device_page.write(outcomes, setting, head)
            return 130
        metrics = setting.work / "run" / "metrics.jsonl"
        if metrics.exists():
            shutil.copy(metrics, setting.out / "metrics.jsonl")
        device_page.write(outcomes, setting, head)
        print(f"{name}: {outcomes[name].status}, {outcomes[name].seconds:.0f} s {outcomes[name].reason}", flush=True)
    return 0 if all(found.passed for found in outcomes.values()) else 1


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
