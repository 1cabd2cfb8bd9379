"""Progress on the screen: a bar on a terminal, plain lines elsewhere."""

import sys
from collections.abc import Mapping
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from tutelage.numbers import perplexity

NOT_LOSSES = ("train/grad_norm", "train/perplexity", "train/lr")


class Display:
    """A context that shows each logged step; `say` prints a line without breaking the bar."""

    def __init__(self, steps: int, done: int) -> None:
        self.console = Console(stderr=False, highlight=False)
        self.steps = steps
        self.bar = Progress(
            TextColumn("[bold]step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.fields[line]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            speed_estimate_period=600,  # a row may come once a minute
            disable=not sys.stdout.isatty(),
        )
        self.task = self.bar.add_task("train", total=steps, completed=done, line="")

    def __enter__(self) -> "Display":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def show(self, step: int, metrics: Mapping[str, float]) -> None:
        """The newest row of metrics."""
        losses = [key for key in metrics if key.startswith("train/") and key not in NOT_LOSSES]
        line = "  ".join(f"{key.removeprefix('train/')} {metrics[key]:.3f}" for key in losses)
        line += f"  {metrics['perf/tokens_per_s']:,.0f} tokens/s"
        self.bar.update(self.task, completed=step, line=line)
        if self.bar.disable:
            left = (self.steps - step) * metrics["perf/seconds_per_step"]
            self.say(f"step {step}/{self.steps}  {line}  left {left:,.0f} s")

    def begin(self, step: int, seconds: float) -> None:
        """After the first step, whose time tells how long the rest will take."""
        self.bar.update(self.task, completed=step)
        self.say(
            f"step {step}/{self.steps} took {seconds:,.1f} s: about {_duration((self.steps - step) * seconds)} left"
        )

    def say(self, text: str) -> None:
        """A line of its own."""
        self.console.print(text, soft_wrap=True, markup=False)


def summary(run: Path, step: int, metrics: Mapping[str, float]) -> None:
    """The end of a run: student, teacher and a unigram model on held-out text, and what to type next."""
    console = Console(highlight=False)
    if "eval/loss" in metrics:
        console.print(_scores(metrics))
    console.print(f"run   {run} (step {step})", soft_wrap=True, markup=False)
    here = Path(sys.executable).parent  # not resolved: in a virtual environment this is its bin/
    bin_ = f"{here.relative_to(Path.cwd())}/" if here.is_relative_to(Path.cwd()) else ""
    console.print(f"next  {bin_}python evaluate.py --model {run} --fidelity --latency", soft_wrap=True, markup=False)
    console.print(f"      {bin_}tensorboard --logdir {run}", soft_wrap=True, markup=False)


def _scores(metrics: Mapping[str, float]) -> Table:
    table = Table(title="held-out text", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("", "params", "nats/token", "perplexity", "agreement", "acceptance", "tokens/s"):
        table.add_column(column, justify="right" if column else "left")
    sizes = [f"{metrics[f'size/{side}'] / 1e6:.1f}M" for side in ("student", "teacher")]
    close = [f"{metrics[f'eval/{name}']:.1%}" for name in ("agreement", "acceptance")]
    losses = [metrics[f"eval/{name}"] for name in ("loss", "reference_loss", "unigram_loss")]
    rows = zip(("student", "teacher", "unigram"), [*sizes, ""], losses, strict=True)
    for name, size, loss in rows:
        own = [*close, f"{metrics['perf/mean_tokens_per_s']:,.0f}"] if name == "student" else ["", "", ""]
        table.add_row(name, size, f"{loss:.3f}", f"{perplexity(loss):,.1f}", *own)
    return table


def _duration(seconds: float) -> str:
    """In the unit that suits it."""
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:,.0f} {name}"
    return f"{seconds / 86_400:,.1f} days"
