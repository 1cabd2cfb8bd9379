"""The Triton attention against the specification: in Triton's interpreter on CPUs, as compiled on a GPU."""

import pytest
import torch

from tests.kernels.device import DEVICE, GPU
from tutelage.kernels import reference

pytest.importorskip("triton")
from tutelage.kernels import triton_attention as module
from tutelage.kernels.triton_attention import Tile, causal_attention

# what numpy says about masked entries, which are computed and not selected
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
TOLERANCE = {torch.float64: 1e-10, torch.float32: 5e-4, torch.float16: 1e-3, torch.bfloat16: 1e-2}
gpu = [pytest.mark.gpu, pytest.mark.skipif(not GPU, reason="bf16 needs a GPU")]
BF16 = pytest.param(torch.bfloat16, marks=gpu)
exact = pytest.mark.skipif(GPU, reason="fp64, only in the interpreter")
# blocks of queries and of keys that do not coincide
SMALL = {"forward": Tile(32, 16, 4, 1), "dq": Tile(16, 32, 4, 1), "dkv": Tile(32, 16, 4, 1)}


@pytest.fixture(autouse=True)
def _highest_precision():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture
def small_tiles(monkeypatch):
    """Many blocks in short rows."""
    monkeypatch.setattr(module, "TILES", dict.fromkeys(module.TILES, SMALL))
    monkeypatch.setattr(module, "WIDE", Tile(16, 32, 4, 1))
    monkeypatch.setattr(module, "ROTATED_ROWS", 16)


def inputs(B=1, H=1, K=1, T=50, Dh=8, dtype=torch.float32, requires_grad=True):
    generator = torch.Generator().manual_seed(0)
    shapes = [(B, H, T, Dh), (B, K, T, Dh), (B, K, T, Dh)]
    made = [torch.randn(s, generator=generator, dtype=torch.float64).to(DEVICE, dtype) for s in shapes]
    return [x.requires_grad_(requires_grad) for x in made]


def packed(*lengths):
    """Segments `(1, T)` of documents of these lengths, and the first token of each token's document."""
    sizes = torch.tensor(lengths)
    segments = torch.arange(len(sizes)).repeat_interleave(sizes)
    return segments[None].to(DEVICE), (sizes.cumsum(0) - sizes)[segments][None].to(DEVICE)


def angles(T, Dh, B=1, dtype=torch.float32):
    """cos and sin `(B, 1, T, Dh)` with equal halves; distances differ by row, for scores see nothing else."""
    at = torch.arange(T, dtype=torch.float64) * torch.arange(1, B + 1, dtype=torch.float64)[:, None]
    turns = at[:, None, :, None] * 100.0 ** (-torch.arange(0, Dh, 2, dtype=torch.float64) / Dh)
    turns = torch.cat((turns, turns), -1).to(DEVICE)
    return turns.cos().to(dtype), turns.sin().to(dtype)


def rotate(x, cos, sin):
    x1, x2 = x.chunk(2, -1)
    return x * cos.to(x.dtype) + torch.cat((-x2, x1), -1) * sin.to(x.dtype)


def specification(q, k, v, segments=None, rope=None):
    if rope is not None:
        q, k = rotate(q, *rope), rotate(k, *rope)
    return reference.attention(q, k, v, segments)


def with_gradients(function, q, k, v, *rest):
    """Value and the three gradients, in fp64, under fixed weights."""
    q, k, v = (x.detach().clone().requires_grad_() for x in (q, k, v))
    out = function(q, k, v, *rest)
    weight = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    grads = torch.autograd.grad(out, (q, k, v), weight.to(out.dtype))
    return [x.detach().double() for x in (out, *grads)]


def check(q, k, v, segments=None, first=None, rope=None):
    """The rule: as near the truth as plain arithmetic in the same dtype is, up to a tolerance."""
    ours = with_gradients(causal_attention, q, k, v, first, rope)
    truth = with_gradients(specification, *(x.double() for x in (q, k, v)), segments, rope)
    eager = with_gradients(specification, q, k, v, segments, rope)
    for name, mine, true, plain in zip(("out", "dq", "dk", "dv"), ours, truth, eager, strict=True):
        allowed = (true - plain).abs().max() + TOLERANCE[q.dtype]
        assert (true - mine).abs().max() <= allowed, name
    return ours


@pytest.mark.parametrize(
    ("dtype", "rotated"),
    [
        pytest.param(torch.float64, False, marks=exact),
        pytest.param(torch.float64, True, marks=exact),
        (torch.float16, True),
        pytest.param(torch.bfloat16, False, marks=gpu),
    ],
)
@pytest.mark.parametrize("documents", [None, (50,), (1, 15, 1, 16, 17), (16, 16, 1, 1, 1, 15), (49, 1)])
def test_value_and_gradients(small_tiles, dtype, documents, rotated):
    """Documents of one token and of a block, begun on and off the edges of blocks."""
    segments, first = packed(*documents) if documents else (None, None)
    check(*inputs(dtype=dtype), segments, first, angles(50, 8) if rotated else None)


