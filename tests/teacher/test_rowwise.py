"""Generation with a transformers model, row by row."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import HF_SHAPE
from tutelage.data.tokenizer import Tokenizer
from tutelage.student.generate import generate
from tutelage.teacher.huggingface import HuggingFaceTeacher, teach
from tutelage.teacher.registry import load_teacher
from tutelage.teacher.rowwise import RowwiseLM, WindowedLM

PROMPTS = [[5, 6, 7, 8], [9], [10, 11]]


def greedy(model: torch.nn.Module, prompt: list[int], count: int) -> list[int]:
    """The slow way: the whole text again for every token."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def made(tokenizer: Tokenizer, kind: str, **fields: Any) -> HuggingFaceTeacher:
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**HF_SHAPE, "pad_token_id": 0, **fields})
    model = getattr(transformers, f"{kind}ForCausalLM")(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.1)
    return teach("tiny", model, tokenizer, "here")


@pytest.mark.parametrize("cached", [True, False])
def test_rows_of_other_lengths_do_not_touch_each_other(qwen_dir: Path, cached: bool) -> None:
    teacher: Any = load_teacher(str(qwen_dir))
    teacher.model.float()  # bf16 may break ties another way
    done = generate(RowwiseLM(teacher.text, cached), PROMPTS, max_new_tokens=6, end_ids={10_000})
    assert done == [greedy(teacher.model, prompt, 6) for prompt in PROMPTS]


def test_rows_that_end_leave_the_batch(qwen_dir: Path) -> None:
    teacher: Any = load_teacher(str(qwen_dir))
    teacher.model.float()
    model = RowwiseLM(teacher.text)
    whole = generate(model, PROMPTS, max_new_tokens=6, end_ids={10_000})
    end = whole[0][2]
    cut = [row[: row.index(end)] if end in row else row for row in whole]
    assert generate(model, PROMPTS, max_new_tokens=6, end_ids={end}) == cut


@pytest.mark.parametrize("kind", ["Mistral", "Mamba2"])
@torch.no_grad()
def test_pieces_score_as_the_whole_text(kind: str, tokenizer: Tokenizer, one_thread: None) -> None:
    mamba = {"state_size": 8, "num_heads": 8, "head_dim": 16, "n_groups": 1, "chunk_size": 16}
    teacher = made(tokenizer, kind, **({"sliding_window": 8} if kind == "Mistral" else mamba))
    model = RowwiseLM(teacher.text)
    tokens = torch.arange(40).reshape(2, 20)
    cache = model.new_cache(2, 20)
    pieces = [model.step(part, cache) for part in torch.split(tokens, [12, 1, 7], dim=1)]
    expected = teacher.model(input_ids=tokens).logits
    torch.testing.assert_close(torch.cat(pieces, 1), expected, rtol=1e-4, atol=1e-4)


def test_it_ends_at_the_context(tokenizer: Tokenizer, one_thread: None) -> None:
    teacher = made(tokenizer, "Qwen2", max_position_embeddings=12)
    assert RowwiseLM(teacher.text).context == 12
    [long, short] = generate(RowwiseLM(teacher.text), [[5] * 10, [7]], max_new_tokens=6, end_ids=())
    assert (len(long), len(short)) == (2, 6)


@pytest.mark.parametrize("kind", ["Phi3", "Llama"])
def test_where_long_factors_begin_it_goes_on_as_the_models_own(
    kind: str, tokenizer: Tokenizer, one_thread: None
) -> None:
    """Phi-3 begins with a new cache there, and Llama keeps the old one. 5.17 loses Phi-3's text: hence the slow way."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 32}
    factors = {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
    phi = {"original_max_position_embeddings": 32} if kind == "Phi3" else {}
    teacher = made(tokenizer, kind, rope_parameters={**rope, **factors}, **phi)
    assert teacher.text.starts_again_at == (32 if kind == "Phi3" else None)
    teacher.model.generation_config.eos_token_id = None
    for start in range(1, 6):
        prompt = list(range(start, start + 28))
        [ours] = generate(teacher.generator(), [prompt], max_new_tokens=12, end_ids=())
        if kind == "Phi3":
            assert ours == greedy(teacher.model, prompt, 12)
        else:
            theirs = teacher.model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)
            assert ours == theirs[0, 28:].tolist()


def test_a_decoder_that_sees_everything_serves_texts_within_the_window(tokenizer: Tokenizer, one_thread: None) -> None:
    teacher = made(tokenizer, "Starcoder2", sliding_window=16)
    model = teacher.generator()
    assert isinstance(model, WindowedLM)
    assert teacher.decoder is not None
    assert (model.context, teacher.decoder.context) == (256, 16)
    assert type(model.new_cache(1, 16)) is type(teacher.decoder.new_cache(1, 16))
    assert type(model.new_cache(1, 17)) is type(model.model.new_cache(1, 17))
    for new in (8, 30):
        done = generate(model, [[3, 4, 5, 6], [7]], max_new_tokens=new, end_ids=())
        assert done == [greedy(teacher.model, prompt, new) for prompt in ([3, 4, 5, 6], [7])]


def test_the_decoder_alone_where_nothing_is_out_of_its_sight(tokenizer: Tokenizer, one_thread: None) -> None:
    teacher = made(tokenizer, "Starcoder2", sliding_window=256)
    assert teacher.generator() is teacher.decoder
