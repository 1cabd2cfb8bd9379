"""Results as a file for programs and a table for people."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass
class Measured:
    """One model's metrics, plain numbers by name, and the intervals of those that have one."""

    metrics: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)


# name, title, how to write it; a metric that nobody measured gets no row
ROWS = (
    ("size/parameters", "parameters", "{:,.0f}"),
    ("size/bytes", "bytes of weights", "{:,.0f}"),
    ("perplexity/loss", "held-out loss (nats)", "{:.3f}"),
    ("perplexity/perplexity", "perplexity", "{:,.2f}"),
    ("fidelity/kl", "KL from teacher (nats)", "{:.3f}"),
    ("fidelity/agreement", "top-1 agreement", "{:.1%}"),
    ("fidelity/acceptance", "acceptance Σmin(p,q)", "{:.1%}"),
    ("latency/prompt_ms", "prompt of 128 tokens (ms)", "{:.1f}"),
    ("latency/token_ms_p50", "per token p50 (ms)", "{:.1f}"),
    ("latency/token_ms_p95", "per token p95 (ms)", "{:.1f}"),
    ("latency/tokens_per_s", "tokens/s", "{:.1f}"),
)


def write_results(path: Path, models: Mapping[str, Measured], settings: Mapping[str, Any]) -> None:
    """`{"models": {NAME: {"metrics": …, "intervals": …}}, "settings": …}`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "models": {name: {"metrics": m.metrics, "intervals": m.intervals} for name, m in models.items()},
        "settings": dict(settings),
    }
    path.write_text(json.dumps(content, indent=2) + "\n")


def show(models: Mapping[str, Measured]) -> None:
    """The models side by side."""
    table = Table()
    table.add_column("")
    for name in models:
        table.add_column(name, justify="right")
    benchmarks = sorted({name for m in models.values() for name in m.metrics if "/pass@" in name})
    for name, title, form in (*((name, name, "{:.1%}") for name in benchmarks), *ROWS):
        if any(name in measured.metrics for measured in models.values()):
            table.add_row(title, *(_cell(measured, name, form) for measured in models.values()))
    Console(highlight=False).print(table)


def _cell(measured: Measured, name: str, form: str) -> str:
    if name not in measured.metrics:
        return ""
    text = form.format(measured.metrics[name])
    if name in measured.intervals:
        low, high = measured.intervals[name]
        text += f" [dim]({form.format(low)}–{form.format(high)})[/dim]"
    return text
