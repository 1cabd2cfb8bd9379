from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.errors import UserError
from tutelage.student.config import PRESETS, StudentConfig, StudentOptions, resolve
from tutelage.student.decoder import Decoder

OTHER_VALUES = {
    "n_layers": 5,
    "n_heads": 8,
    "n_kv_heads": 1,
    "d_model": 32,
    "d_ff": 96,
    "d_head": 10,
    "max_seq_len": 77,
    "position": "sinusoidal",
    "norm": "layernorm",
    "mlp": "gelu",
    "bias": True,
    "mlp_bias": True,
    "qkv_bias": True,
    "qk_norm": True,
    "rope_theta": 123.0,
    "norm_eps": 1e-3,
    "tie_embeddings": False,
    "dropout": 0.25,
}
VARIANTS = [
    {},
    {"bias": True},
    {"qkv_bias": True},
    {"mlp_bias": True},
    {"mlp_bias": False, "bias": True},
    {"qk_norm": True, "d_head": 24},
    {"qk_norm": True, "norm": "layernorm"},
    {"tie_embeddings": False},
    {"norm": "layernorm"},
    {"mlp": "gelu"},
    {"mlp": "gelu", "norm": "layernorm", "bias": True, "qkv_bias": True, "tie_embeddings": False},
    {"position": "sinusoidal", "d_head": 24},
]


def actual_parameters(config):
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in Decoder(config).parameters())


def nano(**changes):
    return replace(resolve(StudentOptions(), 100, "nano"), **changes)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("changes", VARIANTS)
def test_parameters_are_counted_exactly(preset, changes):
    config = resolve(StudentOptions(preset=preset, **changes), 49_152, "nano")
    assert config.n_parameters == actual_parameters(config)


@settings(max_examples=25, deadline=None)
@given(
    groups=st.integers(1, 3),
    kv=st.integers(1, 3),
    d_head=st.sampled_from([2, 6, 8]),
    layers=st.integers(1, 3),
    vocab=st.integers(1, 200),
    d_ff=st.integers(1, 50),
    flags=st.tuples(*[st.booleans()] * 6),
    mlp_bias=st.sampled_from([None, True, False]),
)
def test_parameters_of_any_shape(groups, kv, d_head, layers, vocab, d_ff, flags, mlp_bias):
    bias, qkv_bias, tie, layernorm, gelu, qk_norm = flags
    config = StudentConfig(
        vocab_size=vocab,
        n_layers=layers,
        n_heads=groups * kv,
        n_kv_heads=kv,
        d_model=groups * kv * d_head,
        d_ff=d_ff,
        bias=bias,
        qkv_bias=qkv_bias,
        mlp_bias=mlp_bias,
        qk_norm=qk_norm,
        tie_embeddings=tie,
        norm="layernorm" if layernorm else "rmsnorm",
        mlp="gelu" if gelu else "swiglu",
    )
    assert config.n_parameters == actual_parameters(config)
    assert config.padded_vocab_size % 64 == 0
    assert 0 <= config.padded_vocab_size - vocab < 64


@pytest.mark.parametrize(("preset", "millions"), [("125m", 122.7), ("smollm2-6l", 49.5)])
def test_sizes_that_the_documentation_promises(preset, millions):
    config = resolve(StudentOptions(preset=preset), 49_152, "nano")
    assert config.n_parameters / 1e6 == pytest.approx(millions, abs=0.06)


def test_shape_of_the_main_preset():
    config = resolve(StudentOptions(), 49_152, "125m")
    assert (config.n_layers, config.d_model, config.n_heads, config.head_size, config.d_ff) == (12, 768, 12, 64, 2048)
    assert (config.position, config.norm, config.mlp, config.tie_embeddings) == ("rope", "rmsnorm", "swiglu", True)


def test_the_teachers_own_shape():
    config = resolve(StudentOptions(), 49_152, "smollm2-6l")
    assert (config.n_layers, config.d_model, config.n_heads, config.n_kv_heads, config.d_ff) == (6, 576, 9, 3, 1536)
    assert config.rope_theta == 100_000


def test_every_field_can_be_overridden_and_nothing_else():
    options = {field.name for field in fields(StudentOptions)} - {"preset", "init"}
    assert options == {field.name for field in fields(StudentConfig)} - {"vocab_size"} == set(OTHER_VALUES)


@pytest.mark.parametrize("name", OTHER_VALUES)
def test_an_override_changes_its_field_alone(name):
    plain = resolve(StudentOptions(), 100, "nano")
    assert getattr(plain, name) != OTHER_VALUES[name]
    changed = resolve(StudentOptions(**{name: OTHER_VALUES[name]}), 100, "nano")
    assert changed == replace(plain, **{name: OTHER_VALUES[name]})


def test_a_false_or_zero_override_counts():
    options = StudentOptions(bias=False, tie_embeddings=False, dropout=0.0)
    assert resolve(options, 100, "nano") == nano(tie_embeddings=False)


def test_the_named_preset_wins_over_the_default():
    assert resolve(StudentOptions(preset="30m"), 100, "nano").d_model == 384
    assert resolve(StudentOptions(), 100, "nano").d_model == 64


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(UserError, match=r"125n.*125m"):
        resolve(StudentOptions(preset="125n"), 100, "nano")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"d_model": 65}, ["65", "4"]),
        ({"n_kv_heads": 3}, ["4", "3"]),
        ({"n_kv_heads": 8}, ["4", "8"]),
        ({"d_head": 7}, ["7"]),
        ({"dropout": 1.0}, ["1.0"]),
        ({"dropout": -0.1}, ["-0.1"]),
    ],
)
def test_numbers_that_do_not_fit_are_refused(changes, named):
    with pytest.raises(UserError) as error:
        nano(**changes)
    assert all(value in str(error.value) for value in named)


def test_an_odd_head_is_fine_without_rotation():
    assert nano(d_head=7, position="sinusoidal").head_size == 7


def test_what_follows_from_other_fields_can_be_said():
    config = nano(bias=True)
    assert (config.d_head, config.mlp_bias, config.biased_mlp) == (None, None, True)
    assert config.explicit == nano(bias=True, d_head=16, mlp_bias=True) == nano(bias=True, d_head=16).explicit
    assert nano(bias=True, mlp_bias=False).explicit != config.explicit
