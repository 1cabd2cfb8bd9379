"""Decoding attention in Triton, run by its interpreter where there is no GPU, against plain fp64 arithmetic."""

from types import SimpleNamespace

import pytest
import torch

from tests.kernels.device import DEVICE
from tests.kernels.device import GPU as CUDA
from tutelage.kernels import triton_decode as module
from tutelage.kernels.triton_decode import decode_attention

TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-4, torch.float16: 1e-3, torch.bfloat16: 1e-2}
DTYPES = [torch.float32, torch.float16, *([] if CUDA else [torch.float64])]


def cached(B=2, K=2, G=2, T=3, L=150, Dh=64, dtype=torch.float32, last=None):
    """Queries, and a cache that is one layer's slice of a larger one: garbage stands wherever nobody may look."""
    generator = torch.Generator(DEVICE).manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64, device=DEVICE).to(dtype)

    q = normal(B, T, K * G, Dh).transpose(1, 2)  # as a projection leaves it
    if last is None:  # one row's cache is full, the next holds its new tokens only
        last = torch.arange(L - T, L)[None] - torch.tensor([0, L - T, L // 2]).repeat(B)[:B, None]
    last = torch.as_tensor(last, device=DEVICE)
    keys, values = normal(2, B, K, L + 9, Dh), normal(2, B, K, L + 9, Dh)
    unseen = torch.arange(L + 9, device=DEVICE) > last.max(1).values[:, None]
    keys.masked_fill_(unseen[:, None, :, None], torch.nan)
    values.masked_fill_(unseen[:, None, :, None], -torch.inf)
    return q, keys[1][:, :, :L], values[1][:, :, :L], last


def table(B, T, Dh, seed=1):
    """cos and sin of random angles: any rotation will do."""
    angles = torch.rand(B, 1, T, Dh // 2, generator=torch.Generator().manual_seed(seed)).to(DEVICE) * 6
    return torch.cat((angles, angles), -1).cos(), torch.cat((angles, angles), -1).sin()


def plain(q, k, v, last, rope=None, dtype=torch.float64):
    """The definition, with everything held and computed in one dtype."""
    slots = torch.arange(k.shape[2], device=DEVICE)
    known = (slots <= last.max(1).values[:, None])[:, None, :, None]
    k, v = (torch.where(known, x, 0).to(dtype).repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    q = q.to(dtype)
    if rope is not None:
        cos, sin = (x.to(dtype) for x in rope)
        first, second = q.chunk(2, -1)
        q = q * cos + torch.cat((-second, first), -1) * sin
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    return scores.masked_fill(slots > last[:, None, :, None], -torch.inf).softmax(-1) @ v


def assert_faithful(out, q, k, v, last, rope=None):
    """|truth − ours| ≤ |truth − eager| + tolerance, which no NaN satisfies."""
    assert out.dtype == q.dtype
    truth = plain(q, k, v, last, rope)
    eager = plain(q, k, v, last, rope, q.dtype)
    assert (truth - out).abs().max() <= (truth - eager).abs().max() + TOLERANCE[q.dtype]


@pytest.fixture
def forced(monkeypatch):
    """Sets the number of splits."""
    return lambda splits: monkeypatch.setattr(module, "_splits", lambda *_: splits)


@pytest.fixture(autouse=True)
def _poisoned():
    """Fresh memory holds NaN, so that nobody reads what was never written."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.ones(1).new_empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("T", "G", "Dh"), [(1, 1, 64), (1, 8, 128), (3, 3, 40), (3, 1, 96), (5, 3, 8), (5, 8, 64)])
def test_value(T, G, Dh, dtype):
    inputs = cached(T=T, G=G, Dh=Dh, dtype=dtype)
    rope = table(2, T, Dh)
    assert_faithful(decode_attention(*inputs, rope), *inputs, rope)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_queries_are_many_tiles(dtype):
    inputs = cached(B=1, K=1, G=3 if dtype == torch.float16 else 1, T=70, L=90, Dh=40, dtype=dtype)
    assert_faithful(decode_attention(*inputs), *inputs)


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="bf16 products are garbage in the interpreter")
@pytest.mark.parametrize("Dh", [40, 64, 128])
@pytest.mark.parametrize(("T", "G", "L"), [(1, 3, 700), (5, 8, 3000), (70, 3, 150)])
def test_value_bf16(T, G, L, Dh):
    inputs = cached(B=3, T=T, G=G, L=L, Dh=Dh, dtype=torch.bfloat16)
    rope = table(3, T, Dh)
    assert_faithful(decode_attention(*inputs, rope), *inputs, rope)


@pytest.mark.parametrize("splits", [1, 2, 4, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_any_number_of_splits(forced, splits, dtype):
    """16 are more than there are blocks of keys: most see nothing, and of the short row all but one."""
    forced(splits)
    inputs = cached(T=2, Dh=8, L=400, dtype=dtype, last=[[398, 399], [0, 1]])
    assert_faithful(decode_attention(*inputs), *inputs)


def test_splits_that_differ_by_many_orders_are_rescaled(forced):
    """The largest score stands in the first split of one row and in the last of the other."""
    forced(4)
    q, k, v, _ = cached(T=1, L=256, last=[[255], [255]])
    k[0, :, :64] *= 9
    k[1, :, 192:] *= 9
    last = torch.full((2, 1), 255, device=DEVICE)
    assert_faithful(decode_attention(q, k, v, last), q, k, v, last)


@pytest.mark.parametrize("slots", [1, 31, 32, 33, 64, 65])
def test_edges_of_blocks(slots):
    """A row that ends at, before and after the edge of a block, with the largest score at its own slot."""
    q, k, v, last = cached(B=1, T=1, L=65, last=[[slots - 1]])
    k[:, :, slots - 1] = 3 * q[:, ::2, 0]
    assert_faithful(decode_attention(q, k, v, last), q, k, v, last)


def test_each_query_sees_its_own_slot_and_none_after():
    """`last` need not rise by one: any query may see anything."""
    inputs = cached(T=4, last=[[0, 149, 7, 32], [31, 0, 0, 96]])
    assert_faithful(decode_attention(*inputs), *inputs)
    q, k, v, last = inputs
    out = decode_attention(*inputs)
    torch.testing.assert_close(out[0, :, 0], v[0, :, 0].repeat_interleave(2, 0))  # one slot: its value
    changed = torch.where(torch.arange(150, device=DEVICE)[:, None] == 32, 1e3, v)
    differs = (decode_attention(q, k, changed, last) != out).any(-1).any(1)
    assert differs.tolist() == [[False, True, False, True], [False, False, False, True]]


def test_last_may_lie_beyond_the_cache():
    q, k, v, last = cached(B=1, T=2, L=70)
    everything, more = torch.full_like(last, 69), torch.full_like(last, 2**62)
    assert torch.equal(decode_attention(q, k, v, more), decode_attention(q, k, v, everything))


@pytest.mark.parametrize("splits", [1, 2])
def test_a_query_that_sees_nothing_returns_zero(forced, splits):
    forced(splits)
    q, k, v, last = cached(T=2, last=[[-1, 5], [-1, -1]])
    out = decode_attention(q, k, v, last)
    assert torch.equal(out[0, :, 0], torch.zeros_like(out[0, :, 0]))
    assert torch.equal(out[1], torch.zeros_like(out[1]))
    assert_faithful(out[:1, :, 1:], q[:1, :, 1:], k[:1], v[:1], last[:1, 1:])


def test_one_table_for_all_rows():
    inputs = cached(B=3, T=3, L=70, Dh=64)
    rope = table(1, 3, 64)
    everyone = rope[0].expand(3, -1, -1, -1), rope[1].repeat(3, 1, 1, 1)
    assert torch.equal(decode_attention(*inputs, rope), decode_attention(*inputs, everyone))
    assert_faithful(decode_attention(*inputs, rope), *inputs, rope)


def test_rotation_by_nothing_changes_nothing():
    q, k, v, last = cached(dtype=torch.float32)
    rope = torch.ones(1, 1, 3, 64, device=DEVICE), torch.zeros(1, 1, 3, 64, device=DEVICE)
    assert torch.equal(decode_attention(q, k, v, last, rope), decode_attention(q, k, v, last))


@pytest.mark.parametrize("layout", ["(B, L, K, Dh)", "one cache for keys and values", "rows of another batch"])
def test_strides(layout):
    q, k, v, last = cached()
    expected = decode_attention(q, k, v, last)
    if layout == "(B, L, K, Dh)":
        k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (k, v))
    elif layout == "one cache for keys and values":
        k, v = torch.cat((k, v), -1).chunk(2, -1)
    else:
        k, v, last = (x.repeat_interleave(2, 0)[::2] for x in (k, v, last.int()))
    assert torch.equal(decode_attention(q, k, v, last), expected)


def test_layout_and_bits():
    inputs = cached()
    out = decode_attention(*inputs)
    assert out.shape == (2, 4, 3, 64)
    assert out.transpose(1, 2).is_contiguous()
    assert torch.equal(out, decode_attention(*inputs))


def test_the_number_of_splits_depends_on_shapes(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(multi_processor_count=132))
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert module._splits(3, 32, gpu) == 16  # one row, 2048 keys: two blocks of keys each
    assert module._splits(3, 10_000, gpu) == 64
    assert module._splits(96, 32, gpu) == 2
    assert module._splits(1000, 32, gpu) == 1
    assert [module._splits(1, blocks, cpu) for blocks in (1, 3, 4, 7, 8, 99)] == [1, 1, 2, 2, 4, 4]


@pytest.mark.parametrize("rotated", [False, True])
def test_opcheck(rotated):
    q, k, v, last = cached(T=2, L=70, Dh=8)
    q, v = q.nan_to_num(), v.nan_to_num()
    cos, sin = table(2, 2, 8) if rotated else (None, None)
    torch.library.opcheck(torch.ops.tutelage.decode_attention.default, (q, k, v, last, cos, sin))


def test_compiles_to_one_graph():
    inputs = cached(T=2, L=70, Dh=8)
    rope = table(2, 2, 8)
    compiled = torch.compile(lambda *x: decode_attention(*x, rope) * 2, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*inputs), decode_attention(*inputs, rope) * 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": (2, 4, 64)}, r"q must be \(B, H, T, Dh\).*q \(2, 4, 64\)"),
        ({"q": (3, 4, 3, 64)}, r"q \(3, 4, 3, 64\), k \(2, 2, 150, 64\)"),
        ({"k": (2, 2, 151, 64)}, r"k \(2, 2, 151, 64\), v \(2, 2, 150, 64\)"),
        ({"q": (2, 4, 3, 32)}, r"q \(2, 4, 3, 32\), k \(2, 2, 150, 64\)"),
        ({"q": (2, 5, 3, 64)}, r"K must divide H: q \(2, 5, 3, 64\)"),
        ({"k": (2, 2, 0, 64), "v": (2, 2, 0, 64)}, r"empty.*k \(2, 2, 0, 64\)"),
        ({"k": (2, 0, 150, 64), "v": (2, 0, 150, 64)}, r"empty.*k \(2, 0, 150, 64\)"),
        ({"q": (2, 4, 0, 64), "last": (2, 0)}, r"empty.*q \(2, 4, 0, 64\)"),
        (
            {"q": (2, 4, 3, 7), "k": (2, 2, 9, 7), "v": (2, 2, 9, 7)},
            r"an even number .*, got 7: q",
        ),
        ({"q": (2, 4, 3, 130), "k": (2, 2, 9, 130), "v": (2, 2, 9, 130)}, r"head size .* got 130"),
        ({"last": (3, 2)}, r"last must be \(B, T\) .*last \(3, 2\)"),
        ({"cos": (2, 1, 3, 32)}, r"both be fp32 \(B or 1, 1, T, Dh\), got .*\(2, 1, 3, 32\)"),
        ({"cos": (3, 1, 3, 64)}, r"both be fp32"),
        ({"cos": (1, 1, 3, 64)}, r"both be fp32"),  # sin has a row each
    ],
)
def test_shapes_are_refused(change, message, monkeypatch):
    monkeypatch.setattr(module, "_split_kernel", None)  # nothing is launched
    shapes = {"q": (2, 4, 3, 64), "k": (2, 2, 150, 64), "v": (2, 2, 150, 64), "last": (2, 3), "cos": (2, 1, 3, 64)}
    q, k, v, last, cos = (torch.zeros(change.get(name, shape)) for name, shape in shapes.items())
    with pytest.raises(ValueError, match=message):
        decode_attention(q, k, v, last.long(), (cos, torch.zeros(2, 1, 3, 64)))


def test_dtypes_strides_and_devices_are_refused(monkeypatch):
    q, k, v, last = (x.cpu() for x in cached())
    monkeypatch.setattr(module, "_split_kernel", None)
    with pytest.raises(ValueError, match="one dtype"):
        decode_attention(q, k.half(), v, last)
    with pytest.raises(ValueError, match="one dtype"):
        decode_attention(q.long(), k.long(), v.long(), last)
    elsewhere = torch.float64 if CUDA else torch.bfloat16  # right where this is not run
    with pytest.raises(ValueError, match="one dtype"):
        decode_attention(*(x.to(elsewhere) for x in (q, k, v)), last)
    with pytest.raises(ValueError, match=r"int32 or int64, got torch\.float32"):
        decode_attention(q, k, v, last.float())
    with pytest.raises(ValueError, match="fp32"):
        decode_attention(q, k, v, last, tuple(x.cpu().half() for x in table(2, 3, 64)))
    with pytest.raises(ValueError, match="contiguous"):
        decode_attention(q, k.transpose(2, 3).contiguous().transpose(2, 3), v, last)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ValueError, match="needs CUDA tensors, got cpu"):
        decode_attention(q, k, v, last)


def test_variants_name_every_argument():
    found = module.variants()
    assert len({(variant.name, variant.tile) for variant in found}) == len(found)
    for variant in found:
        assert set(variant.kernel.arg_names) <= set(variant.signature) | set(variant.constexprs)
        assert variant.flops > 0
        assert variant.bytes > 0
