"""Tiny models of many architectures: packed rows, changed neighbours and generation, beside the model alone."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import HF_SHAPE
from tutelage.data.batch import Batch
from tutelage.data.packing import pack
from tutelage.data.tokenizer import Tokenizer
from tutelage.kernels.reference import teacher_logits
from tutelage.student.generate import generate
from tutelage.teacher.huggingface import HuggingFaceTeacher, teach

MOE = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 16}
GPT2 = {"vocab_size": 600, "n_positions": 256, "n_embd": 64, "n_layer": 2, "n_head": 4, "bos_token_id": 0}
BARE = {"vocab_size": 600, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "bos_token_id": 0}
CHUNKS = {"attention_chunk_size": 16, "intermediate_size_mlp": 128, "interleave_moe_layer_step": 1}


def rope(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, **more}}


LLAMA3 = rope(
    "llama3", factor=8.0, original_max_position_embeddings=32, low_freq_factor=1.0, high_freq_factor=4.0
)  # fmt: skip
LONG = rope("longrope", original_max_position_embeddings=32, short_factor=[1.0] * 8, long_factor=[2.0] * 8)

PACKED: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama of 4 heads": ("Llama", {"num_key_value_heads": None}),
    "llama of odd heads": ("Llama", {"head_dim": 24}),
    "llama with biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, linear rope": ("Llama", rope("linear", factor=2.0)),
    "llama, yarn": ("Llama", rope("yarn", factor=4.0, original_max_position_embeddings=64)),
    "llama, llama3 rope": ("Llama", LLAMA3),
    "mistral": ("Mistral", {"sliding_window": 8}),
    "qwen2": ("Qwen2", {"use_sliding_window": True, "max_window_layers": 0, "sliding_window": 8}),
    "qwen2-moe": ("Qwen2Moe", {**MOE, "shared_expert_intermediate_size": 32}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "phi": ("Phi", {"num_key_value_heads": 4}),
    "phi3": ("Phi3", {"sliding_window": 8}),
    "gpt2": ("GPT2", GPT2),
    "bigcode": ("GPTBigCode", GPT2),
    "codegen": ("CodeGen", {**GPT2, "rotary_dim": 8}),
    "gpt-j": ("GPTJ", {**GPT2, "rotary_dim": 8}),
    "gpt-neo": (
        "GPTNeo", {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 8},
    ),
    "gpt-neox": ("GPTNeoX", {}),
    "starcoder2": ("Starcoder2", {"sliding_window": 8}),
    "gemma": ("Gemma", {"head_dim": 16}),
    "gemma2": (
        "Gemma2",
        {"head_dim": 16, "sliding_window": 8, "attn_logit_softcapping": 1.0, "final_logit_softcapping": 5.0},
    ),
    "gemma3": ("Gemma3", {"head_dim": 16, "sliding_window": 8}),
    "granite": ("Granite", {"logits_scaling": 4.0}),
    "cohere": ("Cohere", {}),
    "cohere2": ("Cohere2", {"sliding_window": 8}),
    "mixtral": ("Mixtral", {**MOE, "sliding_window": 8}),
    "smollm3": ("SmolLM3", {}),
    "olmo2": ("Olmo2", {}),
}  # fmt: skip
APART: dict[str, tuple[str, dict[str, Any]]] = {
    "llama, dynamic rope": ("Llama", {"max_position_embeddings": 32, **rope("dynamic", factor=4.0)}),
    "llama, long rope": ("Llama", LONG),
    "phi3, long rope": ("Phi3", {"original_max_position_embeddings": 32, **LONG}),
    "llama4": ("Llama4", {**MOE, **CHUNKS, "head_dim": 16, "num_hidden_layers": 4, "num_experts_per_tok": 1}),
    "gpt-oss": ("GptOss", {**MOE, "head_dim": 16, "sliding_window": 8}),
    "opt": ("OPT", {**BARE, "ffn_dim": 128, "word_embed_proj_dim": 64}),
    "bloom": ("Bloom", {"vocab_size": 600, "hidden_size": 64, "n_layer": 2, "n_head": 4}),
    "mpt": ("Mpt", {"vocab_size": 600, "d_model": 64, "n_heads": 4, "n_layers": 2}),
    "falcon": ("Falcon", {**BARE, "alibi": True}),
    "mamba2": ("Mamba2", {**BARE, "state_size": 8, "num_heads": 8, "head_dim": 16, "n_groups": 1, "chunk_size": 16}),
    "bamba": ("Bamba", {**MAMBA, "attn_layer_indices": [1]}),
    "falcon-h1": ("FalconH1", {**MAMBA, "head_dim": 16, "mamba_d_ssm": 128, "lm_head_multiplier": 0.5}),
    "recurrentgemma": (
        "RecurrentGemma",
        {"num_hidden_layers": 3, "num_key_value_heads": 1, "lru_width": 64, "attention_window_size": 8},
    ),
    "gpt": ("OpenAIGPT", GPT2),
}  # fmt: skip
"""By document: positions that follow the length, chunks, attention without positions in its mask, and states."""
UNTOUCHED = ("A_log", "dt_bias", ".D", "rg_lru", "recurrent_param")
"""Parameters that must be what they are for a state to fade."""


def build(kind: str, change: dict[str, Any]) -> Any:
    import transformers

    name = f"{kind}{'LMHeadModel' if kind in ('GPT2', 'OpenAIGPT') else 'ForCausalLM'}"
    model_class = getattr(transformers, name)
    shape = {"vocab_size": 600} if "vocab_size" in change else HF_SHAPE
    config = model_class.config_class(**{**shape, "pad_token_id": 0, **change})
    torch.manual_seed(0)
    model = model_class(config)
    for where, parameter in model.named_parameters():
        if not any(part in where for part in UNTOUCHED):
            torch.nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.1)
    return model


@pytest.fixture
def documents() -> list[list[int]]:
    random = np.random.default_rng(0)
    return [random.integers(1, 600, length).tolist() for length in (39, 19, 13, 29, 60)]


def logits_of(teacher: HuggingFaceTeacher, batch: Batch) -> torch.Tensor:
    return teacher_logits(*teacher.signal(batch).dense).float()


@torch.no_grad()
def alone(model: Callable[..., Any], ids: torch.Tensor) -> torch.Tensor:
    """The model's logits, with frequencies that no longer text has left behind."""
    model(input_ids=ids[:1][None], use_cache=False)
    logits: torch.Tensor = model(input_ids=ids[None], use_cache=False).logits[0]
    return logits.float()


