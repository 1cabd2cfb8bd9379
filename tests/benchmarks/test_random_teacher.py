"""Teachers of a real one's shape."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.random_teacher import SHAPES, SPREAD, main, random_teacher
from tutelage.data.tokenizer import Tokenizer
from tutelage.teacher.registry import TEACHERS, load_teacher


@pytest.mark.parametrize("name", ["smollm2-135m", "starcoder2-3b"])
def test_the_shape_is_the_real_one_s(name: str) -> None:
    real, shape = TEACHERS[name], SHAPES[name]
    assert (shape.n_parameters, shape.d_model, shape.vocab_size) == (real.n_parameters, real.d_model, real.vocab_size)


def test_it_is_frozen_and_has_opinions(tokenizer: Tokenizer, one_thread: None) -> None:
    teacher = random_teacher("nano", tokenizer, "cpu")
    weights = dict(teacher.decoder.named_parameters())
    assert not any(weight.requires_grad for weight in weights.values())
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    assert all(weight.isfinite().all() for weight in weights.values())
    hidden = teacher.decoder(torch.arange(64)[None] * 7 % tokenizer.vocab_size).hidden
    assert 0.5 * SPREAD < teacher.decoder.logits(hidden).float().std() < 2 * SPREAD


def test_a_directory_that_a_run_can_name(text_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--shape", "nano", "--data", str(text_dir), "--output", str(tmp_path / "t"), "--json"]) == 0
    [row] = json.loads(capsys.readouterr().out)["rows"]
    assert load_teacher(row["teacher"]).spec.n_parameters == SHAPES["nano"].n_parameters