@pytest.mark.parametrize("Dh", [2, 8, 32, 40, 64, 96, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, BF16])
def test_head_sizes(Dh, dtype):
    segments, first = packed(5, 28)
    check(*inputs(T=33, Dh=Dh, dtype=dtype), segments, first, angles(33, Dh))


@pytest.mark.parametrize("K", [1, 2, 4])
def test_groups_and_rows_of_a_batch(small_tiles, K):
    """Every row has its own documents and positions."""
    segments, first = (torch.cat(pair) for pair in zip(packed(7, 13), packed(15, 5), strict=True))
    check(*inputs(B=2, H=4, K=K, T=20, dtype=torch.float16), segments, first, angles(20, 8, B=2))


@pytest.mark.parametrize("T", [1, 17, 130])
@pytest.mark.parametrize(
    ("dtype", "Dh"), [(torch.float32, 64), (torch.float16, 32), (torch.float16, 64), (torch.float16, 128)]
)
def test_production_tiles(T, dtype, Dh):
    check(*inputs(H=1, T=T, Dh=Dh, dtype=dtype), rope=angles(T, Dh))


@pytest.mark.parametrize("Dh", [64, 128])
def test_production_tiles_with_documents(Dh):
    """Long enough for each kernel to walk all three of its ranges."""
    segments, first = packed(3, 40, 257)
    check(*inputs(H=1, T=300, Dh=Dh, dtype=torch.float16), segments, first.int())


def test_the_logarithm_of_the_sum(small_tiles):
    q, k, v = inputs(T=33, requires_grad=False)
    _, lse, turned = torch.ops.tutelage.causal_attention(q, k, v, None, None, None)
    scores = (q.double() @ k.double().mT / 8**0.5).masked_fill(
        ~torch.ones(33, 33, device=DEVICE).tril().bool(), -torch.inf
    )
    torch.testing.assert_close(
        lse.double() * torch.log(torch.tensor(2.0)).item(), scores.logsumexp(-1), rtol=1e-5, atol=1e-5
    )
    assert turned.numel() == 0


def test_gradient_never_crosses_a_document(small_tiles):
    segments, first = packed(1, 15, 3, 14)
    q, k, v = inputs(T=33)
    out = causal_attention(q, k, v, first)
    for document in segments.unique():
        inside = segments[0] == document
        for grad in torch.autograd.grad(out[:, :, inside].sum(), (q, k, v), retain_graph=True):
            assert torch.count_nonzero(grad[:, :, ~inside]) == 0
            assert grad[:, :, inside].abs().sum() > 0 or inside.sum() == 1


def test_gradient_never_comes_from_the_future(small_tiles):
    q, k, v = inputs(T=33)
    out = causal_attention(q, k, v)
    for t in (0, 15, 16, 31):
        grads = torch.autograd.grad(out[:, :, t].sum(), (k, v), retain_graph=True)
        assert all(torch.count_nonzero(grad[:, :, t + 1 :]) == 0 for grad in grads)
        assert all(torch.count_nonzero(grad[:, :, t]) > 0 for grad in grads[1:])


@pytest.mark.parametrize("documents", [(7, 20, 23), (16, 16, 18)])
def test_other_documents_change_nothing_at_all(small_tiles, documents):
    segments, first = packed(*documents)
    q, k, v = inputs()
    inside = segments[0] == 1
    scale = torch.where(inside, 1.0, 1e6)[:, None]
    before = with_gradients(causal_attention, q, k, v, first)
    after = with_gradients(causal_attention, q * scale, k * scale, v * scale, first)
    for x, y in zip(before, after, strict=True):
        assert torch.equal(x[:, :, inside], y[:, :, inside])


def test_overflow_in_other_documents_stays_there(small_tiles):
    """Products of masked pairs may be infinite: they are left out, not multiplied by zero."""
    segments, first = packed(7, 20, 23)
    q, k, v = inputs()
    inside = (segments[0] == 1)[:, None]
    out = causal_attention(q, k, v * 10, first)
    huge = torch.where(inside, 1.0, 3e38).expand_as(out)
    for mine, true in zip(
        torch.autograd.grad(out, (q, k, v), huge, retain_graph=True),
        torch.autograd.grad(out, (q, k, v), inside.float().expand_as(out)),
        strict=True,
    ):
        assert torch.equal(mine[:, :, 7:27], true[:, :, 7:27])


