"""What people look at: TensorBoard in a real browser, with text that a model wrote to do harm."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import pictures
from tutelage.training.samples import Sample
from tutelage.training.tracking import Tracker

HOSTILE = (
    "<script>document.title = 'owned'</script>\n![image](http://outside.invalid/a.png)\n"
    "\x1b[31mred\x1b]0;title\x07 <img src=x onerror=\"document.title = 'owned'\"> [link](javascript:alert(1))\n"
    "```\n</code></pre><script>document.title = 'owned'</script>\nreadable: return fibonacci(n - 1)"
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not any(map(pictures.which, pictures.CHROMIUM)), reason="no Chromium on this machine"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    with Tracker(folder, ["tensorboard"], 0, {"teacher": "tiny"}) as tracker:
        for step in range(1, 21):
            tracker.log(step, {"train/loss": 5 / step, "eval/acceptance": step / 40, "perf/tokens_per_s": 900.0 + step})
        tracker.log_samples(20, [Sample("def fibonacci(n):\n", HOSTILE, "    return " + "n + " * 20)])
    return folder


def test_scalars_are_drawn_and_samples_are_text_and_nothing_else(run: Path, tmp_path: Path) -> None:
    with pictures.tensorboard(run) as url, pictures.browser() as page:
        outside: list[str] = []
        page.on("request", lambda request: None if request.url.startswith(url) else outside.append(request.url))
        page.on("dialog", lambda dialog: outside.append(dialog.message))

        pictures.scalars(page, url, "train/loss|acceptance")
        cards = page.locator("scalar-card")
        assert [" ".join(cards.nth(n).inner_text().split()[:2]) for n in (0, 1)] == ["eval /acceptance", "train /loss"]
        for n in (0, 1):
            assert coloured(cards.nth(n).locator("line-chart").first.screenshot()) > 300  # a curve, not only axes

        pictures.samples(page, url)
        text = page.locator("tf-markdown-view pre").first.inner_text()
        assert "readable: return fibonacci(n - 1)" in text
        assert "<script>document.title" in text
        [line] = [line for line in text.splitlines() if line.startswith("teacher")]
        assert line.split("|")[1].strip() == "student"
        assert "\x1b" not in text
        block = page.locator("tf-markdown-view pre").last  # both columns, in a laptop's window
        assert page.viewport_size["width"] == 1280
        assert block.evaluate("block => block.scrollWidth - block.clientWidth") <= 0
        inside = page.locator("tf-markdown-view")
        assert [inside.locator(tag).count() for tag in ("script", "img", "a")] == [0, 0, 0]
        assert page.title() == "TensorBoard"
        assert outside == []
        page.screenshot(path=tmp_path / "samples.png")
    assert (tmp_path / "samples.png").stat().st_size > 10_000


def coloured(png: bytes) -> int:
    """Pixels that are neither grey nor the page's own, so drawn for a series of values."""
    pixels = np.asarray(Image.open(BytesIO(png)).convert("RGB")).astype(int)
    return int((np.ptp(pixels, axis=-1) > 20).sum())
