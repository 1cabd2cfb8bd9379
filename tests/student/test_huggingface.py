import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.data.tokenizer import Tokenizer, train
from tutelage.errors import UserError
from tutelage.student.config import StudentConfig
from tutelage.student.decoder import Decoder
from tutelage.student.generate import generate
from tutelage.student.huggingface import (
    ARCHITECTURES,
    config_from_huggingface,
    from_huggingface,
    save_huggingface,
    to_huggingface,
)

V = 257
SHAPE = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
EPS = {"llama": {"rms_norm_eps": 1e-3}, "starcoder2": {"norm_epsilon": 1e-3}}
MODELS = [
    ("llama", {}),
    ("llama", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    ("llama", {"head_dim": 12, "num_key_value_heads": 1}),
    ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
    ("llama", {"attention_bias": True}),
    ("llama", {"mlp_bias": True, "tie_word_embeddings": True}),
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("mistral", {"sliding_window": None}),
    ("mistral", {"sliding_window": 64, "head_dim": 6, "hidden_size": 30}),  # the width is no multiple of the heads
    ("qwen2", {}),
    ("qwen2", {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    ("qwen2", {"head_dim": 12}),
    ("qwen2", {"hidden_size": 34}),  # heads of 8, which leave two columns of the width over
    ("qwen3", {"head_dim": 16}),
    ("qwen3", {"head_dim": 8, "attention_bias": True, "tie_word_embeddings": True}),
    ("starcoder2", {}),
    ("starcoder2", {"tie_word_embeddings": False, "use_bias": False}),
    ("starcoder2", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}, "num_key_value_heads": 1}),
]


def config_of(kind, **changes):
    from transformers import AutoConfig

    return AutoConfig.for_model(kind, **{**SHAPE, **EPS.get(kind, {}), **changes})


def build(kind, **changes):
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of(kind, **changes)).eval()
    for parameter in model.parameters():  # the default's are trivial in norms and biases, and a forgotten one hides
        torch.nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.3)
    return model