def test_blocks_of_other_documents_are_never_read(small_tiles):
    """Keys and values of earlier documents, and queries of later ones, may be NaN where a block holds nothing else."""
    _, first = packed(32, 32, 32)
    q, k, v = inputs(T=96)
    q_nan, k_nan, v_nan = (x.detach().clone() for x in (q, k, v))
    k_nan[:, :, :32], v_nan[:, :, :32], q_nan[:, :, 64:] = torch.nan, torch.nan, torch.nan
    before = with_gradients(causal_attention, q, k, v, first)
    after = with_gradients(causal_attention, q_nan, k_nan, v_nan, first)
    for x, y in zip(before, after, strict=True):
        assert torch.equal(x[:, :, 32:64], y[:, :, 32:64])


def test_every_token_sees_at_least_itself(small_tiles):
    """A document per token: each returns its own value, however large the scores."""
    q, k, v = inputs(H=2, K=2, T=33)
    out = causal_attention(q * 1e3, k, v, torch.arange(33, device=DEVICE)[None])
    torch.testing.assert_close(out, v)


def test_a_query_that_sees_nothing_gives_zeros(small_tiles):
    """Not a document, but never NaN either."""
    nothing = torch.arange(1, 34, device=DEVICE)[None]
    assert all(torch.count_nonzero(x) == 0 for x in with_gradients(causal_attention, *inputs(T=33), nothing))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, BF16])
def test_the_same_bits_again(small_tiles, dtype):
    _, first = packed(7, 20, 23)
    runs = [with_gradients(causal_attention, *inputs(dtype=dtype), first, angles(50, 8)) for _ in range(2)]
    assert all(torch.equal(x, y) for x, y in zip(*runs, strict=True))


def test_nothing_is_read_from_memory_that_was_only_allocated(small_tiles, monkeypatch):
    segments, first = packed(7, 10, 16)
    arguments = inputs(T=33, Dh=10)

    def poison(function):
        def poisoned(*args, **kwargs):
            x = function(*args, **kwargs)
            return x.fill_(torch.nan) if x.is_floating_point() else x

        return poisoned

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, poison(getattr(owner, name)))
    assert torch.empty(3).isnan().all()
    ours = check(*arguments, segments, first, angles(33, 10))
    assert all(x.isfinite().all() for x in ours)


@pytest.mark.parametrize("shape", ["expanded", "rows expanded", "transposed"])
def test_gradients_of_any_strides(small_tiles, shape):
    q, k, v = inputs(T=33)
    out = causal_attention(q, k, v)
    grad = {
        "expanded": torch.full((), 0.5, device=DEVICE).expand(out.shape),
        "rows expanded": torch.linspace(-1, 1, 8, device=DEVICE).expand(out.shape),
        "transposed": torch.linspace(-1, 1, out.numel(), device=DEVICE).view(1, 1, 8, 33).transpose(2, 3),
    }[shape]
    expected = torch.autograd.grad(reference.attention(q, k, v), (q, k, v), grad.contiguous())
    for mine, true in zip(torch.autograd.grad(out, (q, k, v), grad), expected, strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-4, atol=1e-5)


def test_inputs_of_any_strides(small_tiles):
    """Slices of one projection, a last dimension that is not contiguous, and tables of different strides."""
    projected = torch.randn(1, 33, 4 * 8, device=DEVICE).view(1, 33, 4, 8).transpose(1, 2)
    q, k, v = projected.split((2, 1, 1), 1)
    v = v.mT.contiguous().mT
    cos, sin = angles(33, 8)
    check(q, k, v, rope=(cos, sin.mT.contiguous().mT))
    assert v.stride(-1) != 1 != q.stride(1)
    twice = [x.expand(2, -1, -1, -1) for x in (q, k, v, cos, sin)]
    both = causal_attention(*twice[:3], None, tuple(twice[3:]))
    assert torch.equal(both[0], both[1])


def test_the_result_lies_as_the_projection_after_it_wants_it(small_tiles):
    q, k, v = inputs(T=33)
    out = causal_attention(q, k, v)
    assert out.transpose(1, 2).is_contiguous()
    assert all(x.transpose(1, 2).is_contiguous() for x in torch.autograd.grad(out.sum(), (q, k, v)))


@exact
@pytest.mark.parametrize("rotated", [False, True])
def test_gradcheck(small_tiles, rotated):
    q, k, v = inputs(H=2, T=4, Dh=4, dtype=torch.float64)
    rope = angles(4, 4, dtype=torch.float64) if rotated else None
    first = torch.tensor([[0, 0, 2, 2]])
    assert torch.autograd.gradcheck(lambda *x: causal_attention(*x, first, rope), (q, k, v), fast_mode=True)


