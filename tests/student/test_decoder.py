from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.errors import UserError
from tutelage.kernels import dispatch
from tutelage.kernels.attention import documents
from tutelage.kernels.linear_divergence import DenseTeacher, linear_divergence
from tutelage.student.config import StudentOptions, resolve
from tutelage.student.decoder import Decoder
from tutelage.student.layers import rope_table, sinusoids

TINY = resolve(StudentOptions(n_layers=3, n_heads=4, n_kv_heads=2, d_model=32, d_ff=48), 50, "nano")
STARCODER = {"norm": "layernorm", "mlp": "gelu", "bias": True, "qkv_bias": True}
KINDS = {"llama": {}, "starcoder2": STARCODER, "sinusoidal": {"position": "sinusoidal", "tie_embeddings": False}}
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def make(seed=0, **changes):
    """A decoder whose attention is far from uniform, so that a wrong mask or position shows."""
    torch.manual_seed(seed)
    model = Decoder(replace(TINY, **changes))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def some_tokens(B, T, seed=0):
    return torch.randint(50, (B, T), generator=torch.Generator().manual_seed(seed))


def packed(lengths, seed=0):
    """One row of documents: tokens, segments, positions, each `(1, T)`, and where each document lies."""
    tokens = some_tokens(1, sum(lengths), seed)
    segments = torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)])[None]
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    ends = torch.tensor(lengths).cumsum(0).tolist()
    return tokens, segments, positions, [slice(end - n, end) for end, n in zip(ends, lengths, strict=True)]


@pytest.fixture(scope="module", params=KINDS)
def model(request):
    return make(**KINDS[request.param])


