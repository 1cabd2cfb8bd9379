"""Which matrix scores, and for which tokens; where the text part of a model that sees is found."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import HF_SHAPE
from tests.teacher.conftest import copy_of
from tutelage.data.batch import Batch
from tutelage.errors import UserError
from tutelage.kernels.reference import teacher_logits
from tutelage.teacher.registry import load_teacher


def heads(folder: Path, *, tied: bool, two: bool) -> None:
    """Makes the configuration say `tied`, and the file hold two different matrices or the embedding alone."""
    file, config = folder / "model.safetensors", json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": tied}))
    tensors = load_file(file)
    tensors.pop("lm_head.weight", None)
    if two:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].flip(0).clone()
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize("two", [False, True])
@pytest.mark.parametrize("name", ["llama_dir", "starcoder_dir", "qwen_dir"])
@torch.no_grad()
def test_the_head_is_the_one_in_the_file_whatever_the_configuration_says(
    name: str, two: bool, request: pytest.FixtureRequest, tmp_path: Path, batch: Batch
) -> None:
    folder = copy_of(request.getfixturevalue(name), tmp_path)
    heads(folder, tied=True, two=two)
    teacher: Any = load_teacher(str(folder), dtype=torch.float32)
    tensors = load_file(folder / "model.safetensors")
    expected = tensors["lm_head.weight" if two else "model.embed_tokens.weight"].float()
    signal = teacher.signal(batch)
    assert torch.equal(signal.dense.head, expected)
    tokens = batch.tokens[:1, :3]
    generator = teacher.generator()
    scores = generator.step(tokens, generator.new_cache(1, 3))
    torch.testing.assert_close(scores, teacher.model(input_ids=tokens).logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(scores, teacher_logits(*signal.dense)[:1, :3], rtol=1e-4, atol=1e-4)
    if teacher.decoder is not None:  # what --student.init copies
        assert torch.equal(teacher.decoder.head, expected)


def test_a_head_of_its_own_that_is_not_in_the_file_is_missed(llama_dir: Path, tmp_path: Path) -> None:
    folder = copy_of(llama_dir, tmp_path)
    heads(folder, tied=False, two=False)
    with pytest.raises(UserError, match=r"lacks 1 of its weights, such as lm_head\.weight"):
        load_teacher(str(folder))


@pytest.mark.parametrize("kind", ["Llama", "Qwen2", "Mistral"])
def test_padded_rows_of_the_head_are_never_generated(
    kind: str, tmp_path: Path, save_model: Callable[..., Path], batch: Batch
) -> None:
    import transformers

    config = getattr(transformers, f"{kind}Config")(**{**HF_SHAPE, "vocab_size": 640})
    folder = save_model(getattr(transformers, f"{kind}ForCausalLM")(config), tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"][600:] *= 100
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    teacher: Any = load_teacher(str(folder))
    assert teacher.spec.vocab_size == teacher.tokenizer.vocab_size == 600
    generator = teacher.generator()
    assert generator.step(torch.tensor([[5, 6, 7]]), generator.new_cache(1, 3)).shape == (1, 3, 600)
    assert len(teacher.signal(batch).dense.head) == 640


def test_added_tokens_beyond_the_head_are_no_tokens(llama_dir: Path, tmp_path: Path) -> None:
    folder = copy_of(llama_dir, tmp_path)
    vocabulary = json.loads((folder / "tokenizer.json").read_text())
    pad = {**vocabulary["added_tokens"][0], "id": 600, "content": "[PAD]"}
    vocabulary["added_tokens"].append(pad)
    (folder / "tokenizer.json").write_text(json.dumps(vocabulary))
    teacher: Any = load_teacher(str(folder))
    assert teacher.spec.vocab_size == teacher.tokenizer.vocab_size == 600


def test_a_vocabulary_that_cannot_spell_code_is_refused_before_weights_are_read(
    llama_dir: Path, tmp_path: Path
) -> None:
    folder = copy_of(llama_dir, tmp_path)
    (folder / "model.safetensors").unlink()
    vocabulary = json.loads((folder / "tokenizer.json").read_text())
    vocabulary["normalizer"] = {"type": "Lowercase"}
    (folder / "tokenizer.json").write_text(json.dumps(vocabulary))
    with pytest.raises(UserError, match="cannot spell code"):
        load_teacher(str(folder))


@torch.no_grad()
def test_the_text_part_of_a_model_that_sees_teaches(
    gemma_that_sees: Any, tmp_path: Path, save_model: Callable[..., Path], batch: Batch
) -> None:
    folder = save_model(gemma_that_sees, tmp_path)
    teacher: Any = load_teacher(str(folder), dtype=torch.float32)
    text = gemma_that_sees.model.language_model
    assert teacher.spec.n_parameters == text.num_parameters() < teacher.model.num_parameters()
    assert (teacher.spec.d_model, teacher.spec.n_layers, teacher.spec.context) == (64, 2, 256)
    logits = teacher_logits(*teacher.signal(batch).dense)
    here = batch.segments[1] == batch.segments[1, -1]
    alone = teacher.model(input_ids=batch.tokens[1, here][None]).logits[0]
    torch.testing.assert_close(logits[1, here], alone, rtol=1e-4, atol=1e-4)
    shape: Any = load_teacher(str(folder), "meta", torch.float32)
    assert replace(shape.spec, weights="") == replace(teacher.spec, weights="")


def test_a_model_that_is_known_only_as_one_that_sees(tmp_path: Path, save_model: Callable[..., Path]) -> None:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    eyes = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    )
    model = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=eyes, text_config=LlamaConfig(**HF_SHAPE), image_token_index=599)
    )
    teacher: Any = load_teacher(str(save_model(model, tmp_path)))
    assert type(teacher.text.module).__name__ == "LlamaModel"
    assert teacher.spec.n_layers == 2
