"""The attention of the student against the specification, on both of its paths."""

import pytest
import torch

from tests.kernels.device import DEVICE, GPU, normal
from tutelage.kernels import attention as module
from tutelage.kernels import reference
from tutelage.kernels.attention import attention, cached_attention, documents, rotate, so_far


def inputs(B=2, H=4, K=2, T=17, Dh=8, dtype=torch.float64, requires_grad=False):
    generator = torch.Generator().manual_seed(0)
    shapes = [(B, H, T, Dh), (B, K, T, Dh), (B, K, T, Dh)]
    drawn = [torch.randn(s, generator=generator, dtype=torch.float64).to(DEVICE, dtype) for s in shapes]
    return [x.requires_grad_(requires_grad) for x in drawn]


def some_segments(B=2, T=17):
    """Documents that end at other places in every row, one of them a single token long."""
    ends = torch.stack([torch.arange(T) >= cut for cut in (3, 4, 11)]).sum(0)
    return torch.stack([(ends.roll(row) if row else ends).cummax(0).values for row in range(B)]).to(DEVICE)


def some_rope(dtype=torch.float64, T=17, Dh=8):
    angles = torch.arange(T)[:, None] * 10_000.0 ** (-torch.arange(0, Dh, 2) / Dh)
    angles = torch.cat((angles, angles), -1)[None, None].to(DEVICE, dtype)
    return angles.cos(), angles.sin()


def visible(segments):
    """True where query t sees key j: not after it, and in its document."""
    T = segments.shape[1]
    mask = torch.zeros(len(segments), 1, T, T, dtype=torch.bool)
    for b, t, j in torch.cartesian_prod(*map(torch.arange, (len(segments), T, T))).tolist():
        mask[b, 0, t, j] = j <= t and segments[b, j] == segments[b, t]
    return mask.to(DEVICE)


@pytest.fixture(params=["fused"] if GPU else ["explicit", "fused"])
def path(request, monkeypatch):
    """Forces one of the two ways to compute a training step on a CPU; on a GPU it is what `auto` takes."""
    monkeypatch.setattr(module, "EXPLICIT_LIMIT", 10**9 if request.param == "explicit" else 0)
    calls = []
    explicit, fused = module._explicit, module.F.scaled_dot_product_attention
    monkeypatch.setattr(module, "_explicit", lambda *a: calls.append("explicit") or explicit(*a))
    monkeypatch.setattr(
        module.F, "scaled_dot_product_attention", lambda *a, **k: calls.append("fused") or fused(*a, **k)
    )
    yield request.param
    assert GPU or set(calls) == {request.param}


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 5e-5)])
def test_value_and_gradients(path, kv_heads, packed, dtype, tolerance):
    ours = inputs(K=kv_heads, dtype=dtype, requires_grad=True)
    truth = [x.detach().double().requires_grad_() for x in ours]
    segments = some_segments() if packed else None
    out = attention(*ours, None if segments is None else documents(segments))
    expected = reference.attention(*truth, segments)
    weight = normal(*expected.shape, seed=1)
    (out.double() * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)
    for mine, theirs in zip(ours, truth, strict=True):
        torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=tolerance, atol=tolerance)


def test_low_precision_is_no_worse_than_plain_arithmetic(path):
    ours = inputs(dtype=torch.bfloat16, requires_grad=True)
    segments = some_segments()
    truth = reference.attention(*(x.detach().double() for x in ours), segments)
    eager = reference.attention(*(x.detach() for x in ours), segments)
    out = attention(*ours, documents(segments)).detach()
    assert (truth - out).abs().max() <= (truth - eager).abs().max() + 1e-2 * truth.abs().max()


def test_gradcheck(path):
    q, k, v = inputs(B=1, H=2, K=1, T=4, Dh=4, requires_grad=True)
    sight = documents(torch.tensor([[0, 0, 1, 1]], device=DEVICE))
    assert torch.autograd.gradcheck(lambda *x: attention(*x, sight), (q, k, v))


def test_gradient_never_crosses_a_document(path):
    segments = some_segments(B=1)
    q, k, v = inputs(B=1, requires_grad=True)
    out = attention(q, k, v, documents(segments))
    for document in segments.unique():
        inside = segments[0] == document
        grads = torch.autograd.grad(out[:, :, inside].sum(), (q, k, v), retain_graph=True)
        for grad in grads:
            assert torch.equal(grad[:, :, ~inside], torch.zeros_like(grad[:, :, ~inside]))
            assert grad[:, :, inside].abs().sum() > 0 or inside.sum() == 1


def test_other_documents_change_nothing_at_all(path):
    segments = some_segments(B=1)
    q, k, v = inputs(B=1, requires_grad=True)
    sight, inside = documents(segments), segments[0] == 1
    before = attention(q, k, v, sight)[:, :, inside]
    scale = torch.where(inside, 1.0, 1e6)[:, None].double()
    after = attention(q * scale, k * scale, v * scale, sight)[:, :, inside]
    assert torch.equal(before, after)


