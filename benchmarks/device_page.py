"""What `benchmarks.device` found: one page, one CSV file, one picture and one log, written anew after every part."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.device_parts import PARTS, Line, Setting, Tables, curve

TAIL = 15
"""Lines of its log that the page shows of a part that did not pass."""
LABEL = {"train": "Parts of a step", "decoding": "Tokens/s", "distil": "Training loss"}


@dataclass
class Outcome:
    """How a part went."""

    status: str = "not yet"
    seconds: float = 0.0
    limit: float = 0.0
    reason: str = ""
    log: str = ""
    tables: Tables = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether nothing went wrong."""
        return self.status == "passed"


def summary(outcomes: Mapping[str, Outcome]) -> list[Line]:
    """A row per part."""
    return [
        {"part": name, "result": found.status, "seconds": found.seconds, "limit": found.limit, "why": found.reason}
        for name, found in outcomes.items()
    ]


def write(outcomes: Mapping[str, Outcome], setting: Setting, head: Sequence[str]) -> Path:
    """Writes everything; returns the page's path."""
    out = setting.out
    (out / "log.txt").write_text("".join(f"===== {name} =====\n{found.log}\n" for name, found in outcomes.items()))
    write_csv(outcomes, out / "device.csv")
    drawn = draw(outcomes, setting, out / "device.png")
    sections = ["# A device, measured", "\n".join(f"- {line}" for line in head), markdown(summary(outcomes))]
    if drawn:
        sections.append("![A step's parts, decoding, training loss](device.png)")
    for name, found in outcomes.items():
        sections += section(name, found, out, setting.device)
    sections.append("All numbers: `device.csv`, `kernels-*.csv`, `metrics.jsonl`. What was printed: `log.txt`.")
    page = out / "README.md"
    page.write_text("\n\n".join(sections) + "\n")
    return page


def section(name: str, found: Outcome, out: Path, device: str) -> list[str]:
    """A part: its result, the end of its log where it did not pass, its tables, its picture."""
    lines = [f"## {PARTS[name].title}", f"`{name}`: {found.status}, {found.seconds:.0f} s {found.reason}".rstrip()]
    if not found.passed and found.log.strip():
        tail = "\n".join(line[:300] for line in found.log.strip().splitlines()[-TAIL:])
        lines.append(f"````text\n{tail}\n````")
    for title, rows in found.tables.items():
        if rows:
            lines += [f"**{title}**", markdown(rows)]
    if name == "kernels" and (out / f"kernels-{device}.png").exists():
        lines.append(f"![Time and memory by kernel](kernels-{device}.png)")
    return lines


def markdown(rows: Sequence[Line]) -> str:
    """A table; numbers to the right, four digits."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    numbers = [any(isinstance(row.get(name), int | float) for row in rows) for name in names]
    lines = [names, ["---:" if number else "---" for number in numbers]]
    lines += [[cell(row.get(name)) for name in names] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(value: Any) -> str:
    """A value in a table."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    return " ".join(str(value).split()).replace("|", "\\|")


def write_csv(outcomes: Mapping[str, Outcome], path: Path) -> None:
    """A line per number: part, table, row (its first cell), column, value."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["part", "table", "row", "column", "value"])
        for name, found in outcomes.items():
            for title, rows in {"": summary({name: found}), **found.tables}.items():
                for row in rows:
                    key, *columns = row
                    writer.writerows([name, title, row[key], column, row[column]] for column in columns)


def draw(outcomes: Mapping[str, Outcome], setting: Setting, path: Path) -> bool:
    """The shares of a step, tokens/s by batch, and the training loss, as far as they are there; tells if any is."""
    steps = [row for row in outcomes["train"].tables.get("steps", []) if "step s" in row] if "train" in outcomes else []
    decoded = outcomes["decoding"].tables.get("decoding", []) if "decoding" in outcomes else []
    losses = [(row["step"], row["train/loss"]) for row in curve(setting) if "train/loss" in row]
    if not (steps or decoded or losses):
        return False
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, charts = pyplot.subplots(1, 3, figsize=(15, 4))
    _steps(charts[0], steps)
    for row in decoded:
        batches = {int(name.split()[-1]): value for name, value in row.items() if name.startswith("tokens/s")}
        charts[1].plot(list(batches), list(batches.values()), marker="o", label=row["preset"])
    if losses:
        charts[2].plot(*zip(*losses, strict=True))
    for chart, title, x in zip(charts, LABEL.values(), ("% of a step", "batch", "step"), strict=True):
        chart.set_title(title, fontsize=10, loc="left")
        chart.set_xlabel(x)
        chart.grid(alpha=0.3)
        if chart.get_legend_handles_labels()[0]:
            chart.legend(fontsize=7, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.14), frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
    return True


def _steps(chart: Any, rows: Sequence[Line]) -> None:
    """A bar for each case, of its parts one after the other."""
    names = [f"{row['student'] / 1e6:.3g}M under\n{str(row['teacher'])[-28:]}\n{row['case']}" for row in rows]
    left = [0.0] * len(rows)
    for part in [name for name in rows[0] if name.endswith(" %")] if rows else ():
        widths = [row[part] for row in rows]
        chart.barh(range(len(rows)), widths, left=left, label=part.removesuffix(" %"))
        left = [start + width for start, width in zip(left, widths, strict=True)]
    chart.set_yticks(range(len(rows)), names, fontsize=7)