def tokens_of(length=33):
    return torch.randint(V, (2, length), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits(model, tokens):
    return model.logits(model(tokens).hidden) if isinstance(model, Decoder) else model(tokens).logits[..., :V]


@torch.no_grad()
def greedy(model, prompt=(5, 6, 7, 8)):
    if isinstance(model, Decoder):
        return generate(model, [list(prompt)], max_new_tokens=10, end_ids=())[0]
    model.generation_config.eos_token_id = None
    return model.generate(torch.tensor([prompt]), max_new_tokens=10, do_sample=False, pad_token_id=0)[0, 4:].tolist()


def close(ours, theirs):
    assert theirs.std() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def tokenizer():
    return train(["def add(a, b):\n    return a + b\n"], V)


def reloaded(folder):
    """What transformers makes of a folder, nothing of it missing or left over."""
    from transformers import AutoModelForCausalLM

    model, loading = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


@pytest.mark.parametrize(("kind", "changes"), MODELS)
def test_a_model_comes_and_goes_with_equal_logits(kind, changes, tokenizer, tmp_path, one_thread):
    theirs, tokens = build(kind, **changes), tokens_of()
    ours = from_huggingface(theirs, theirs.config.to_dict(), V)
    assert (ours.config.vocab_size, ours.context) == (V, 64)
    assert ours.embed_tokens.weight is theirs.model.embed_tokens.weight  # shared, not copied
    expected = logits(theirs, tokens)
    close(logits(ours, tokens), expected)
    cache = ours.new_cache(2, 33)
    close(torch.cat([ours.step(part, cache) for part in tokens.split(11, 1)], 1), expected)

    save_huggingface(ours, tokenizer, tmp_path)
    again = reloaded(tmp_path)
    assert again.get_input_embeddings().weight.shape == (V, ours.config.d_model)
    close(logits(again, tokens), expected)
    back = from_huggingface(again, again.config.to_dict())
    assert back.config.explicit == ours.config.explicit
    theirs.lm_head.weight.data[V:] *= 100  # nor does it score those
    assert greedy(again) == greedy(ours) == greedy(back)


@pytest.mark.parametrize("kind", ["llama", "starcoder2"])
@pytest.mark.parametrize("says_tied", [True, False])
def test_the_head_is_the_matrix_that_the_model_uses(kind, says_tied, tokenizer, tmp_path):
    """A configuration that says tied over two matrices, and one that says untied over one."""
    theirs = build(kind, tie_word_embeddings=says_tied)
    if says_tied:
        theirs.lm_head.weight = torch.nn.Parameter(torch.randn(300, 32) * 0.3)
    else:
        theirs.lm_head.weight = theirs.model.embed_tokens.weight
    ours = from_huggingface(theirs, theirs.config.to_dict(), V)
    assert ours.config.tie_embeddings != says_tied
    assert ours.head is theirs.lm_head.weight
    close(logits(ours, tokens_of()), logits(theirs, tokens_of()))
    save_huggingface(ours, tokenizer, tmp_path)
    again = reloaded(tmp_path)
    assert again.config.tie_word_embeddings != says_tied
    close(logits(again, tokens_of()), logits(theirs, tokens_of()))


def test_no_more_is_scored_than_the_head_has():
    theirs = build("llama")
    assert from_huggingface(theirs, theirs.config.to_dict()).config.vocab_size == 300
    assert from_huggingface(theirs, theirs.config.to_dict(), 305).config.vocab_size == 300
    theirs.resize_token_embeddings(290)
    record = {**theirs.config.to_dict(), "vocab_size": 300}  # as somebody forgot to say
    ours = from_huggingface(theirs, record)
    assert ours.config.vocab_size == 290
    assert ours.logits(torch.zeros(1, 32)).shape == (1, 290)


def test_a_head_with_a_bias_is_not_ours():
    theirs = build("llama")
    theirs.lm_head = torch.nn.Linear(32, 300)
    assert from_huggingface(theirs, theirs.config.to_dict()) is None


def test_the_real_qwen_coder_is_a_student():
    """Qwen2.5-Coder-0.5B has our names and shapes, for its 494,032,768 parameters."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=151_936, hidden_size=896, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2,
        intermediate_size=4864, max_position_embeddings=32_768, rope_theta=1e6, tie_word_embeddings=True,
        sliding_window=32_768, use_sliding_window=False, max_window_layers=24,
    )  # fmt: skip
    shape = config_from_huggingface(config.to_dict())
    with torch.device("meta"):
        theirs, ours = Qwen2ForCausalLM(config), Decoder(shape)
    assert theirs.num_parameters() == shape.n_parameters == 494_032_768
    assert (shape.max_seq_len, shape.rope_theta, shape.norm_eps) == (32_768, 1e6, 1e-6)
    names = {name.removeprefix("model."): p.shape for name, p in theirs.named_parameters()}
    assert names == {name: p.shape for name, p in ours.named_parameters()}


def test_training_gradients_are_those_of_transformers():
    theirs, twin = build("qwen3", head_dim=8), build("qwen3", head_dim=8)
    ours = from_huggingface(theirs, theirs.config.to_dict())
    ours.logits(ours(tokens_of(17)).hidden).square().sum().backward()
    twin(tokens_of(17)).logits.square().sum().backward()
    for mine, other in zip(theirs.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-3, atol=1e-3 * other.grad.abs().max().item())


# --- windows and positions -------------------------------------------------------------------------------------

SLIDING = {"use_sliding_window": True, "sliding_window": 8}


@pytest.mark.parametrize(
    ("kind", "changes", "context"),
    [
        ("mistral", {"sliding_window": 8}, 8),
        ("mistral", {"sliding_window": 100}, 64),
        ("mistral", {"sliding_window": 8, "layer_types": ["full_attention"] * 3}, 8),  # of which it takes no notice
        ("starcoder2", {"sliding_window": 8}, 8),
        ("qwen2", {"use_sliding_window": False, "sliding_window": 8}, 64),
        ("qwen2", {**SLIDING, "max_window_layers": 0}, 8),
        ("qwen2", {**SLIDING, "max_window_layers": 2}, 8),
        ("qwen2", {**SLIDING, "max_window_layers": 3}, 64),
        ("qwen3", {**SLIDING, "layer_types": ["full_attention", "sliding_attention", "full_attention"]}, 8),
    ],
)
def test_a_window_is_full_attention_within_it(kind, changes, context, one_thread):
    theirs = build(kind, **changes)
    ours = from_huggingface(theirs, theirs.config.to_dict(), V)
    assert ours.context == context
    close(logits(ours, tokens_of(context)), logits(theirs, tokens_of(context)))
    if context < 64:
        gap = logits(ours, tokens_of(context + 1)) - logits(theirs, tokens_of(context + 1))
        assert gap[:, -1].abs().max() > 1e-3  # and no further


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("llama", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}}),
        ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}),
        ("llama", {"rope_parameters": None, "rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.0}}),
        ("qwen2", {"rope_parameters": {"rope_theta": 1e4, "rope_type": "default", "partial_rotary_factor": 0.5}}),
        ("llama", {"hidden_act": "gelu"}),
        ("starcoder2", {"hidden_act": "relu"}),
        ("llama", {"model_type": "gemma2"}),
        ("llama", {"model_type": None}),
    ],
)
def test_other_arithmetic_is_not_taken_for_ours(kind, change):
    record = config_of(kind).to_dict()
    assert config_from_huggingface(record) is not None
    assert config_from_huggingface(record | change) is None


def test_older_configurations_name_theta_at_the_top():
    record = config_of("llama").to_dict()
    record.pop("rope_parameters")
    assert config_from_huggingface(record | {"rope_theta": 123.0}).rope_theta == 123.0
    assert config_from_huggingface(record).rope_theta == 10_000.0


# --- the way out -----------------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_an_exported_shape_is_the_same_when_it_comes_back(data):
    """What the table cannot say is refused, and what it says is exact, as transformers reads it."""
    from transformers import AutoConfig

    flag = lambda: data.draw(st.booleans())  # noqa: E731
    layernorm = flag()
    config = StudentConfig(
        vocab_size=data.draw(st.integers(1, 200)),
        n_layers=2,
        n_heads=4,
        n_kv_heads=data.draw(st.sampled_from([1, 2, 4])),
        d_model=data.draw(st.sampled_from([16, 30])),
        d_ff=20,
        d_head=data.draw(st.sampled_from([6, 8])),
        max_seq_len=77,
        norm="layernorm" if layernorm else "rmsnorm",
        mlp="gelu" if layernorm ^ (data.draw(st.integers(0, 9)) == 0) else "swiglu",
        bias=flag(),
        qkv_bias=flag(),
        mlp_bias=data.draw(st.sampled_from([None, True, False])),
        qk_norm=flag(),
        rope_theta=123.0,
        norm_eps=1e-4,
        tie_embeddings=flag(),
        dropout=data.draw(st.sampled_from([0.0, 0.25])),
    )
    try:
        record = to_huggingface(config)
    except UserError:
        return
    again = config_from_huggingface(AutoConfig.for_model(**record).to_dict())
    assert again.explicit == replace(config, dropout=0.0).explicit


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {}),
        ("llama", {"bias": True, "qkv_bias": True, "mlp_bias": False}),
        ("llama", {"mlp_bias": True}),
        ("mistral", {"d_model": 30, "d_head": 8}),
        ("qwen2", {"qkv_bias": True}),
        ("qwen3", {"qk_norm": True}),
        ("qwen3", {"qk_norm": True, "bias": True, "qkv_bias": True, "mlp_bias": False}),
        ("starcoder2", {"norm": "layernorm", "mlp": "gelu"}),
        ("starcoder2", {"norm": "layernorm", "mlp": "gelu", "bias": True, "qkv_bias": True}),
    ],
)
def test_a_student_is_exported_as_the_first_line_that_says_all_of_it(kind, changes):
    config = StudentConfig(**{**vars(StudentConfig(100, 2, 4, 2, 32, 48)), **changes})
    record = to_huggingface(config)
    assert record["model_type"] == kind
    assert record["architectures"] == [ARCHITECTURES[kind].model]


@pytest.mark.parametrize(
    "changes",
    [
        {"position": "sinusoidal"},
        {"norm": "layernorm"},
        {"mlp": "gelu"},
        {"bias": True},
        {"qkv_bias": True, "mlp_bias": True},
        {"qk_norm": True, "mlp_bias": True},
    ],
)
def test_what_no_architecture_says_is_refused_and_nothing_written(changes, tokenizer, tmp_path):
    model = Decoder(StudentConfig(**{**vars(StudentConfig(V, 1, 4, 2, 32, 48)), **changes}))
    with pytest.raises(
        UserError, match=r"no architecture of transformers that we write \(llama, .*biases on q/k/v"
    ) as e:
        save_huggingface(model, tokenizer, tmp_path / "out")
    assert "\n" not in str(e.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_exported_folder_says_all_that_generation_needs(tokenizer, tmp_path, dtype):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    several = Tokenizer(tokenizer._prompts, tokenizer.specials, prefix_ids=[0], end_ids=[7])
    model = Decoder(StudentConfig(V, 1, 4, 2, 32, 48, dropout=0.5)).to(dtype)
    save_huggingface(model, several, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert theirs.dtype == dtype
    assert theirs.generation_config.eos_token_id == [0, 7]
    assert theirs.generation_config.bos_token_id == 0
    assert torch.equal(theirs.lm_head.weight, model.head[:V])
    assert AutoTokenizer.from_pretrained(tmp_path)("def").input_ids == several.encode_prompt("def")
    again = Tokenizer.from_directory(tmp_path)
    assert (again.prefix_ids, again.end_ids) == (several.prefix_ids, several.end_ids)
    assert json.loads((tmp_path / "config.json").read_text())["vocab_size"] == V
