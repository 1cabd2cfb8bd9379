"""What is known of a teacher before it is loaded."""

import json
from pathlib import Path
from typing import Any

import pytest

from tutelage.errors import UserError
from tutelage.teacher.entry import TeacherEntry, is_foreign, of_folder


@pytest.mark.parametrize(("quantisation", "least", "most"), [(None, 2, 2), ("int8", 1, 1.3), ("nf4", 0.5, 0.8)])
def test_memory_by_how_weights_are_packed(quantisation: str | None, least: float, most: float) -> None:
    assert least <= TeacherEntry("x", 10**6, 8, 8, 0, quantisation).memory_bytes / 10**6 <= most


def test_a_directory_is_read(llama_dir: Path) -> None:
    found = of_folder("x", llama_dir)
    assert (found.source, found.d_model, found.vocab_size, found.context) == (str(llama_dir), 64, 600, 256)
    assert found.n_parameters == pytest.approx(2 * 600 * 64 + 2 * 36_992, rel=0.1)
    assert (found.download_bytes, found.ours, found.prompt_style) == (0, False, None)


def test_a_student_directory_is_read(teacher_dir: Path) -> None:
    found = of_folder("x", teacher_dir)
    assert (found.d_model, found.vocab_size, found.context, found.ours) == (64, 600, 256, True)
    assert (found.n_parameters, found.prompt_style) == (pytest.approx(115_000, rel=0.1), "completion")


@pytest.mark.parametrize(
    ("config", "d_model", "vocab_size", "context"),
    [
        ({"model_type": "gpt2", "n_embd": 32, "vocab_size": 7, "n_positions": 64}, 32, 7, 64),
        ({"model_type": "mpt", "d_model": 32, "vocab_size": 7, "max_seq_len": 64}, 32, 7, 64),
        (
            {"model_type": "gemma3", "text_config": {"hidden_size": 32, "vocab_size": 7, "max_position_embeddings": 9}},
            32, 7, 9,
        ),
        ({"model_type": "llava", "vocab_size": 7, "text_config": {"hidden_size": 32, "vocab_size": None}}, 32, 7, None),
        ({"model_type": "mamba", "hidden_size": 32, "vocab_size": 7}, 32, 7, None),
    ],
)  # fmt: skip
def test_architectures_have_names_of_their_own(
    tmp_path: Path, config: dict[str, Any], d_model: int, vocab_size: int, context: int | None
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = of_folder("x", tmp_path)
    assert (found.d_model, found.vocab_size, found.context) == (d_model, vocab_size, context)


@pytest.mark.parametrize("content", [None, "{", "[]", '"text"', "{}"])
def test_a_directory_without_a_readable_config_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"x\b.*config\.json"):
        of_folder("x", tmp_path)


def test_a_foreign_model_is_told_from_a_student(llama_dir: Path, teacher_dir: Path, tmp_path: Path) -> None:
    assert is_foreign(llama_dir)
    assert not is_foreign(teacher_dir)
    assert not is_foreign(tmp_path)
    assert not is_foreign(tmp_path / "nowhere")
    (tmp_path / "x.gguf").touch()
    assert is_foreign(tmp_path / "x.gguf")
    (tmp_path / "adapter_config.json").write_text("{}")
    assert is_foreign(tmp_path)
