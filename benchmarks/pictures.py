"""The pictures in `docs/`: a real run on a real terminal and in a real browser: `python -m benchmarks.pictures`.

Needs tmux and Chromium (Debian: `apt-get install tmux chromium`). With `--run DIR` only the pages of that run are made.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from shutil import which
from typing import Any

from rich.console import Console
from rich.text import Text

from tutelage import cli
from tutelage.errors import UserError

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
SCREEN = (110, 24)
TAGS = "train/(ce|kl)|eval/(loss|kl|agreement|acceptance)"


@dataclass(frozen=True)
class Options:
    """What to show."""

    run: str | None = None
    """A run to show in TensorBoard (default: one made for it)."""
    steps: int = 36
    """Steps of the run that is made."""
    out: str = "docs"
    """Where the pictures go."""


@contextmanager
def tensorboard(logdir: Path) -> Iterator[str]:
    """TensorBoard serving `logdir` to this machine alone; gives its address."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), "--host", "127.0.0.1", "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert server.stdout is not None
    try:
        found = (re.search(r"http://127\.0\.0\.1:\d+/", line) for line in server.stdout)
        yield next(match[0] for match in found if match)
    finally:
        server.terminate()
        server.wait()


@contextmanager
def browser(width: int = 1280, height: int = 1400) -> Iterator[Any]:
    """A page of headless Chromium. Raises UserError where there is none."""
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(which, CHROMIUM)), None)
    if path is None:
        raise UserError("no Chromium here: apt-get install chromium")
    with sync_playwright() as play, play.chromium.launch(executable_path=path, args=FLAGS) as chromium:
        yield chromium.new_page(viewport={"width": width, "height": height})


def scalars(page: Any, url: str, tags: str) -> None:
    """Opens the scalars whose names match the regular expression `tags`, once they are drawn."""
    page.goto(f"{url}#timeseries")
    page.get_by_role("combobox", name="Filter tags (regex)").fill(tags)
    page.wait_for_selector("scalar-card line-chart")
    page.get_by_role("button", name="Settings").last.click()  # the panel takes the room of two charts
    page.wait_for_timeout(2000)


def samples(page: Any, url: str) -> None:
    """Opens the text samples, once they are there."""
    page.goto(f"{url}#text")
    page.wait_for_selector("tf-markdown-view pre")
    page.wait_for_timeout(1000)


def frames(command: str, steps: int) -> list[str]:
    """What a terminal shows, with its colours, at the start, in the middle and at the end of a run of `steps`."""
    if which("tmux") is None:
        raise UserError("no tmux here: apt-get install tmux")
    pane = ["tmux", "-L", f"tutelage-{os.getpid()}"]
    size = ["-x", str(SCREEN[0]), "-y", str(SCREEN[1])]
    subprocess.run([*pane, "new-session", "-d", *size, f"{command}; sleep 5"], check=True)
    wanted, seen = [f" {steps // 6}/", f" {steps // 2}/", "next "], []
    try:
        while wanted:
            shown = subprocess.run([*pane, "capture-pane", "-e", "-p"], capture_output=True, text=True, check=False)
            if shown.returncode:
                raise UserError(f"the run ended before it was seen: try {command}")
            if wanted[0] in Text.from_ansi(shown.stdout).plain:
                seen.append(shown.stdout.rstrip())
                wanted.pop(0)
            time.sleep(0.2)
    finally:
        subprocess.run([*pane, "kill-server"], capture_output=True, check=False)
    return seen


def main(argv: list[str]) -> int:
    """Writes `terminal.svg`, `tensorboard-scalars.png` and `tensorboard-samples.png`."""
    options = cli.parse(Options, argv, prog="benchmarks.pictures", description=__doc__ or "")
    out, run = Path(options.out), Path(options.run or f"runs/pictures-{os.getpid()}")
    if options.run is None:
        flags = f"--steps {options.steps} --eval_every {options.steps // 6} --output_dir {run}"
        command = f"{sys.executable} train.py --config configs/quickstart.yaml {flags}"
        console = Console(record=True, width=SCREEN[0], file=StringIO())
        for frame in frames(command, options.steps):
            console.print(Text.from_ansi(frame.strip("\n")))
            console.rule(style="dim")
        svg = console.export_svg(title="python train.py")
        # its fonts would come from other people's servers: the reader's own monospace will do
        (out / "terminal.svg").write_text(re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL))
    with tensorboard(run) as url, browser() as page:
        scalars(page, url, TAGS)
        page.screenshot(path=out / "tensorboard-scalars.png")
        samples(page, url)
        page.screenshot(path=out / "tensorboard-samples.png")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(lambda: main(sys.argv[1:])))