@pytest.mark.parametrize("extras", [False, True])
def test_opcheck(small_tiles, extras):
    q, k, v = inputs(T=5)
    rest = (packed(2, 3)[1], *angles(5, 8)) if extras else (None, None, None)
    torch.library.opcheck(torch.ops.tutelage.causal_attention, (q, k, v, *rest))
    out, lse, turned = torch.ops.tutelage.causal_attention(q, k, v, *rest)
    assert (out.requires_grad, lse.requires_grad, turned.requires_grad) == (True, False, False)
    plain = [x.detach() for x in (torch.ones_like(out), q, turned if extras else k, v, out, lse)]
    torch.library.opcheck(torch.ops.tutelage.causal_attention_backward, (*plain, *rest))


def test_compiled_into_one_graph(small_tiles):
    _, first = packed(7, 26)

    def layer(q, k, v, first, rope):
        return causal_attention(q * 2, k, v, first, rope).transpose(1, 2).reshape(1, 33, -1).sin()

    arguments = (*inputs(T=33), first, angles(33, 8))
    ours = with_gradients(torch.compile(layer, fullgraph=True, backend="aot_eager"), *arguments)
    assert all(torch.equal(x, y) for x, y in zip(ours, with_gradients(layer, *arguments), strict=True))


@pytest.mark.parametrize("shape", [(0, 2, 5, 8), (1, 2, 0, 8)])
def test_nothing_in_nothing_out(shape):
    q, k, v = (torch.zeros(shape, device=DEVICE, requires_grad=True) for _ in range(3))
    out = causal_attention(q, k, v)
    out.sum().backward()
    assert out.shape == q.grad.shape == shape


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"q": (1, 2, 5, 9), "k": (1, 1, 5, 9), "v": (1, 1, 5, 9)},
            r"even number .*, got 9: q \(1, 2, 5, 9\)",
        ),
        ({"q": (1, 2, 5, 130), "k": (1, 1, 5, 130), "v": (1, 1, 5, 130)}, "got 130"),
        ({"q": (1, 2, 5, 0), "k": (1, 1, 5, 0), "v": (1, 1, 5, 0)}, "got 0"),
        ({"k": (1, 3, 5, 8), "v": (1, 3, 5, 8)}, "3 key/value heads do not divide 2"),
        ({"k": (1, 0, 5, 8), "v": (1, 0, 5, 8)}, "0 key/value heads do not divide 2"),
        ({"q": (2, 5, 8)}, r"q must be \(B, H, T, Dh\)"),
        ({"k": (1, 1, 6, 8), "v": (1, 1, 6, 8)}, r"k \(1, 1, 6, 8\)"),
        ({"v": (1, 2, 5, 8)}, r"v \(1, 2, 5, 8\)"),
        ({"dtype": torch.float64 if GPU else torch.bfloat16}, "dtype"),
        ({"dtype": torch.int32}, "dtype"),
        ({"first": torch.zeros(1, 4, dtype=torch.int32)}, r"first must be \(B, T\) .*\(1, 4\)"),
        ({"first": torch.zeros(1, 5)}, "first must be .*float32"),
        ({"rope": angles(4, 8)}, r"rope must be .*\(1, 1, 4, 8\)"),
        ({"rope": (angles(5, 8)[0], angles(5, 4)[0])}, r"rope must be .*\(1, 1, 5, 4\)"),
    ],
)
def test_refusals_come_before_any_launch(change, message, monkeypatch):
    monkeypatch.setattr(module, "_forward", None)
    shapes = {"q": (1, 2, 5, 8), "k": (1, 1, 5, 8), "v": (1, 1, 5, 8)}
    q, k, v = (torch.zeros(change.get(name, shape), dtype=change.get("dtype")) for name, shape in shapes.items())
    with pytest.raises(ValueError, match=message):
        causal_attention(q, k, v, change.get("first"), change.get("rope"))


def test_one_dtype_for_all():
    q, k, v = inputs(T=5)
    with pytest.raises(ValueError, match="share one dtype"):
        causal_attention(q, k.half(), v)


@exact
def test_compiled_kernels_want_a_gpu(monkeypatch):
    monkeypatch.setattr(module, "INTERPRETED", False)
    with pytest.raises(ValueError, match="needs CUDA tensors, got cpu"):
        causal_attention(*inputs(T=5))


def test_products_of_fp32_are_exact_unless_the_user_allows_otherwise():
    q, k, _ = inputs()
    assert module._plan("forward", q, k)[1]["PRECISION"] == "ieee"
    torch.set_float32_matmul_precision("high")
    assert module._plan("forward", q, k)[1]["PRECISION"] == "tf32"
