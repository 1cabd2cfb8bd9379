"""Whatever goes wrong while a teacher is loaded is one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tutelage.errors import UserError
from tutelage.student.config import StudentConfig
from tutelage.student.decoder import Decoder
from tutelage.student.initialise import initialise
from tutelage.teacher import embedded, huggingface
from tutelage.teacher.load_errors import LONGEST, load_errors, out_of_memory
from tutelage.teacher.registry import load_teacher


def line(error: Exception) -> str:
    """What is said of an error."""
    with pytest.raises(UserError) as caught, load_errors("big", "org/big", "cuda:0", torch.bfloat16):
        raise error
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is error
    return str(caught.value)


@pytest.mark.parametrize(
    "kind", [ImportError, KeyError, RuntimeError, AttributeError, AssertionError, OSError, Exception]
)
def test_any_kind_names_the_teacher_the_source_and_a_way_out(kind: type[Exception]) -> None:
    said = line(kind("first\n  second"))
    for part in ("teacher big", "org/big", kind.__name__, "first", "choose another --teacher"):
        assert part in said


def test_an_error_without_words_and_one_with_pages_of_them() -> None:
    assert "(AssertionError)" in line(AssertionError())
    assert len(line(RuntimeError("word " * 10_000))) < LONGEST + 200


def test_our_own_lines_stay() -> None:
    with pytest.raises(UserError, match="as it is"), load_errors("big", "org/big", "cpu", torch.float32):
        raise UserError("as it is")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: 12: bytes"),
        RuntimeError("MPS backend out of memory (MPS allocated: 18 GB)"),
    ],
)
def test_no_memory_left_says_what_was_tried_and_the_ways_out(error: Exception) -> None:
    assert out_of_memory(error)
    said = line(error)
    for part in ("teacher big (org/big) in bfloat16", "cuda:0", "4-bit", "--precision bf16", "--fsdp"):
        assert part in said
    assert not out_of_memory(RuntimeError("shapes differ"))


def edited(folder: Path, target: Path, file: str, change: Callable[[dict[str, Any]], object]) -> str:
    shutil.copytree(folder, target, dirs_exist_ok=True)
    content = json.loads((target / file).read_text())
    change(content)
    (target / file).write_text(json.dumps(content))
    return str(target)


BROKEN: dict[str, tuple[str, Callable[[dict[str, Any]], object]]] = {
    "weights of another size": ("config.json", lambda c: c.update(vocab_size=700)),
    "gptq": ("config.json", lambda c: c.update(quantization_config={"quant_method": "gptq", "bits": 4})),
    "awq": ("config.json", lambda c: c.update(quantization_config={"quant_method": "awq", "bits": 4})),
    "no shape": ("config.json", lambda c: c.update(num_attention_heads=0)),
    "words for numbers": ("config.json", lambda c: c.update(hidden_size="wide")),
    "code of its own": ("config.json", lambda c: c.update(model_type="mine", auto_map={"AutoConfig": "mine.Config"})),
    "a newer tokenizer": ("tokenizer.json", lambda c: c["model"].update(type="SuperBPE")),
    "a newer splitter": ("tokenizer.json", lambda c: c.update(pre_tokenizer={"type": "Nope"})),
}


@pytest.mark.parametrize("what", BROKEN)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_broken_folder_is_one_line(llama_dir: Path, tmp_path: Path, what: str, device: str) -> None:
    folder = edited(llama_dir, tmp_path / "broken", *BROKEN[what])
    if (what, device) == ("weights of another size", "meta"):
        return  # which are not looked at
    with pytest.raises(UserError) as caught:
        load_teacher(folder, device)
    assert "\n" not in str(caught.value)
    assert folder in str(caught.value)
    if what == "weights of another size":
        assert ".weight is [600, 64], and should be [700, 64])" in str(caught.value)


@pytest.mark.parametrize("file", ["tokenizer.json", "config.json"])
@pytest.mark.parametrize("kind", ["llama_dir", "teacher_dir"])
def test_half_a_file_is_one_line(file: str, kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    shutil.copytree(request.getfixturevalue(kind), tmp_path / "half")
    content = (tmp_path / "half" / file).read_bytes()
    (tmp_path / "half" / file).write_bytes(content[: len(content) // 2])
    for device in ("cpu", "meta"):
        with pytest.raises(UserError) as caught:
            load_teacher(str(tmp_path / "half"), device)
        assert "\n" not in str(caught.value)


def test_an_embedded_teacher_that_cannot_be_made_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> Path:
        raise ImportError("gguf is not installed")

    monkeypatch.setattr(embedded, "directory", fail)
    with pytest.raises(UserError, match=r"smollm2-135m.*ImportError: gguf is not installed"):
        load_teacher("smollm2-135m")


def test_the_way_to_four_bits_is_an_extra_of_this_project(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r"need bitsandbytes.*pip install -e '\.\[quant\]'"):
        huggingface._quantised("nf4", torch.bfloat16)


def test_layers_in_four_bits_are_no_start_for_a_student(llama_dir: Path) -> None:
    pytest.importorskip("bitsandbytes")
    teacher = huggingface.load("small", str(llama_dir), device="cpu", quantisation="nf4", dtype=torch.float32)
    assert teacher.decoder is not None
    student = Decoder(StudentConfig(**{**vars(teacher.decoder.config), "n_layers": 1}))
    with pytest.raises(UserError, match=r"--student\.init layers.*quantised: use embeddings or random"):
        initialise(student, teacher.decoder, "layers")
    initialise(student, teacher.decoder, "embeddings")
    assert torch.equal(student.embed_tokens.weight[:600], teacher.decoder.embed_tokens.weight.float())
