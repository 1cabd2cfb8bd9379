"""What `benchmarks.kernels` measured: as tables, beside the targets, as CSV and as a picture."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.kernel_targets import PARTS, TARGETS, MemoryRow, Row, judge

PACKAGES = {"torch": "torch", "triton": "triton", "liger": "liger-kernel"}


def targets_table(rows: Sequence[Row], device: str) -> str:
    """Every target with what was measured."""
    lines = [("target", "measured", "target", "stretch", "verdict", "our fastest : best of the peers")]
    for target in TARGETS:
        measured, verdict, between = judge(target, rows, device)
        name = f"{'GPU' if target.device == 'cuda' else 'CPU'}: {target.what}"
        lines.append((name, measured, target.bound(target.goal), target.bound(target.stretch), verdict, between))
    return "Targets: ratios of p50 and of memory in one process\n" + aligned(lines)


def show(rows: Sequence[Row] | Sequence[MemoryRow]) -> str:
    """A table of either kind."""
    return memory_table(rows) if rows and isinstance(rows[0], MemoryRow) else table(rows)  # type: ignore[arg-type]


def table(rows: Sequence[Row]) -> str:
    """One op at one setting."""
    fastest = min(
        (row.p50 for row in rows if row.contender.startswith("ours") and row.p50 and last(row, rows)), default=0
    )
    head = ("contender", *(f"{part} ms" for part in PARTS), "p20–p80 ms", "/ ours", "extra MB", "figure", "")
    lines = [head]
    for name, mine in groupby(rows, lambda row: row.contender):
        by_part = {row.part: row for row in mine}
        whole = list(by_part.values())[-1]
        lines.append((
            name,
            *(ms(by_part[part].p50) if part in by_part else "" for part in PARTS),
            f"{ms(whole.p20)}–{ms(whole.p80)}" if whole.p20 is not None else "",
            f"{whole.p50 / fastest:.2f}" if whole.p50 and fastest else "",
            "" if whole.extra_bytes is None else f"{whole.extra_bytes / 1e6:,.0f}",
            "" if whole.figure is None else f"{whole.figure:.3g}",
            whole.note,
        ))  # fmt: skip
    return f"{rows[0].op}: {rows[0].setting}\n{aligned(lines)}\n" if rows else ""


def last(row: Row, rows: Iterable[Row]) -> bool:
    """Whether this is the contender's whole: of its parts the last."""
    return [other.part for other in rows if other.contender == row.contender][-1] == row.part


def ms(seconds: float | None) -> str:
    """Seconds in milliseconds, with three or four digits."""
    return "" if seconds is None else f"{seconds * 1e3:.{0 if seconds >= 1 else 1 if seconds >= 0.01 else 3}f}"


def memory_table(rows: Sequence[MemoryRow]) -> str:
    """Extra memory by number of tokens, a column per contender."""
    if not rows:
        return ""
    names = list(dict.fromkeys(row.contender for row in rows))
    lines = [("tokens N", *names, "hidden states N·D")]
    for tokens, found in groupby(rows, lambda row: row.tokens):
        own = {row.contender: row for row in found}
        cells = [f"{own[name].extra_bytes / 1e6:,.0f}" if name in own else "" for name in names]
        lines.append((f"{tokens:,}", *cells, f"{next(iter(own.values())).hidden_bytes / 1e6:,.0f}"))
    return f"memory: V={rows[0].vocab} D={rows[0].student}, extra MB of forward and backward\n{aligned(lines)}\n"


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Columns of text, the first to the left and numbers to the right."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    words = {0} | {column for column, cell in enumerate(lines[0]) if cell in LEFT}
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in words else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


LEFT = ("", "verdict", "our fastest : best of the peers")