@pytest.mark.parametrize("with_grad", [True, False])
@settings(max_examples=6, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_a_packed_row_is_each_document_alone(model, with_grad, lengths, seed):
    tokens, segments, positions, places = packed(lengths, seed)
    with torch.set_grad_enabled(with_grad):
        row = model(tokens, segments=segments, positions=positions).hidden
        for place in places:
            torch.testing.assert_close(row[:, place], model(tokens[:, place]).hidden, **CLOSE)


@pytest.mark.parametrize("with_grad", [True, False])
@settings(max_examples=6, deadline=None)
@given(t=st.integers(1, 11), seed=st.integers(0, 99))
def test_a_later_token_changes_nothing_before_it(model, with_grad, t, seed):
    tokens = some_tokens(2, 12, seed)
    other = tokens.clone()
    other[:, t:] = (tokens[:, t:] + 1 + seed % 49) % 50
    with torch.set_grad_enabled(with_grad):
        before, after = model(tokens).hidden, model(other).hidden
    torch.testing.assert_close(before[:, :t], after[:, :t], rtol=0, atol=1e-6)
    assert not torch.allclose(before[:, t], after[:, t])


def test_an_earlier_token_reaches_the_end(model):
    tokens = some_tokens(1, 12)
    other = tokens.clone()
    other[:, 0] = (other[:, 0] + 1) % 50
    assert not torch.allclose(model(tokens).hidden[:, -1], model(other).hidden[:, -1], atol=1e-3)


def test_default_positions_count_from_zero(model):
    tokens = some_tokens(2, 7)
    given_positions = torch.arange(7).expand(2, 7)
    assert torch.equal(model(tokens).hidden, model(tokens, positions=given_positions).hidden)
    assert not torch.allclose(model(tokens).hidden, model(tokens, positions=2 * given_positions).hidden, atol=1e-3)


@pytest.mark.parametrize("sizes", [[1] * 9, [9], [4, 1, 4], [1, 8]])
def test_steps_with_a_cache_equal_the_whole_pass(model, sizes):
    tokens = some_tokens(3, 9)
    cache = model.new_cache(3, 9)
    logits = [model.step(part, cache) for part in tokens.split(sizes, 1)]
    torch.testing.assert_close(torch.cat(logits, 1), model.logits(model(tokens).hidden), **CLOSE)
    assert cache.length.tolist() == [9, 9, 9]


@settings(max_examples=6, deadline=None)
@given(counts=st.lists(st.integers(1, 6), min_size=1, max_size=4), junk=st.integers(0, 49), steps=st.integers(1, 3))
def test_right_padded_rows_equal_each_row_alone(model, counts, junk, steps):
    B, width = len(counts), max(counts)
    tokens = some_tokens(B, width + steps)
    prompt = tokens[:, :width].clone()
    for row, n in enumerate(counts):
        prompt[row, n:] = junk
    cache = model.new_cache(B, width + steps)
    logits = [model.step(prompt, cache, torch.tensor(counts))]
    assert logits[0].shape == (B, 1, 50)
    logits += [model.step(tokens[:, width + i : width + i + 1], cache) for i in range(steps)]
    for row, n in enumerate(counts):
        alone = torch.cat((tokens[row, :n], tokens[row, width:]))[None]
        expected = model.logits(model(alone).hidden)[0, n - 1 :]
        torch.testing.assert_close(torch.cat(logits, 1)[row], expected, **CLOSE)
    assert cache.length.tolist() == [n + steps for n in counts]


def test_rewound_is_never_having_gone_there(model):
    tokens, wrong = some_tokens(2, 8), some_tokens(2, 3, seed=9)
    cache = model.new_cache(2, 12)
    model.step(tokens[:, :5], cache)
    model.step(wrong, cache)
    cache.rewind(3)
    logits = model.step(tokens[:, 5:], cache)
    torch.testing.assert_close(logits, model.logits(model(tokens).hidden)[:, 5:], **CLOSE)


@settings(max_examples=6, deadline=None)
@given(back=st.lists(st.integers(0, 4), min_size=3, max_size=3), seed=st.integers(0, 99))
def test_each_row_rewinds_alone(model, back, seed):
    """As in speculation: every row keeps another share of four drafted tokens, then goes on."""
    tokens, following = some_tokens(3, 7, seed), some_tokens(3, 2, seed + 1)
    cache = model.new_cache(3, 9)
    model.step(tokens, cache)
    cache.rewind(torch.tensor(back))
    logits = model.step(following, cache)
    for row, n in enumerate(back):
        alone = torch.cat((tokens[row, : 7 - n], following[row]))[None]
        torch.testing.assert_close(logits[row], model.logits(model(alone).hidden)[0, -2:], **CLOSE)


def test_selected_rows_go_on_as_before(model):
    tokens, counts = some_tokens(4, 7), torch.tensor([5, 2, 4, 3])
    whole, some = model.new_cache(4, 8), model.new_cache(4, 8)
    for cache in (whole, some):
        model.step(tokens[:, :5], cache, counts)
    rows = torch.tensor([3, 1])
    some.select(rows)
    for t in (5, 6):
        expected = model.step(tokens[:, t : t + 1], whole)[rows]
        torch.testing.assert_close(model.step(tokens[rows, t : t + 1], some), expected, **CLOSE)


def test_a_step_under_autocast():
    model, tokens = make(), some_tokens(2, 6)
    cache = model.new_cache(2, 6)
    with torch.autocast("cpu", torch.bfloat16):
        logits = torch.cat([model.step(part, cache) for part in tokens.split(3, 1)], 1)
        expected = model.logits(model(tokens).hidden)
    scale = expected.float().abs().max()
    assert (logits.float() - expected.float()).abs().max() < 0.05 * scale


def test_a_step_makes_no_graph():
    model = make()
    cache = model.new_cache(1, 4)
    assert not model.step(some_tokens(1, 2), cache).requires_grad
    assert not cache.keys.requires_grad


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("kind", ["llama", "starcoder2"])
def test_gradient_checkpointing_gives_identical_gradients(kind, dropout):
    tokens, segments, positions, _ = packed([5, 3, 4])
    gradients = []
    for checkpointing in (False, True):
        model = make(dropout=dropout, **KINDS[kind]).train()
        model.gradient_checkpointing = checkpointing
        torch.manual_seed(1)
        out = model(tokens, segments=segments, positions=positions, taps=(1,))
        (out.hidden.square().sum() + out.taps[0].sum()).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_padded_vocabulary_is_never_scored():
    model, tokens = make(), some_tokens(2, 5)
    assert model.head.shape == (64, 32)
    expected = model.logits(model(tokens).hidden)
    with torch.no_grad():
        model.head[50:] = 1e6
    assert torch.equal(model.logits(model(tokens).hidden), expected)
    assert model.step(tokens, model.new_cache(2, 5)).shape == expected.shape == (2, 5, 50)


@pytest.mark.parametrize("tied", [True, False])
def test_head_is_the_embedding_or_its_own(tied):
    model = make(tie_embeddings=tied)
    assert (model.head is model.embed_tokens.weight) == tied
    hidden = torch.randn(2, 32)
    torch.testing.assert_close(model.logits(hidden), hidden @ model.head[:50].T)


def test_hidden_is_normalised_and_taps_are_the_residual_stream():
    model, tokens = make(), some_tokens(2, 5)
    out = model(tokens, taps=(0, 2))
    assert len(out.taps) == 2
    torch.testing.assert_close(model.norm(out.taps[1]), out.hidden)
    sight = documents(torch.zeros(2, 5))
    rope = rope_table(torch.arange(5).expand(2, 5), 8, model.config.rope_theta)
    torch.testing.assert_close(out.taps[0], model.layers[0](model.embed_tokens(tokens), rope, sight, None), **CLOSE)
    assert model(tokens).taps == ()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_taps_come_in_the_order_asked_as_often_as_asked_and_from_either_end(checkpointing):
    model, tokens = make().train(), some_tokens(2, 5)
    model.gradient_checkpointing = checkpointing
    each = model(tokens, taps=range(3)).taps
    for taps in [(2, 0), (1, 1), (-1,), (-3, 2, 0), (0, -3)]:
        found = model(tokens, taps=taps).taps
        assert len(found) == len(taps)
        assert all(torch.equal(tap, each[layer]) for tap, layer in zip(found, taps, strict=True))
    assert not torch.equal(each[2], model(tokens).hidden)  # the residual stream, and not what the norm makes of it


@pytest.mark.parametrize("tap", [3, -4])
def test_a_layer_that_is_not_there_is_refused(tap):
    with pytest.raises(UserError, match=f"no layer {tap} to tap: the model has 3, 0 to 2"):
        make()(some_tokens(1, 2), taps=(0, tap))


def test_segments_over_a_cache_are_refused():
    model = make()
    with pytest.raises(UserError, match="give segments or a cache, not both"):
        model(some_tokens(1, 2), segments=torch.zeros(1, 2), cache=model.new_cache(1, 4))


BACKENDS = [
    "aot_eager",
    pytest.param("inductor", marks=pytest.mark.skipif(dispatch.lacks("compile", "cpu") is not None, reason="no g++")),
]


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_blocks_give_the_same(backend):
    """With documents and without, under autocast, with checkpoints, and over a cache, which compiles nothing more."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    tokens, segments, positions, _ = packed([5, 3, 4])
    documents_of = {"segments": segments, "positions": positions}
    plain, compiled = make().train(), make().train()
    compiled.compile_blocks(backend)
    assert list(compiled.state_dict()) == list(plain.state_dict())

    def step(model, dtype, checkpointing, arguments):
        model.zero_grad()
        model.gradient_checkpointing = checkpointing
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            out = model(tokens, taps=(1,), **arguments)
        (out.hidden.float().square().sum() + out.taps[0].float().sum()).backward()
        return [out.hidden.detach(), *(parameter.grad for parameter in model.parameters())]

    cases = [(None, False, documents_of), (None, True, documents_of)]
    if backend == "aot_eager":  # the other one takes half a minute for each
        cases += [(None, False, {}), (torch.bfloat16, False, documents_of)]
    for dtype, *how in cases:
        rounding = 5e-4 if dtype is None else 5e-2
        for mine, true in zip(step(compiled, dtype, *how), step(plain, dtype, *how), strict=True):
            torch.testing.assert_close(mine, true, rtol=0, atol=rounding * float(true.abs().max()))
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs == len({(dtype, len(arguments)) for dtype, _, arguments in cases})  # shared by all layers
    cache = compiled.eval().new_cache(1, 12)
    for token in tokens.T[:4]:
        compiled.step(token[None], cache)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs


def test_sinusoidal_positions_are_added_to_the_embeddings():
    model, tokens = make(**KINDS["sinusoidal"]), some_tokens(1, 6)
    x = model.embed_tokens(tokens) + sinusoids(torch.arange(6)[None], 32)
    for block in model.layers:
        x = block(x, None, None, None)
    torch.testing.assert_close(model(tokens).hidden, model.norm(x), **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_initialisation(kind):
    torch.manual_seed(0)
    config = resolve(StudentOptions(n_layers=8, d_model=128, d_ff=256, n_heads=4, **KINDS[kind]), 1000, "nano")
    for name, parameter in Decoder(config).named_parameters():
        if parameter.ndim == 1:
            wanted = 0.0 if name.endswith("bias") else 1.0
            assert (parameter == wanted).all(), name
        else:
            writes = name.endswith(("o_proj.weight", "down_proj.weight", "c_proj.weight"))
            expected = 0.02 / 4 if writes else 0.02  # √(2·8) = 4
            assert parameter.std().item() == pytest.approx(expected, rel=0.05), name
            assert abs(parameter.mean().item()) < expected / 20, name


def test_the_same_seed_gives_the_same_weights():
    first, again, other = (make_fresh(seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.head, other.head)


def make_fresh(seed):
    torch.manual_seed(seed)
    return Decoder(TINY)


@pytest.mark.parametrize("impl", ["eager", "triton"])
def test_student_and_loss_compile_to_one_graph(impl):
    """Packed documents, rotation and the fused loss: no break, and the gradients of the uncompiled step."""
    if lack := dispatch.lacks(impl, "cpu"):
        pytest.skip(f"needs {lack}")
    torch._dynamo.reset()
    dispatch.use(impl)
    model, tokens = make(), some_tokens(2, 12)
    segments = (torch.arange(12) // 5).repeat(2, 1)
    teacher = DenseTeacher(torch.randn(24, 6), torch.randn(50, 6))

    def loss(tokens, segments, t_hidden, t_head):
        hidden = model(tokens, segments=segments).hidden.flatten(0, 1)
        out = linear_divergence(
            hidden, model.head, DenseTeacher(t_hidden, t_head), tokens.flatten(), ce_weight=0.2, vocab_size=50
        )
        return out.total

    gradients = []
    for step in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        model.zero_grad()
        step(tokens, segments, *teacher[:2]).backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    dispatch.use("auto")
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)