def check_signal(teacher: HuggingFaceTeacher, documents: list[list[int]], tolerance: float) -> None:
    """Each document of three rows, of which the last is padded, beside itself alone; then all but its neighbour."""
    batch = pack(documents, 0, 64).batch(np.arange(3))
    assert batch.segments[0].unique().numel() == 3
    logits = logits_of(teacher, batch)
    for row in range(3):
        for segment in batch.segments[row].unique():
            here = batch.segments[row] == segment
            expected = alone(teacher.model, batch.tokens[row, here])
            assert (logits[row, here] - expected).abs().max() < tolerance * (expected.max() - expected.min())
    tokens = batch.tokens.clone()
    tokens[0, :40] = (tokens[0, :40] + 17) % 600
    after = logits_of(teacher, replace(batch, tokens=tokens))[0]
    assert (after - logits[0])[:40].abs().max() > 0.1
    torch.testing.assert_close(after[40:], logits[0, 40:], rtol=1e-4, atol=1e-4 * logits[0].abs().max().item())


def check_generation(teacher: HuggingFaceTeacher, documents: list[list[int]]) -> None:
    """Greedy, for two prompts of unlike length at once, the longer one beyond every window."""
    prompts = [documents[0], documents[2][:7]]
    ours = generate(teacher.generator(), prompts, max_new_tokens=6, end_ids=())
    teacher.model.generation_config.eos_token_id = None
    for prompt, new in zip(prompts, ours, strict=True):
        alone(teacher.model, torch.tensor([prompt[0]]))
        theirs = teacher.model.generate(torch.tensor([prompt]), max_new_tokens=6, do_sample=False, pad_token_id=0)
        assert new == theirs[0, len(prompt) :].tolist()


@pytest.mark.parametrize("name", [*PACKED, *APART])
def test_documents_are_as_each_alone_and_text_goes_on_as_the_models_own(
    name: str, tokenizer: Tokenizer, documents: list[list[int]], one_thread: None
) -> None:
    model = build(*{**PACKED, **APART}[name])
    teacher = teach(name, model, tokenizer, name)
    T = 64
    packs = teacher.text.packs_up_to
    assert (packs is None) if name in PACKED else (packs is not None and packs < T)
    check_signal(teacher, documents, 1e-3)
    check_generation(teacher, documents)
    assert teacher.spec.n_parameters == model.num_parameters()


@pytest.mark.parametrize("name", ["mistral", "gemma2", "qwen2-moe", "gpt-neo", "mamba2", "bamba", "bloom"])
def test_in_bf16_too(name: str, tokenizer: Tokenizer, documents: list[list[int]], one_thread: None) -> None:
    model = build(*{**PACKED, **APART}[name]).bfloat16()
    check_signal(teach(name, model, tokenizer, name), documents, 0.02)


NORMS = {"gpt2": "ln_f", "gpt-j": "ln_f", "mistral": "norm", "bloom": "ln_f", "bamba": "final_layernorm", "gpt": None}


@pytest.mark.parametrize(("name", "norm"), NORMS.items(), ids=NORMS)
@torch.no_grad()
def test_taps_are_the_residual_stream_after_a_layer_for_each_document(
    name: str, norm: str | None, tokenizer: Tokenizer, documents: list[list[int]], one_thread: None
) -> None:
    teacher = teach(name, build(*{**PACKED, **APART}[name]), tokenizer, name)
    batch = pack(documents, 0, 64).batch(np.arange(2))
    last, first, again = teacher.signal(batch, taps=(-1, 0, 1)).taps
    assert torch.equal(last, again)
    for segment in range(3):
        here = batch.segments[0] == segment
        run = partial(teacher.text.module, use_cache=False, output_hidden_states=True)
        alone = run(input_ids=batch.tokens[0, here][None])
        torch.testing.assert_close(first[0, here], alone.hidden_states[1][0], rtol=1e-4, atol=1e-4)
        before_norm = last[0, here]
        ended = before_norm if norm is None else getattr(teacher.text.module, norm)(before_norm)
        torch.testing.assert_close(ended, alone.last_hidden_state[0], rtol=1e-3, atol=1e-3)