def grouped(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows of each table."""
    return [list(group) for _, group in groupby(rows, lambda row: (row.op, row.setting))]


def installed(package: str) -> str:
    """Its version, or nothing."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def write(rows: Sequence[Row], memory: Sequence[MemoryRow], out: Path, device: str, line: str) -> None:
    """`kernels-<device>.csv` and `kernels-memory-<device>.csv`."""
    out.mkdir(parents=True, exist_ok=True)
    stamp = {"device": line, "date": date.today().isoformat()} | {k: installed(v) for k, v in PACKAGES.items()}
    for name, found in (("kernels", rows), ("kernels-memory", memory)):
        if found:
            with (out / f"{name}-{device}.csv").open("w", newline="") as file:
                lines = [asdict(row) | stamp for row in found]
                writer = csv.DictWriter(file, lines[0], lineterminator="\n")
                writer.writeheader()
                writer.writerows(lines)


def read(out: Path, device: str) -> tuple[list[Row], list[MemoryRow], str]:
    """What `write` wrote, and the device it was measured on."""
    found: list[list[Any]] = []
    line = ""
    for name, kind in (("kernels", Row), ("kernels-memory", MemoryRow)):
        path = out / f"{name}-{device}.csv"
        lines = list(csv.DictReader(path.open())) if path.exists() else []
        line = line or (lines[0]["device"] if lines else "")
        found.append([kind(**{f.name: parsed(cells[f.name], f.type) for f in fields(kind)}) for cells in lines])
    return found[0], found[1], line


def parsed(cell: str, kind: Any) -> Any:
    """A cell of the CSV as the field's type."""
    if kind is str:
        return cell
    if kind is int:
        return int(cell)
    return float(cell) if cell else None


CHARTED = ("loss", "attention", "rope")
COLOURS = {"ours": "#2a5d8f", "its four": "#d98c3f"}
"""By how a name starts; everybody else is grey."""


def draw(rows: Sequence[Row], memory: Sequence[MemoryRow], path: Path, line: str) -> str:
    """Bars of time and extra memory for each table of the loss and of attention; below, memory by tokens.

    Says what it wrote, or why it could not.
    """
    try:
        import matplotlib
    except ImportError as error:
        return f"no picture: {error}; elsewhere --redraw draws it from the CSV"
    matplotlib.use("Agg")
    from matplotlib import pyplot

    tables = [[row for row in group if last(row, group) and not row.note] for group in grouped(rows)]
    tables = [group for group in tables if group and group[0].op in CHARTED]
    heights = [0.9 + 0.26 * len(group) for group in tables] + ([3.0] if memory else [])
    if not heights:
        return "no picture: nothing to draw"
    size = (11, sum(heights) + 0.9)
    figure, charts = pyplot.subplots(len(heights), 2, figsize=size, squeeze=False, height_ratios=heights)
    for (left, right), group in zip(charts, tables, strict=False):
        time_chart(left, group)
        memory_chart(right, group)
    if memory:
        growth_chart(charts[-1][0], memory)
        growth_chart(charts[-1][1], [row for row in memory if row.contender.startswith("ours")])
    figure.suptitle(line, fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return f"wrote {path}"


def time_chart(chart: Any, rows: Sequence[Row]) -> None:
    """p50 with p20 and p80, in milliseconds."""
    times = np.array([[1e3 * (seconds or 0) for seconds in (row.p20, row.p50, row.p80)] for row in rows]).T
    whole = rows[0].part
    bars(chart, rows, times[1], times[2], f"{rows[0].op}, {rows[0].setting}\n{whole}, ms: p50 (p20–p80)")
    chart.errorbar(times[1], range(len(rows)), xerr=np.abs(times[::2] - times[1]), fmt="none", ecolor="black")
    names = [row.contender if row.part == whole else f"{row.contender} ({row.part} alone)" for row in rows]
    chart.set_yticks(range(len(rows)), names, fontsize=8)


def memory_chart(chart: Any, rows: Sequence[Row]) -> None:
    """Extra memory in megabytes."""
    values = np.array([(row.extra_bytes or 0) / 1e6 for row in rows])
    bars(chart, rows, values, values, "extra memory, MB")
    chart.set_yticks([])


def bars(chart: Any, rows: Sequence[Row], values: np.ndarray, ends: np.ndarray, title: str) -> None:
    """One bar per contender, from above; its number stands where its error bar ends."""
    colours = [next((c for start, c in COLOURS.items() if r.contender.startswith(start)), "#b9b9b9") for r in rows]
    chart.barh(range(len(rows)), values, color=colours)
    for place, (value, end) in enumerate(zip(values, ends, strict=True)):
        text = f"  {value:,.0f}" if value >= 100 else f"  {value:.3g}"
        chart.text(max(value, end), place, text, va="center", fontsize=7)
    chart.set_xlim(0, 1.12 * max(*ends, 1e-9))
    chart.invert_yaxis()
    chart.set_title(title, fontsize=9, loc="left")
    chart.grid(axis="x", alpha=0.3)


def growth_chart(chart: Any, rows: Sequence[MemoryRow]) -> None:
    """Extra memory by tokens, beside what must grow with them."""
    for name in dict.fromkeys(row.contender for row in rows):
        own = [row for row in rows if row.contender == name]
        chart.plot([row.tokens for row in own], [row.extra_bytes / 1e6 for row in own], marker="o", label=name)
    tokens, hidden = zip(*sorted({(row.tokens, row.hidden_bytes / 1e6) for row in rows}), strict=True)
    chart.plot(tokens, hidden, color="grey", ls=":", label="hidden states, N·D")
    chart.set(xlabel="tokens N", xlim=(0, None), ylim=(0, None))
    chart.locator_params(axis="x", nbins=5)  # their numbers would run into each other
    chart.set_title(f"memory, V={rows[0].vocab} D={rows[0].student}: extra MB", fontsize=9, loc="left")
    chart.legend(fontsize=7)
    chart.grid(alpha=0.3)
