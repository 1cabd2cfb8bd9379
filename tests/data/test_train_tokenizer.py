import subprocess
import sys
from pathlib import Path

import pytest

from tutelage.data.tokenizer import Tokenizer
from tutelage.data.train_tokenizer import main


def test_the_command_trains_and_saves(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.py").write_text("def f(x):\n    return x\n" * 3)
    options = ["--data", str(tmp_path / "src"), "--vocab_size", "262", "--output_dir", str(tmp_path / "out")]
    command = [sys.executable, "-m", "tutelage.data.tokenizer", "train", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "wrote 262 tokens" in done.stdout
    assert Tokenizer.from_directory(tmp_path / "out").vocab_size == 262


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "expected 'train'"),
        (["trian"], "expected 'train', got 'trian'"),
        (["train", "--vocab_size", "100"], "--vocab_size 100"),
        (["train", "--data", "stdlibb"], "did you mean 'stdlib'"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    argv: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
