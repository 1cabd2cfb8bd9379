"""What teachers are held to: each fault that is looked for, made on purpose."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.conftest import HF_SHAPE
from tutelage.data.tokenizer import Tokenizer
from tutelage.errors import UserError
from tutelage.teacher import huggingface, probe
from tutelage.teacher.huggingface import HuggingFaceTeacher, teach
from tutelage.teacher.probe import Probe
from tutelage.teacher.text_model import States, TextModel

Make = Callable[..., HuggingFaceTeacher]


@pytest.fixture
def make(tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture, one_thread: None) -> Make:
    """A tiny teacher in fp32 of the architecture; what it logs is kept."""
    caplog.set_level(logging.INFO, "tutelage.teacher.probe")

    def build(kind: str = "Llama", tokenizer: Tokenizer = tokenizer, **fields: Any) -> HuggingFaceTeacher:
        import transformers

        torch.manual_seed(0)
        config = getattr(transformers, f"{kind}Config")(**{**HF_SHAPE, **fields})
        model = getattr(transformers, f"{kind}ForCausalLM")(config)
        for parameter in model.parameters():
            nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.1)
        return teach("tiny", model, tokenizer, "here")

    return build


def test_a_sound_teacher_passes_without_a_word(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    teacher = make()
    assert teacher.text.packs_up_to is None
    assert teacher.cached
    assert teacher.decoder is not None
    assert not caplog.records


def test_a_neighbour_that_is_seen_is_run_by_itself_and_said_once(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As in architectures whose mask knows no positions."""
    import transformers.masking_utils

    monkeypatch.setattr(transformers.masking_utils, "find_packed_sequence_indices", lambda *_: None)
    teacher = make()
    assert teacher.text.packs_up_to == 0
    [record] = caplog.records
    assert "teacher tiny runs document by document" in record.getMessage()
    assert "off by" in record.getMessage()


