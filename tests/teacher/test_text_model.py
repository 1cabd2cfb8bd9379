"""The text part of a model, run with documents apart."""

from typing import Any

import pytest
import torch

from tests.conftest import HF_SHAPE
from tutelage.data.batch import Batch
from tutelage.errors import UserError
from tutelage.teacher import text_model
from tutelage.teacher.probe import rows_of
from tutelage.teacher.text_model import TextModel


@pytest.fixture(scope="module")
def llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**HF_SHAPE)).eval().requires_grad_(False)


@pytest.fixture
def text(llama: Any) -> TextModel:
    return TextModel(llama, 600)


def test_experts_are_no_layers() -> None:
    layers = torch.nn.ModuleList()
    for _ in range(2):
        layer = torch.nn.Module()
        layer.experts = torch.nn.ModuleList(torch.nn.Linear(1, 1) for _ in range(8))
        layers.append(layer)
    base = torch.nn.Module()
    base.layers = layers
    base.rotary = torch.nn.ModuleList([torch.nn.Identity()])
    assert text_model.layers(base) == list(layers)


def test_rows_are_run_by_document_beyond_the_length_up_to_which_they_pack(
    text: TextModel, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = []
    for name in ("packed", "by_document"):
        monkeypatch.setattr(text, name, lambda *_, name=name: called.append(name))
    for limit in (None, 0, 15, 16):
        text.packs_up_to = limit
        text(batch)
    assert called == ["packed", "by_document", "by_document", "packed"]


def test_both_ways_give_the_same_states(text: TextModel, batch: Batch) -> None:
    for one, other in zip(_flat(text.packed(batch, (1, -2))), _flat(text.by_document(batch, (1, -2))), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def _flat(states: text_model.States) -> list[torch.Tensor]:
    return [states[0], *states[1]]


def test_documents_of_equal_length_share_a_call(text: TextModel, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    run = text.run

    def noted(tokens: torch.Tensor, *args: Any) -> text_model.States:
        shapes.append(tuple(tokens.shape))
        return run(tokens, *args)

    monkeypatch.setattr(text, "run", noted)
    ids = torch.arange(1, 10)
    text.by_document(rows_of([(ids[:3], ids[:5]), (ids[:5], ids[:3]), (ids[:3], ids[4:9])]))
    assert sorted(shapes) == [(3, 3), (3, 5)]


def test_a_layer_that_is_not_there_is_named(text: TextModel, batch: Batch) -> None:
    for tap in (2, -3):
        with pytest.raises(UserError, match=rf"no layer {tap} to tap: the teacher has 2, 0 to 1 or −1"):
            text(batch, (tap,))


def test_hooks_are_gone_afterwards_whatever_happens(text: TextModel, batch: Batch) -> None:
    text(batch, (0,))
    with pytest.raises(IndexError):
        text.run(torch.tensor([[600]]), (0,))
    assert not any(layer._forward_hooks for layer in text.layers)


def test_cut_up_it_cannot_run_by_document(text: TextModel, batch: Batch) -> None:
    text.sharded = True
    text(batch)
    text.packs_up_to = 8
    with pytest.raises(UserError, match=r"rows of 16 tokens.*leave out --fsdp or pass --packing\.seq_len 8 or less"):
        text(batch)


def test_scores_end_with_the_vocabulary(llama: Any) -> None:
    text = TextModel(llama, 590)
    assert text.head.shape == (600, 64)
    assert text.logits(torch.zeros(2, 3, 64)).shape == (2, 3, 590)


def test_the_text_part_of_a_model_that_sees(gemma_that_sees: Any) -> None:
    text = TextModel(gemma_that_sees, 600)
    assert type(text.module).__name__ == "Gemma3TextModel"
    assert (len(text.layers), text.context) == (2, 256)


def test_a_decoder_that_finds_itself_is_looked_into() -> None:
    from transformers import Llama4ForCausalLM, Llama4TextConfig

    more = {"attention_chunk_size": 16, "num_local_experts": 2, "intermediate_size_mlp": 64, "head_dim": 16}
    model = Llama4ForCausalLM(Llama4TextConfig(**{**HF_SHAPE, **more}))
    assert TextModel(model, 600).module is model.model
