"""A .gguf file is the model that it was made from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import HF_SHAPE
from tests.teacher.write_gguf import drawn, model_metadata, save, tensors, tokenizer_metadata, write
from tutelage.data.batch import Batch
from tutelage.data.tokenizer import Tokenizer
from tutelage.errors import UserError
from tutelage.kernels.reference import teacher_logits
from tutelage.runs import is_student
from tutelage.store import sha256
from tutelage.teacher import gguf
from tutelage.teacher.registry import entry, load_teacher

pytestmark = pytest.mark.usefixtures("one_thread", "cache")
IDS = torch.arange(5, 40)[None]


def llama(**more: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {**HF_SHAPE, "vocab_size": 640, "tie_word_embeddings": True, "rope_theta": 5e4, **more}
    return drawn(LlamaForCausalLM(LlamaConfig(**shape)))


@torch.no_grad()
def logits(teacher: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    zeros = torch.zeros_like(ids)
    places = torch.arange(ids.shape[1])[None]
    return teacher_logits(*teacher.signal(Batch(ids, ids, zeros, places, zeros[:, 0])).dense).float()[0]


def same(ours: torch.Tensor, model: Any, ids: torch.Tensor = IDS) -> bool:
    with torch.no_grad():
        theirs = model(input_ids=ids).logits.float()[0]
    return bool((ours[:, :600] - theirs[:, :600]).abs().max() < 1e-3 * theirs.abs().max())


@pytest.fixture
def tiny(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    return save(tmp_path / "tiny.gguf", llama(), tokenizer)


def test_what_our_decoder_can_carry_becomes_a_student_directory(tiny: Path) -> None:
    known = entry(str(tiny))
    assert (known.source, known.d_model, known.vocab_size, known.context) == (str(tiny), 64, 600, 256)
    teacher: Any = load_teacher(str(tiny), dtype=torch.float32)
    assert teacher.spec.n_parameters == known.n_parameters
    assert (teacher.spec.name, teacher.spec.context, teacher.prompt_style) == (str(tiny), 256, "completion")
    assert teacher.decoder is teacher.generator()
    assert same(logits(teacher), llama())


def test_it_is_unpacked_once(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_teacher(str(tiny))
    monkeypatch.setattr(gguf, "unpack", lambda *_: pytest.fail("unpacked twice"))
    load_teacher(str(tiny))


def test_its_rotary_base_is_the_files_own(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """transformers does not read that of StarCoder2."""
    from transformers import Starcoder2Config, Starcoder2ForCausalLM

    shape = {**HF_SHAPE, "vocab_size": 640, "rope_theta": 123456.0, "use_bias": True}
    model = drawn(Starcoder2ForCausalLM(Starcoder2Config(**shape)))
    path = save(tmp_path / "star.gguf", model, tokenizer, "starcoder2")
    gguf.unpack(path, tmp_path)
    assert is_student(tmp_path)
    assert same(logits(load_teacher(str(tmp_path), dtype=torch.float32)), model)


def qwen2() -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return drawn(Qwen2ForCausalLM(Qwen2Config(**{**HF_SHAPE, "vocab_size": 600, "rope_theta": 5e4})))


def test_another_arithmetic_becomes_a_folder_of_transformers(tmp_path: Path, tokenizer: Tokenizer) -> None:
    from transformers import AutoModelForCausalLM

    out = tmp_path / "out"
    out.mkdir()
    gguf.unpack(save(tmp_path / "qwen.gguf", qwen2(), tokenizer, "qwen2"), out)
    again = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    assert same(again(input_ids=IDS).logits[0], qwen2())
    assert Tokenizer.from_directory(out).encode("x = 12") == tokenizer.encode("x = 12")


@pytest.mark.parametrize("kind", ["linear", "yarn", "llama3"])
def test_scaled_rotary_positions_are_carried(kind: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    original = {"linear": {}, "yarn": {"original_max_position_embeddings": 64}}.get(kind)
    rule = {"rope_type": kind, "factor": 4.0, "rope_theta": 5e5}
    if original is None:
        original = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    model = llama(rope_parameters=rule | original, max_position_embeddings=256)
    metadata = model_metadata(model, "llama") | tokenizer_metadata(tokenizer)
    weights = tensors(model)
    if kind == "llama3":
        plain = 5e5 ** -(torch.arange(8) / 8)
        weights["rope_freqs.weight"] = plain / model.model.rotary_emb.inv_freq
    else:
        metadata |= {"llama.rope.scaling.type": kind, "llama.rope.scaling.factor": 4.0}
        metadata |= {"llama.rope.scaling.original_context_length": 64} if kind == "yarn" else {}
    gguf.unpack(write(tmp_path / "x.gguf", metadata, weights), tmp_path)
    found = load_file(tmp_path / "model.safetensors")
    assert len(found) == len(model.state_dict()) - 1
    from transformers import AutoModelForCausalLM

    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    torch.testing.assert_close(again.model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq, rtol=1e-3, atol=0)
    assert same(again(input_ids=IDS).logits[0], model)


def test_rotary_positions_of_an_unknown_rule_are_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    metadata = model_metadata(llama(), "llama") | tokenizer_metadata(tokenizer)
    odd = write(tmp_path / "odd.gguf", metadata, tensors(llama()) | {"rope_freqs.weight": torch.rand(8) + 1})
    with pytest.raises(UserError, match=r"rope_freqs\.weight.* no rule"):
        load_teacher(str(odd))
    longrope = save(tmp_path / "long.gguf", llama(), tokenizer, llama__rope__scaling__type="longrope")
    with pytest.raises(UserError, match="scaled by longrope"):
        load_teacher(str(longrope))


def test_weights_that_transformers_would_drop_are_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """It does not read that a Llama's attention has biases."""
    path = save(tmp_path / "biased.gguf", llama(attention_bias=True), tokenizer)
    with pytest.raises(UserError, match=r"biased\.gguf holds [\d,]+ weights, of which transformers takes [\d,]+"):
        load_teacher(str(path))


