"""What is wrong with a model folder is one line before anything heavy is touched, wherever the folder is named."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tutelage import distill, evaluate
from tutelage.errors import UserError
from tutelage.evaluation.run import main as measure
from tutelage.teacher import preflight as checks
from tutelage.teacher.preflight import METHODS, model_config, preflight
from tutelage.teacher.registry import load_teacher
from tutelage.train import main as train


def edited(folder: Path, target: Path, **more: Any) -> Path:
    shutil.copytree(folder, target, dirs_exist_ok=True)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | more))
    return target


def adapter(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "org/base"}')
    (folder / "adapter_model.safetensors").touch()
    return folder


def line(call: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_sound_folder_passes(llama_dir: Path) -> None:
    preflight("x", llama_dir)
    preflight("x", llama_dir, "nf4")


@pytest.mark.parametrize("whole", [False, True], ids=["alone", "beside a model"])
def test_an_adapter_names_its_model_and_the_way(
    tmp_path: Path, llama_dir: Path, whole: bool, make_config: Callable[..., Any]
) -> None:
    folder = adapter(shutil.copytree(llama_dir, tmp_path / "m9") if whole else tmp_path / "m9")
    said = r"m9 is a LoRA adapter of org/base: merge it into its model first"
    assert said in line(lambda: distill(make_config(teacher=str(folder))))
    assert said in line(lambda: evaluate(model=str(folder), latency=True, output_dir=str(tmp_path / "e")))
    assert {file.name for file in tmp_path.iterdir()} == {"m9"}


@pytest.mark.parametrize("method", METHODS)
def test_packed_weights_name_their_method_and_what_they_take(
    method: str, llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = edited(llama_dir, tmp_path / "m7", quantization_config={"quant_method": method, "bits": 4})
    monkeypatch.setattr(checks, "_installed", lambda module: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    needs = METHODS[method]
    if needs.modules:
        assert f"m7 is packed by {method}, which needs another package: pip install" in line(
            lambda: preflight("m7", folder)
        )
    monkeypatch.setattr(checks, "_installed", lambda module: True)
    if needs.gpu:
        assert f"m7 is packed by {method}, which needs a GPU" in line(lambda: preflight("m7", folder))
    else:
        preflight("m7", folder)


@pytest.mark.parametrize("method", ["gptq", "awq", "compressed-tensors", "bitsandbytes"])
def test_packed_weights_without_what_they_need_are_one_line_everywhere(
    method: str, llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_config: Callable[..., Any]
) -> None:
    for module in METHODS[method].modules:
        monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    folder = edited(llama_dir, tmp_path / "m7", quantization_config={"quant_method": method, "bits": 4})
    for call in (
        lambda: distill(make_config(teacher=str(folder))),
        lambda: evaluate(model=str(folder), latency=True, output_dir=str(tmp_path / "e")),
    ):
        assert f"packed by {method}" in line(call)
    assert not (tmp_path / "run").exists()


def test_whole_weights_that_are_said_to_be_packed_are_one_line(llama_dir: Path, tmp_path: Path) -> None:
    """They load, and fail when they are used."""
    pytest.importorskip("bitsandbytes")
    folder = edited(
        llama_dir, tmp_path / "m7", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}
    )
    assert "packed by bitsandbytes" in line(lambda: load_teacher(str(folder)))


@pytest.mark.parametrize("method", ["fp8", "mxfp4"])
def test_what_transformers_unpacks_without_help_still_loads(method: str, llama_dir: Path, tmp_path: Path) -> None:
    packing = {"quant_method": method, "weight_block_size": [128, 128]}
    if method == "mxfp4":
        packing = {"quant_method": method}
    folder = edited(llama_dir, tmp_path / "m7", quantization_config=packing)
    assert load_teacher(str(folder)).spec.vocab_size == 600


def test_what_is_packed_is_not_packed_again(llama_dir: Path, tmp_path: Path) -> None:
    folder = edited(llama_dir, tmp_path / "m7", quantization_config={"quant_method": "fp8"})
    said = line(lambda: load_teacher(str(folder), quantisation="nf4"))
    assert said == f"{folder} is packed already, by fp8: leave out --teacher_quantization nf4"


def test_code_in_a_folder_is_named_and_never_executed(
    llama_dir: Path, tmp_path: Path, make_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = edited(llama_dir, tmp_path / "own", model_type="mine", auto_map={"AutoConfig": "modeling_mine.Config"})
    (folder / "modeling_mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    said = line(lambda: distill(make_config(teacher=str(folder))))
    assert "but to code of its own (modeling_mine.py), which is never executed" in said
    assert "never executed" in line(lambda: evaluate(model=str(folder), latency=True, output_dir=str(tmp_path / "e")))
    assert not (tmp_path / "ran").exists()


def test_code_beside_an_architecture_that_is_known_is_left_alone(llama_dir: Path, tmp_path: Path) -> None:
    folder = edited(llama_dir, tmp_path / "own", auto_map={"AutoModelForCausalLM": "modeling_mine.Model"})
    (folder / "modeling_mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    load_teacher(str(folder))
    assert not (tmp_path / "ran").exists()


def test_an_architecture_that_nobody_knows_is_named(llama_dir: Path, tmp_path: Path) -> None:
    folder = edited(llama_dir, tmp_path / "new", model_type="llama99")
    assert "its architecture llama99 is not known to transformers" in line(lambda: preflight("new", folder))


@pytest.mark.parametrize("content", ["{}", '{"torch_dtype": "bfloat16"}'])
def test_a_configuration_of_nothing_is_said(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    assert "does not say which kind of model" in line(lambda: model_config("x", tmp_path))


@pytest.mark.parametrize("gone", ["*.safetensors", "tokenizer.json"])
def test_folders_without_weights_or_tokenizer_are_one_line(
    gone: str, llama_dir: Path, tmp_path: Path, make_config: Callable[..., Any]
) -> None:
    folder = edited(llama_dir, tmp_path / "half")
    for file in folder.glob(gone):
        file.unlink()
    (folder / "tokenizer_config.json").unlink()
    assert str(folder) in line(lambda: distill(make_config(teacher=str(folder))))
    assert str(folder) in line(lambda: evaluate(model=str(folder), latency=True, output_dir=str(tmp_path / "e")))


def test_the_command_lines_say_it_in_one_line_and_end_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(adapter(tmp_path / "m9"))
    monkeypatch.chdir(tmp_path)
    assert train(["--teacher", folder, "--steps", "1", "--data", "stdlib"]) == 2
    assert measure(["--model", folder, "--latency"]) == 2
    told = capsys.readouterr()
    assert [line.count("LoRA adapter") for line in told.err.splitlines()] == [1, 1]
    assert told.out == ""
    assert {file.name for file in tmp_path.iterdir()} == {"m9"}
