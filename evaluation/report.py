"""Results as a file for programs, a table for people, and a page to show."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tutelage.evaluation.passk import Comparison, Scores, compare
from tutelage.numbers import to_json


@dataclass
class Measured:
    """One model's metrics, plain numbers by name; intervals of those that have one; and what is no number."""

    metrics: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    scores: dict[str, Scores] = field(default_factory=dict)  # by problem set
    details: dict[str, Any] = field(default_factory=dict)


# name, title, how to write it; a metric that nobody measured gets no row
ROWS = (
    ("size/parameters", "parameters", "{:,.0f}"),
    ("size/disk_bytes", "bytes on disk", "{:,.0f}"),
    ("size/bytes", "bytes of weights in memory", "{:,.0f}"),
    ("latency/working_bytes", "bytes beyond them, batch 32", "{:,.0f}"),
    ("perplexity/loss", "held-out loss (nats)", "{:.3f}"),
    ("perplexity/perplexity", "perplexity", "{:,.2f}"),
    ("perplexity/bits_per_byte", "bits per byte", "{:.3f}"),
    ("fidelity/kl", "KL from teacher (nats)", "{:.3f}"),
    ("fidelity/agreement", "top-1 agreement", "{:.1%}"),
    ("fidelity/acceptance", "acceptance Σmin(p,q)", "{:.1%}"),
    ("fidelity/calibration_error", "expected calibration error", "{:.1%}"),
    ("fidelity/calibration_error_of_teacher", "its teacher's", "{:.1%}"),
    ("latency/prompt_ms", "prompt of 128 tokens (ms)", "{:.1f}"),
    ("latency/token_ms_p50", "per token p50 (ms)", "{:.1f}"),
    ("latency/token_ms_p95", "per token p95 (ms)", "{:.1f}"),
    ("latency/tokens_per_s", "tokens/s, batch 1", "{:.1f}"),
    ("latency/tokens_per_s_batch_8", "tokens/s, batch 8", "{:.1f}"),
    ("latency/tokens_per_s_batch_32", "tokens/s, batch 32", "{:.1f}"),
)


def comparisons(models: Mapping[str, Measured], samples: int) -> list[dict[str, Any]]:
    """Each pair of models on each problem set that both were asked."""
    found = []
    for (first, a), (second, b) in combinations(models.items(), 2):
        for which in a.scores.keys() & b.scores.keys():
            told: Comparison = compare(a.scores[which], b.scores[which], samples)
            found.append({"benchmark": which, "models": [first, second], **asdict(told)})
    return found


def write_results(
    path: Path, models: Mapping[str, Measured], settings: Mapping[str, Any], compared: Sequence[Mapping[str, Any]] = ()
) -> None:
    """`{"models": {NAME: {"metrics": …, "intervals": …, "details": …}}, "comparisons": […], "settings": …}`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "models": {
            name: {"metrics": m.metrics, "intervals": m.intervals, "details": m.details} for name, m in models.items()
        },
        "comparisons": list(compared),
        "settings": dict(settings),
    }
    path.write_text(to_json(content, indent=2) + "\n", encoding="utf-8")


def table(models: Mapping[str, Measured]) -> Iterator[list[str]]:
    """A row per metric that some model has: its title, then a cell per model."""
    benchmarks = sorted({name for m in models.values() for name in m.metrics if "/pass@" in name})
    for name, title, form in (*((name, name, "{:.1%}") for name in benchmarks), *ROWS):
        if any(name in measured.metrics for measured in models.values()):
            yield [title, *(_cell(measured, name, form) for measured in models.values())]


def show(models: Mapping[str, Measured], compared: Sequence[Mapping[str, Any]] = ()) -> None:
    """The models side by side."""
    shown = Table()
    shown.add_column("")
    for name in models:
        shown.add_column(name, justify="right")
    for title, *cells in table(models):
        shown.add_row(title, *cells)
    console = Console(highlight=False)
    console.print(shown, *map(in_words, compared), sep="\n")


def in_words(compared: Mapping[str, Any]) -> str:
    """One comparison as a sentence."""
    first, second = compared["models"]
    low, high = compared["interval"]
    return (
        f"{compared['benchmark']} pass@1: {first} − {second} = {100 * compared['difference']:+.1f} points"
        f" (95 %: {100 * low:+.1f} to {100 * high:+.1f}, p = {compared['p_value']:.2g})"
    )


def _cell(measured: Measured, name: str, form: str) -> str:
    if name not in measured.metrics:
        return ""
    value = measured.metrics[name]
    text = form.format(value) if abs(value) < 1e12 else f"{value:.3g}"  # the perplexity of a model that diverged
    if name in measured.intervals:
        low, high = measured.intervals[name]
        text += f" ({form.format(low)}–{form.format(high)})"
    return text
