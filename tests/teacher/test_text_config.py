"""What configurations say, under the names that their makers chose."""

from types import SimpleNamespace
from typing import Any

import pytest

from tutelage.teacher import text_config


def config(**fields: Any) -> SimpleNamespace:
    return SimpleNamespace(**fields)


def rope(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": 1e4, **more}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"max_position_embeddings": 2048}, 2048),
        ({"max_seq_len": 512}, 512),
        ({"context_length": 1024}, 1024),
        ({}, None),
        ({"max_position_embeddings": 2048, "alibi": True}, None),
        ({"max_position_embeddings": 2048, "alibi": False, "sliding_window": 64}, 2048),
        ({"max_position_embeddings": 16384, "rope_parameters": rope("linear", factor=4.0)}, 16384),
        ({"max_position_embeddings": 2048, "rope_parameters": rope("dynamic", factor=4.0)}, 8192),
        (  # Qwen2.5's way to 131,072
            {
                "max_position_embeddings": 32768,
                "rope_parameters": rope("yarn", factor=4.0, original_max_position_embeddings=32768),
            },
            131072,
        ),
        (
            {
                "max_position_embeddings": 131072,
                "rope_parameters": rope("llama3", factor=8.0, original_max_position_embeddings=8192),
            },
            131072,
        ),
    ],
)
def test_the_context_is_what_positions_reach(fields: dict[str, Any], expected: int | None) -> None:
    assert text_config.context(config(**fields)) == expected


def test_the_real_families_have_a_context() -> None:
    import transformers

    expected = {"GPT2Config": 1024, "MptConfig": 2048, "DbrxConfig": 2048, "BloomConfig": None, "Mamba2Config": None}
    for name, length in expected.items():
        assert text_config.context(getattr(transformers, name)()) == length, name


def test_a_window_is_one_that_is_shorter_than_the_context() -> None:
    assert text_config.window(config(max_position_embeddings=16384, sliding_window=4096)) == 4096
    assert text_config.window(config(max_position_embeddings=4096, sliding_window=4096)) is None
    assert text_config.window(config(max_position_embeddings=4096, sliding_window=None)) is None
    assert text_config.window(config(window_size=[7, 7])) is None  # of a picture


@pytest.mark.parametrize(
    ("fields", "rows", "long"),
    [
        ({"max_position_embeddings": 64}, None, None),
        ({"max_position_embeddings": 64, "sliding_window": 8}, None, None),
        ({"max_position_embeddings": 64, "attention_chunk_size": 16}, 16, None),
        ({"max_position_embeddings": 64, "rope_parameters": rope("dynamic", factor=4.0)}, 64, None),
        (
            {
                "max_position_embeddings": 256,
                "rope_parameters": {
                    "full_attention": rope("longrope", original_max_position_embeddings=32),
                    "sliding_attention": rope("default"),
                },
            },
            32,
            32,
        ),
    ],
)
def test_longer_rows_would_change_what_a_document_says(
    fields: dict[str, Any], rows: int | None, long: int | None
) -> None:
    assert text_config.packs_up_to(config(**fields)) == rows
    assert text_config.long_rope(config(**fields)) == long
    assert text_config.remembers_length(config(**fields)) == ("dynamic" in str(fields))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, (1.0, None)),
        ({"logit_scale": 0.0625}, (0.0625, None)),  # Cohere
        ({"logits_scaling": 4.0}, (0.25, None)),  # Granite
        ({"lm_head_multiplier": 0.5}, (0.5, None)),  # Falcon-H1
        ({"logit_scale": "inv_sqrt_d_model"}, (1.0, None)),  # MPT's word, which transformers does not read
        ({"logit_scale": None, "final_logit_softcapping": 30}, (1.0, 30.0)),  # Gemma
        ({"logits_soft_cap": 30.0}, (1.0, 30.0)),  # RecurrentGemma
    ],
)
def test_scales_and_caps(fields: dict[str, Any], expected: tuple[float, float | None]) -> None:
    assert text_config.scale_and_cap(config(**fields)) == expected
