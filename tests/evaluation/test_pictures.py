"""The pictures of a report, read back."""

from PIL import Image

from tutelage.evaluation.pictures import PICTURES, draw
from tutelage.evaluation.report import Measured


def test_every_picture_is_drawn(models, tmp_path):
    drawn = draw(models, tmp_path)
    assert set(drawn) == set(PICTURES)
    for path in drawn.values():
        with Image.open(path) as image:
            assert image.width > 600
            assert len(image.convert("RGB").getcolors(1 << 24)) > 20


def test_what_nobody_measured_is_not_drawn(tmp_path):
    assert draw({"a": Measured({"perplexity/loss": 2.0})}, tmp_path) == {}
    assert list(tmp_path.iterdir()) == []
