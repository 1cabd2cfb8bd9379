"""The screen."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from tutelage.training import display as module
from tutelage.training.display import Display, summary

ROW = {
    "train/loss": 1.2345, "train/ce": 2.5, "train/kl": 0.5, "perf/tokens_per_s": 12345.0, "perf/seconds_per_step": 2.0,
    "perf/mean_tokens_per_s": 678.0,
}  # fmt: skip


def test_plain_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with Display(10, 0) as display:
        display.show(4, ROW)
        display.say("[bold]x[/bold] [/nothing]")
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "step 4/10  loss 1.234  ce 2.500  kl 0.500  12,345 tokens/s  left 12 s",
        "[bold]x[/bold] [/nothing]",
    ]


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(module.sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(module, "Console", lambda **_: Console(file=screen, force_terminal=True, width=120))
    with Display(10, 3) as display:
        display.show(4, ROW)
        display.bar.refresh()
        assert not display.bar.disable
        display.say("a line of its own")
    shown = screen.getvalue()
    assert "4/10" in shown
    assert "loss 1.234" in shown
    assert "━" in shown
    assert "a line of its own" in shown
    assert "step 4/10  loss" not in shown  # no plain line besides


def test_whatever_losses_there_are_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    rest = {"train/grad_norm": 9.0, "train/lr": 9.0, "train/perplexity": 9.0}
    with Display(10, 0) as display:
        display.show(
            1, {"train/loss": 1.0, "train/tvd": 0.25, **rest, "perf/tokens_per_s": 1.0, "perf/seconds_per_step": 1.0}
        )
    assert capsys.readouterr().out.startswith("step 1/10  loss 1.000  tvd 0.250  1 tokens/s")


def test_the_summary_names_the_run_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    run = Path("runs/[red]odd[/x]")
    sizes = {"size/student": 1000.0, "size/teacher": 2000.0}
    scores = {f"eval/{name}": 1.0 for name in ("loss", "reference_loss", "unigram_loss", "agreement", "acceptance")}
    summary(run, 10, {**ROW, **sizes, **scores})
    shown = capsys.readouterr().out
    assert shown.count(str(run)) == 3
    assert "student" in shown
    assert "unigram" in shown
    assert "678" in shown
    assert all(heading in shown for heading in ("nats/token", "acceptance", "tokens/s"))  # whole, in 80 columns
    summary(Path("runs/x"), 3, {})  # an interrupted run has no scores
    assert "step 3" in capsys.readouterr().out
