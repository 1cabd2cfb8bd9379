"""The attention of the student against the specification, on both of its paths."""

import pytest
import torch

from tutelage.kernels import attention as module
from tutelage.kernels import reference
from tutelage.kernels.attention import attention


def inputs(B=2, H=4, K=2, T=17, Dh=8, dtype=torch.float64, requires_grad=False):
    generator = torch.Generator().manual_seed(0)
    shapes = [(B, H, T, Dh), (B, K, T, Dh), (B, K, T, Dh)]
    return [torch.randn(s, generator=generator, dtype=dtype).requires_grad_(requires_grad) for s in shapes]


def some_segments(B=2, T=17):
    """Documents that end at other places in every row, one of them a single token long."""
    ends = torch.stack([torch.arange(T) >= cut for cut in (3, 4, 11)]).sum(0)
    return torch.stack([(ends.roll(row) if row else ends).cummax(0).values for row in range(B)])


def visible(segments):
    """True where query t sees key j: not after it, and in its document."""
    T = segments.shape[1]
    mask = torch.zeros(len(segments), 1, T, T, dtype=torch.bool)
    for b, t, j in torch.cartesian_prod(*map(torch.arange, (len(segments), T, T))).tolist():
        mask[b, 0, t, j] = j <= t and segments[b, j] == segments[b, t]
    return mask


@pytest.fixture(params=["explicit", "fused"])
def path(request, monkeypatch):
    """Forces one of the two ways to compute a training step on a CPU."""
    monkeypatch.setattr(module, "EXPLICIT_LIMIT", 10**9 if request.param == "explicit" else 0)
    calls = []
    explicit, fused = module._explicit, module.F.scaled_dot_product_attention
    monkeypatch.setattr(module, "_explicit", lambda *a: calls.append("explicit") or explicit(*a))
    monkeypatch.setattr(
        module.F, "scaled_dot_product_attention", lambda *a, **k: calls.append("fused") or fused(*a, **k)
    )
    yield request.param
    assert set(calls) == {request.param}


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 5e-5)])
def test_value_and_gradients(path, kv_heads, packed, dtype, tolerance):
    ours = inputs(K=kv_heads, dtype=dtype, requires_grad=True)
    truth = [x.detach().double().requires_grad_() for x in ours]
    segments = some_segments() if packed else None
    out = attention(*ours, None if segments is None else visible(segments))
    expected = reference.attention(*truth, segments)
    weight = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
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
    out = attention(*ours, visible(segments)).detach()
    assert (truth - out).abs().max() <= (truth - eager).abs().max() + 1e-2 * truth.abs().max()


def test_gradcheck(path):
    q, k, v = inputs(B=1, H=2, K=1, T=4, Dh=4, requires_grad=True)
    mask = visible(torch.tensor([[0, 0, 1, 1]]))
    assert torch.autograd.gradcheck(lambda *x: attention(*x, mask), (q, k, v))


def test_gradient_never_crosses_a_document(path):
    segments = some_segments(B=1)
    q, k, v = inputs(B=1, requires_grad=True)
    out = attention(q, k, v, visible(segments))
    for document in segments.unique():
        inside = segments[0] == document
        grads = torch.autograd.grad(out[:, :, inside].sum(), (q, k, v), retain_graph=True)
        for grad in grads:
            assert torch.equal(grad[:, :, ~inside], torch.zeros_like(grad[:, :, ~inside]))
            assert grad[:, :, inside].abs().sum() > 0 or inside.sum() == 1


def test_other_documents_change_nothing_at_all(path):
    segments = some_segments(B=1)
    q, k, v = inputs(B=1, requires_grad=True)
    mask, inside = visible(segments), segments[0] == 1
    before = attention(q, k, v, mask)[:, :, inside]
    scale = torch.where(inside, 1.0, 1e6)[:, None].double()
    after = attention(q * scale, k * scale, v * scale, mask)[:, :, inside]
    assert torch.equal(before, after)


def test_gradient_never_comes_from_the_future(path):
    q, k, v = inputs(B=1, requires_grad=True)
    for t in (0, 5, 16):
        grads = torch.autograd.grad(attention(q, k, v)[:, :, t].sum(), (k, v))
        assert all(torch.count_nonzero(grad[:, :, t + 1 :]) == 0 for grad in grads)


def test_every_token_sees_at_least_itself(path):
    """A document per token: nothing is fully hidden, and each token returns its own value."""
    q, k, v = inputs(B=1, H=4, K=4, requires_grad=True)
    out = attention(q * 1e3, k, v, visible(torch.arange(17)[None]))
    torch.testing.assert_close(out, v)


def test_both_paths_agree_with_and_without_gradients():
    training = inputs(dtype=torch.float32, requires_grad=True)
    mask = visible(some_segments())
    with torch.no_grad():
        inference = attention(*training, mask)
    torch.testing.assert_close(attention(*training, mask), inference, rtol=1e-5, atol=1e-5)


def test_keys_longer_than_queries():
    """As with a cache: the last queries of a row over all of its keys."""
    q, k, v = inputs()
    whole = reference.attention(q, k, v)
    mask = torch.ones(17, 17, dtype=torch.bool).tril()[None, None].expand(2, 1, 17, 17)
    torch.testing.assert_close(attention(q[:, :, -3:], k, v, mask[:, :, -3:]), whole[:, :, -3:])


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