def test_gradient_never_comes_from_the_future(path):
    q, k, v = inputs(B=1, requires_grad=True)
    for t in (0, 5, 16):
        grads = torch.autograd.grad(attention(q, k, v)[:, :, t].sum(), (k, v))
        assert all(torch.count_nonzero(grad[:, :, t + 1 :]) == 0 for grad in grads)


def test_every_token_sees_at_least_itself(path):
    """A document per token: nothing is fully hidden, and each token returns its own value."""
    q, k, v = inputs(B=1, H=4, K=4, requires_grad=True)
    out = attention(q * 1e3, k, v, documents(torch.arange(17, device=DEVICE)[None]))
    torch.testing.assert_close(out, v)


def test_both_paths_agree_with_and_without_gradients():
    training = inputs(dtype=torch.float32, requires_grad=True)
    sight = documents(some_segments())
    with torch.no_grad():
        inference = attention(*training, sight)
    torch.testing.assert_close(attention(*training, sight), inference, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rotated", [False, True])
def test_the_last_tokens_over_a_cache(rotated):
    q, k, v = inputs()
    rope = some_rope() if rotated else None
    turned = (rotate(q, *rope), rotate(k, *rope)) if rope else (q, k)
    whole = reference.attention(*turned, v)
    sight = so_far(torch.arange(14, 17, device=DEVICE).expand(2, 3), 17)
    mine = tuple(table[:, :, -3:] for table in rope) if rope else None
    torch.testing.assert_close(cached_attention(q[:, :, -3:], turned[1], v, sight, mine), whole[:, :, -3:])


def test_documents_by_hand():
    sight = documents(torch.tensor([[0, 0, 1, 1, 1]], device=DEVICE))
    assert sight.first.tolist() == [[0, 0, 2, 2, 2]]
    assert sight.first.dtype == torch.int32  # as kernels read it, so that no layer converts it
    assert sight.last is None
    assert sight.offsets.tolist() == [0, 2, 5]
    expected = ["10000", "11000", "00100", "00110", "00111"]
    assert sight.mask.shape == (1, 1, 5, 5)
    assert ["".join(str(int(x)) for x in row) for row in sight.mask[0, 0]] == expected


def test_a_document_is_a_run():
    """A number that comes again names another document: what lies between has ended the first."""
    assert documents(torch.tensor([[3, 3, 0, 3]], device=DEVICE)).first.tolist() == [[0, 0, 2, 3]]


def test_documents_are_what_each_query_sees():
    segments = some_segments()
    assert torch.equal(documents(segments).mask, visible(segments))


@pytest.mark.parametrize("packed", [False, True])
def test_rotation_inside_is_rotation_before(path, packed):
    q, k, v = inputs(requires_grad=True)
    rope = some_rope()
    segments = some_segments() if packed else None
    expected = reference.attention(rotate(q, *rope), rotate(k, *rope), v, segments)
    sight = None if segments is None else documents(segments)
    torch.testing.assert_close(attention(q, k, v, sight, rope), expected)


def test_by_hand_the_pairs_turn_by_their_angle():
    angle = torch.tensor(0.3)
    table = angle.cos().expand(1, 1, 1, 4), angle.sin().expand(1, 1, 1, 4)
    x = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 1, 4)
    c, s = angle.cos(), angle.sin()
    expected = torch.stack([c - 3 * s, 2 * c - 4 * s, 3 * c + s, 4 * c + 2 * s])
    torch.testing.assert_close(rotate(x, *table).flatten(), expected)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("rotated", [False, True])
def test_every_implementation_gives_the_same(packed, rotated):
    """As the student calls it, with gradients: Triton (interpreted), compiled, and plain."""
    torch._dynamo.reset()
    sight = documents(some_segments()) if packed else None
    rope = some_rope(torch.float32) if rotated else None
    results = {}
    for impl in ("eager", "triton", "compile"):
        x = inputs(dtype=torch.float32, requires_grad=True)
        out = attention(*x, sight, rope, impl)
        out.square().sum().backward()
        results[impl] = [out.detach(), *(leaf.grad for leaf in x)]
    for impl in ("triton", "compile"):
        torch.testing.assert_close(results[impl], results["eager"], rtol=1e-4, atol=1e-4)


def test_a_cache_gives_the_same_by_triton():
    q, k, v = inputs(dtype=torch.float32)
    sight = so_far(torch.tensor([[3, 4], [15, 16]], device=DEVICE), 17)
    rope = tuple(t[:, :, 3:5] for t in some_rope(torch.float32))
    plain, triton = (cached_attention(q[:, :, :2], k, v, sight, rope, impl) for impl in ("eager", "triton"))
    torch.testing.assert_close(triton, plain, rtol=1e-4, atol=1e-5)


def test_single_token():
    q, k, v = inputs(T=1, H=2, K=2, requires_grad=True)
    torch.testing.assert_close(attention(q, k, v), v)


def test_non_contiguous_inputs(path):
    q, k, v = (x.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for x in inputs())
    assert not q.is_contiguous()
    torch.testing.assert_close(attention(q, k, v), reference.attention(q, k, v))


def test_heads_that_do_not_divide_are_refused():
    q, k, v = inputs(H=4, K=3)
    with pytest.raises(ValueError, match=r"3 key/value heads do not divide 4"):
        attention(q, k, v)