def test_weights_that_are_absent_are_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    weights = tensors(llama())
    del weights["blk.1.ffn_up.weight"]
    metadata = model_metadata(llama(), "llama") | tokenizer_metadata(tokenizer)
    with pytest.raises(UserError, match=r"lacks 1 of its weights, such as .*up_proj"):
        load_teacher(str(write(tmp_path / "x.gguf", metadata, weights)))


@pytest.mark.parametrize("what", ["architecture", "pre", "weights"])
def test_whatever_is_broken_is_one_line(what: str, tmp_path: Path, tokenizer: Tokenizer, cache: Path) -> None:
    more = {"architecture": {"general__architecture": "nobody"}, "pre": {"tokenizer__ggml__pre": "odd"}}.get(what, {})
    path = save(tmp_path / f"{what}.gguf", llama(), tokenizer, **more)
    if what == "weights":
        path.write_bytes(path.read_bytes()[:-5000])
    before = {*cache.iterdir()}
    with pytest.raises(UserError) as caught:
        load_teacher(str(path))
    assert "\n" not in str(caught.value)
    assert f"{what}.gguf" in str(caught.value)
    assert {*cache.iterdir()} == before


def test_it_packs_no_weights_of_our_arithmetic(tiny: Path) -> None:
    with pytest.raises(UserError, match=r"--teacher_quantization nf4.*tiny\.gguf.*our own"):
        load_teacher(str(tiny), quantisation="nf4")


def test_another_file_of_the_same_name_is_another_model(tiny: Path, tokenizer: Tokenizer) -> None:
    first, was = load_teacher(str(tiny)).spec.weights, sha256(tiny)
    save(tiny, llama(rope_theta=1e4), tokenizer)
    assert sha256(tiny) != was
    assert load_teacher(str(tiny)).spec.source != first


def test_it_trains_a_student(tiny: Path, make_config: Callable[..., Any]) -> None:
    from tutelage import distill

    run = distill(make_config(teacher=str(tiny), steps=1))
    assert run.step == 1


def test_it_is_measured_as_a_model(tiny: Path, tmp_path: Path) -> None:
    from tutelage import evaluate

    out = str(tmp_path / "e")
    found = evaluate(model=str(tiny), latency=True, output_dir=out, device="cpu", precision="fp32")
    assert found["tiny.gguf"].metrics["size/parameters"] == entry(str(tiny)).n_parameters
