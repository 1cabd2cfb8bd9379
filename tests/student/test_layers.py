import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.kernels import reference
from tutelage.student.config import StudentOptions, resolve
from tutelage.student.layers import (
    GELU,
    Attention,
    Block,
    RMSNorm,
    SwiGLU,
    make_norm,
    rope_table,
    rotate,
    sinusoids,
)


def config(**changes):
    return resolve(StudentOptions(d_model=32, d_ff=48, n_heads=4, n_kv_heads=2, **changes), 50, "nano")


def shaken(module):
    """Parameters large enough, biases and norms included, that a missing one shows."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module


def test_rmsnorm_is_its_formula():
    norm = shaken(RMSNorm(32, eps=0.1))
    x = torch.randn(2, 5, 32) * 3
    expected = norm.weight * x / (x.square().mean(-1, keepdim=True) + 0.1).sqrt()
    torch.testing.assert_close(norm(x), expected)


def test_rmsnorm_takes_its_mean_in_fp32():
    norm = RMSNorm(512, eps=1e-5).to(torch.bfloat16)
    x = (torch.randn(4, 512) * 100).to(torch.bfloat16)
    expected = (x.float() / (x.float().square().mean(-1, keepdim=True) + 1e-5).sqrt()).to(torch.bfloat16)
    assert torch.equal(norm(x), expected)


def test_make_norm_passes_width_and_epsilon():
    for name, kind in (("rmsnorm", RMSNorm), ("layernorm", torch.nn.LayerNorm)):
        norm = make_norm(config(norm=name, norm_eps=0.5), 32)
        assert type(norm) is kind
        assert norm.eps == 0.5
    x = torch.randn(3, 32)
    expected = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 0.5).sqrt()
    torch.testing.assert_close(norm(x), expected)


@pytest.mark.parametrize("theta", [10_000.0, 100_000.0])
def test_rope_rotates_each_pair_by_position_times_frequency(theta):
    positions = torch.tensor([[0, 1, 2, 50, 7], [5, 4, 3, 2, 1]])
    x = torch.randn(2, 3, 5, 8)
    out = rotate(x, *rope_table(positions, 8, theta))
    for i in range(4):
        angle = positions.double()[:, None] * theta ** (-2 * i / 8)
        pair = torch.complex(x[..., i], x[..., i + 4]).to(torch.complex128)
        expected = pair * torch.polar(torch.ones_like(angle), angle)
        torch.testing.assert_close(out[..., i].double(), expected.real, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(out[..., i + 4].double(), expected.imag, rtol=1e-4, atol=1e-5)


@settings(max_examples=50, deadline=None)
@given(m=st.integers(0, 500), n=st.integers(0, 500), shift=st.integers(0, 500), seed=st.integers(0, 99))
def test_rope_scores_depend_on_relative_position_alone(m, n, shift, seed):
    q, k = torch.randn(2, 1, 1, 1, 16, generator=torch.Generator().manual_seed(seed)).double()

    def score(i, j):
        tables = (rope_table(torch.tensor([[position]]), 16, 10_000.0) for position in (i, j))
        rotated = [rotate(x, *table) for x, table in zip((q, k), tables, strict=True)]
        return (rotated[0] * rotated[1]).sum().item()

    assert score(m, n) == pytest.approx(score(m + shift, n + shift), abs=2e-3)


@settings(max_examples=25, deadline=None)
@given(position=st.integers(0, 8191), seed=st.integers(0, 99))
def test_rope_keeps_the_length_of_every_vector(position, seed):
    x = torch.randn(1, 2, 1, 16, generator=torch.Generator().manual_seed(seed))
    out = rotate(x, *rope_table(torch.tensor([[position]]), 16, 10_000.0))
    torch.testing.assert_close(out.norm(dim=-1), x.norm(dim=-1))


def test_rope_angles_are_fp32_whatever_the_model_is():
    """At position 8,191 a bf16 angle would be wrong by up to 32 radians."""
    cos, sin = rope_table(torch.tensor([[8191]]), 8, 10_000.0)
    assert cos.dtype == sin.dtype == torch.float32
    assert cos[0, 0, 0, 0].item() == pytest.approx(math.cos(8191), abs=1e-3)
    assert sin[0, 0, 0, 1].item() == pytest.approx(math.sin(819.1), abs=1e-3)
    x = torch.randn(1, 1, 1, 8).to(torch.bfloat16)
    assert rotate(x, cos, sin).dtype == torch.bfloat16


@pytest.mark.parametrize("d_model", [8, 9])
def test_sinusoids_are_the_formula(d_model):
    positions = torch.tensor([[0, 1, 17], [300, 2, 5]])
    out = sinusoids(positions, d_model)
    assert out.shape == (2, 3, d_model)
    for b, t, d in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(d_model)).tolist():
        angle = positions[b, t].item() / 10_000 ** ((d - d % 2) / d_model)
        expected = math.cos(angle) if d % 2 else math.sin(angle)
        assert out[b, t, d].item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("bias", [False, True])
def test_swiglu_is_its_formula(bias):
    mlp, x = shaken(SwiGLU(config(bias=bias))), torch.randn(2, 3, 32)
    gate, up = mlp.gate_proj(x), mlp.up_proj(x)
    torch.testing.assert_close(mlp(x), mlp.down_proj(gate * torch.sigmoid(gate) * up))
    assert all((layer.bias is not None) == bias for layer in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))


@pytest.mark.parametrize("bias", [False, True])
def test_gelu_is_the_tanh_form(bias):
    mlp, x = shaken(GELU(config(mlp="gelu", bias=bias))), torch.randn(2, 3, 32) * 2
    y = mlp.c_fc(x)
    gelu = 0.5 * y * (1 + torch.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
    torch.testing.assert_close(mlp(x), mlp.c_proj(gelu))
    assert all((layer.bias is not None) == bias for layer in (mlp.c_fc, mlp.c_proj))


@pytest.mark.parametrize(("bias", "qkv_bias"), [(False, False), (True, False), (False, True)])
def test_attention_layer_is_projections_rotation_and_the_specification(bias, qkv_bias):
    layer, x = shaken(Attention(config(bias=bias, qkv_bias=qkv_bias), 0)), torch.randn(2, 6, 32)
    rope = rope_table(torch.arange(6).expand(2, 6), 8, 10_000.0)
    q, k, v = (
        F.linear(x, p.weight, p.bias).unflatten(-1, (-1, 8)).transpose(1, 2)
        for p in (layer.q_proj, layer.k_proj, layer.v_proj)
    )
    y = reference.attention(rotate(q, *rope), rotate(k, *rope), v)
    expected = F.linear(y.transpose(1, 2).flatten(2), layer.o_proj.weight, layer.o_proj.bias)
    torch.testing.assert_close(layer(x, rope, None, None), expected, rtol=1e-4, atol=1e-5)
    assert (layer.o_proj.bias is not None) == bias
    assert all((p.bias is not None) == qkv_bias for p in (layer.q_proj, layer.k_proj, layer.v_proj))


@pytest.mark.parametrize("kind", ["rmsnorm", "layernorm"])
def test_queries_and_keys_are_normalised_by_head_before_they_are_rotated(kind):
    layer, x = shaken(Attention(config(qk_norm=True, norm=kind), 0)), torch.randn(2, 6, 32)
    rope = rope_table(torch.arange(6).expand(2, 6), 8, 10_000.0)
    q, k, v = (F.linear(x, p.weight).unflatten(-1, (-1, 8)) for p in (layer.q_proj, layer.k_proj, layer.v_proj))
    q, k, v = (each.transpose(1, 2) for each in (layer.q_norm(q), layer.k_norm(k), v))
    y = reference.attention(rotate(q, *rope), rotate(k, *rope), v)
    expected = F.linear(y.transpose(1, 2).flatten(2), layer.o_proj.weight)
    torch.testing.assert_close(layer(x, rope, None, None), expected, rtol=1e-4, atol=1e-5)
    assert layer.q_norm.weight.shape == layer.k_norm.weight.shape == (8,)
    assert not torch.equal(layer.q_norm.weight, layer.k_norm.weight)
    assert not list(Attention(config(), 0).q_norm.parameters())


def test_normalised_queries_and_keys_have_the_values_dtype_under_autocast():
    layer, x = shaken(Attention(config(qk_norm=True), 0)), torch.randn(2, 6, 32)
    rope = rope_table(torch.arange(6).expand(2, 6), 8, 10_000.0)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x, rope, None, None)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), layer(x, rope, None, None), rtol=0.1, atol=0.1)


def test_biases_of_the_mlp_may_differ_from_the_attentions():
    for bias, mlp_bias in ((True, False), (False, True)):
        block = Block(config(bias=bias, mlp_bias=mlp_bias), 0)
        assert (block.self_attn.o_proj.bias is not None) == bias
        assert (block.mlp.up_proj.bias is not None) == (block.mlp.down_proj.bias is not None) == mlp_bias


def test_block_is_pre_norm_with_two_residuals():
    block, x = shaken(Block(config(), 0)), torch.randn(2, 5, 32)
    y = x + block.self_attn(block.input_layernorm(x), None, None, None)
    expected = y + block.mlp(block.post_attention_layernorm(y))
    torch.testing.assert_close(block(x, None, None, None), expected)


def test_dropout_only_while_training():
    block, x = shaken(Block(config(dropout=0.5), 0)), torch.randn(2, 5, 32)
    assert not torch.equal(block(x, None, None, None), block(x, None, None, None))
    block.eval()
    assert torch.equal(block(x, None, None, None), block(x, None, None, None))
