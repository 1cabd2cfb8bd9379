"""The head of a .gguf file."""

from pathlib import Path

import pytest
import torch

from tests.teacher.write_gguf import write
from tutelage.errors import UserError
from tutelage.teacher.gguf_file import read

METADATA = {
    "general.architecture": "llama",
    "llama.context_length": 64,
    "llama.rope.freq_base": 5e4,
    "tokenizer.ggml.tokens": ["a", "größe", ""],
    "tokenizer.ggml.scores": [0.0, -1.0, -2.0],
    "tokenizer.ggml.add_bos_token": True,
    "tokenizer.ggml.pre": "smollm",
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    weights = {"token_embd.weight": torch.zeros(3, 8), "output_norm.weight": torch.zeros(8)}
    return write(tmp_path / "x.gguf", METADATA, weights)


def test_everything_is_read(file: Path) -> None:
    found = read(file)
    assert {key: found.metadata[key] for key in METADATA} == METADATA
    assert found.shapes == {"token_embd.weight": (3, 8), "output_norm.weight": (8,)}
    assert (found.architecture, found.of_model("context_length"), found.of_tokenizer("pre")) == ("llama", 64, "smollm")
    assert found.of_model("sliding_window") is found.of_tokenizer("merges") is None


@pytest.mark.parametrize("share", [0.0, 0.01, 0.2, 0.5, 0.8])
def test_a_file_that_is_cut_short_is_said(file: Path, share: float) -> None:
    content = file.read_bytes()[:-128]  # the weights
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=r"x\.gguf is no(t| whole) .*GGUF"):
        read(file)


@pytest.mark.parametrize("content", [b"not a model at all, but long enough", b"GGUF\1\0\0\0" + bytes(64)])
def test_another_file_is_said(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.gguf is not a GGUF file of version 2 or 3"):
        read(tmp_path / "x.gguf")


def test_a_part_of_a_file_is_not_read_as_the_whole(tmp_path: Path) -> None:
    path = write(tmp_path / "x-00001-of-00002.gguf", METADATA | {"split.count": 2}, {})
    with pytest.raises(UserError, match="one of 2 parts: join them"):
        read(path)