def test_a_neighbour_that_leaves_its_logits_near_is_seen_all_the_same(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    packed = TextModel.packed

    def leaks(self: TextModel, *args: Any) -> States:
        hidden, taps = packed(self, *args)
        hidden[:, -2] += 1e-3 * hidden[:, 0].abs()
        return hidden, taps

    monkeypatch.setattr(TextModel, "packed", leaks)
    assert make().text.packs_up_to == 0
    assert "sees its neighbour" in caplog.text


def test_side_by_side_may_fail_in_any_way(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: Any) -> States:
        raise NotImplementedError

    monkeypatch.setattr(TextModel, "packed", fails)
    assert make().text.packs_up_to == 0
    assert "raise NotImplementedError" in caplog.text


def with_a_mask_of_four(self: TextModel, batch: Any, taps: Any = ()) -> States:
    """Documents apart, and no window: transformers takes such a mask as it is."""
    same = batch.segments[:, :, None] == batch.segments[:, None]
    mask = torch.zeros(same.shape).masked_fill(~(same & torch.ones_like(same).tril()), -1e9)
    return self.run(batch.tokens, taps, position_ids=batch.positions, attention_mask=mask[:, None])


def test_a_window_that_is_lost_is_found_where_it_ends(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TextModel, "packed", with_a_mask_of_four)
    assert make("Mistral", sliding_window=100).text.packs_up_to == 0
    assert make("Mistral", sliding_window=None).text.packs_up_to is None
    monkeypatch.setattr(probe, "AFFORDABLE", {"cpu": 1e5})
    assert make("Mistral", sliding_window=100).text.packs_up_to is None, "too dear to try"
    assert make("Mistral", sliding_window=8).text.packs_up_to == 0, "short documents are tried always"


def test_documents_that_depend_on_the_batch_are_refused(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LlamaModel

    forward = LlamaModel.forward

    def mixes(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = forward(self, *args, **kwargs)
        out.last_hidden_state = out.last_hidden_state + out.last_hidden_state.mean(0, keepdim=True)
        return out

    monkeypatch.setattr(LlamaModel, "forward", mixes)
    with pytest.raises(UserError, match=r"teacher tiny: .* depends on others in the batch, by \d+\.\d% .*--teacher"):
        make()


def test_a_model_that_looks_ahead_is_refused(make: Make) -> None:
    with pytest.raises(UserError, match=r"teacher tiny: .* depends on those after it, by \d+\.\d% .* no causal model"):
        make(is_causal=False)


def test_our_arithmetic_is_used_only_where_it_is_the_models(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    share = huggingface.from_huggingface

    def other_base(model: Any, config: dict[str, Any], vocab_size: int) -> Any:
        return share(model, {**config, "rope_parameters": {"rope_type": "default", "rope_theta": 2.0}}, vocab_size)

    monkeypatch.setattr(huggingface, "from_huggingface", other_base)
    assert make().decoder is None
    assert "our arithmetic is off by" in caplog.text


def test_a_cache_that_mixes_texts_is_not_used(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from tutelage.teacher.rowwise import RowwiseLM

    shared: list[Any] = []
    fresh = RowwiseLM._new_past

    def the_same(self: RowwiseLM) -> Any:
        shared.append(fresh(self)) if not shared else None
        return shared[0]

    monkeypatch.setattr(RowwiseLM, "_new_past", the_same)
    teacher = make()
    assert not teacher.cached
    assert "generates without a cache" in caplog.text


@pytest.mark.parametrize(("value", "said"), [(float("nan"), "NaN"), (float("-inf"), "infinity")])
def test_weights_that_are_no_numbers_are_named(make: Make, value: float, said: str) -> None:
    model = make().model
    model.model.layers[1].mlp.up_proj.weight.data[3, 5] = value
    with pytest.raises(UserError, match=rf"weight model\.layers\.1\.mlp\.up_proj\.weight holds {said}"):
        probe.check_weights("tiny", model)


def test_huge_weights_are_numbers() -> None:
    layer = nn.Linear(2, 2)
    layer.weight.data.fill_(3e38)
    probe.check_weights("tiny", layer)


def test_a_head_must_be_a_matrix_of_numbers() -> None:
    head = nn.Linear(2, 2)
    probe.check_head("tiny", head, skeleton=False)
    with pytest.raises(UserError, match="tiny has no head"):
        probe.check_head("tiny", None, skeleton=False)
    with pytest.raises(UserError, match="offloaded"):
        probe.check_head("tiny", head.to("meta"), skeleton=False)
    probe.check_head("tiny", head.to("meta"), skeleton=True)
    head.weight = nn.Parameter(torch.zeros(2, 2, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(UserError, match=r"packed \(torch\.uint8\)"):
        probe.check_head("tiny", head, skeleton=False)


def test_documents_begin_as_texts_do_and_hold_nothing_special(make: Make, tokenizer: Tokenizer) -> None:
    backend = tokenizer._prompts
    begins = Tokenizer(backend, tokenizer.specials, prefix_ids=(7,))
    teacher = make(tokenizer=begins, max_position_embeddings=30)
    trial = Probe("tiny", teacher.model, teacher.text, begins)
    document = trial.document(0, 40)
    assert len(document) == 30
    assert document[0] == 7
    assert not {*document[1:].tolist()} & begins.special_ids
    assert not torch.equal(document, trial.document(1, 40))


@pytest.mark.parametrize("context", [1, 2, 5])
def test_contexts_of_a_few_tokens_are_long_enough(make: Make, context: int) -> None:
    assert make("GPTBigCode", max_position_embeddings=context).spec.context == context


def test_parameters_in_four_bits_count_as_two_a_byte() -> None:
    class Params4bit(nn.Parameter):
        pass

    layer = nn.Linear(4, 2)
    layer.weight = Params4bit(torch.zeros(4, 1, dtype=torch.uint8), requires_grad=False)
    assert probe.count(layer) == 8 + 2


def test_a_gap_is_a_share_of_the_range() -> None:
    theirs = torch.tensor([[0.0, 10.0]])
    assert probe.gap(theirs + torch.tensor([0.0, 1.0]), theirs) == pytest.approx(0.1)
    assert not probe.gap(theirs * float("nan"), theirs) < 1
    assert probe.gap(Tensor(0, 2), Tensor(0, 2)) == 0.0
