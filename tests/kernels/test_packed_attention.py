"""How documents are handed to PyTorch's variable-length attention, whose signature is another in every version."""

from itertools import pairwise

import pytest
import torch

from tests.kernels.device import DEVICE, GPU
from tests.kernels.test_attention import inputs, some_rope, some_segments
from tutelage.kernels import attention as module
from tutelage.kernels import packed_attention, reference
from tutelage.kernels.attention import Sight, attention, documents, prepare, rotate, so_far


def plainly(q, k, v, cu_q, cu_k, max_q, max_k, causal):
    """What every version computes: `q (N, H, Dh)`, `k, v (N, K, Dh)`, document after document."""
    assert cu_q is cu_k
    assert cu_q.dtype == torch.int32
    ends = cu_q.tolist()
    assert ends[0] == 0
    assert ends[-1] == len(q) == len(k) == len(v)
    assert max(b - a for a, b in pairwise(ends)) <= min(max_q, max_k)
    assert causal
    parts = [[x[a:b].transpose(0, 1)[None] for x in (q, k, v)] for a, b in pairwise(ends)]
    return torch.cat([reference.attention(*part)[0].transpose(0, 1) for part in parts])


def torch_2_10(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None):
    assert query.shape == key.shape
    return plainly(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal)


def torch_2_11(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1)
):
    assert query.shape == key.shape
    return plainly(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, window_size == (-1, 0))


def torch_2_12(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1),
    enable_gqa=False, seqused_k=None, block_table=None, num_splits=None,
):  # fmt: skip
    assert enable_gqa or query.shape == key.shape
    return plainly(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, window_size == (-1, 0))


@pytest.fixture(params=[torch_2_10, torch_2_11, torch_2_12])
def version(request, monkeypatch):
    """A PyTorch of that version, and a GPU that it runs on."""
    calls = []

    def counted(*args, **kwargs):
        calls.append(kwargs)
        return request.param(*args, **kwargs)

    monkeypatch.setattr(packed_attention, "varlen_attn", counted)
    monkeypatch.setattr(packed_attention, "OPTIONS", packed_attention.options(request.param))
    monkeypatch.setattr(module, "_form", lambda *_: "packed")
    yield request.param
    assert calls


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("rotated", [False, True])
def test_value_and_gradients(version, kv_heads, rotated):
    ours = inputs(K=kv_heads, requires_grad=True)
    truth = [x.detach().requires_grad_() for x in ours]
    segments, rope = some_segments(), some_rope() if rotated else None
    out = attention(*ours, documents(segments), rope)
    turned = [rotate(x, *rope) for x in truth[:2]] if rope else truth[:2]
    expected = reference.attention(*turned, truth[2], segments)
    torch.testing.assert_close(out, expected)
    weight = torch.randn_like(expected)
    gradients = [torch.autograd.grad((y * weight).sum(), x) for y, x in ((out, ours), (expected, truth))]
    torch.testing.assert_close(*gradients)


def test_a_row_is_a_document_of_its_own(version):
    """Two rows of one number each: the second does not go on with the first."""
    q, k, v = inputs()
    segments = torch.zeros(2, 17, dtype=torch.long, device=DEVICE)
    torch.testing.assert_close(attention(q, k, v, documents(segments)), reference.attention(q, k, v))


def test_the_installed_version_is_known():
    if packed_attention.varlen_attn is None:
        assert "torch.nn.attention.varlen" in packed_attention.lacks(torch.device("cuda"), torch.bfloat16, 64)
    else:
        import inspect

        known = inspect.signature(packed_attention.varlen_attn).parameters
        assert set(packed_attention.OPTIONS["causal"]) | set(packed_attention.OPTIONS["sharing"]) <= set(known)
        assert list(known)[:7] == ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]


@pytest.fixture
def able(monkeypatch):
    """A GPU that can do it."""
    monkeypatch.setattr(packed_attention, "varlen_attn", torch_2_12)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.version, "hip", None)


def test_which_form_is_taken(able):
    gpu, cpu = torch.device("cuda", 0), torch.device("cpu")
    packed, cached = documents(torch.zeros(1, 3)), so_far(torch.zeros(1, 3), 3)
    assert module._form("eager", packed, gpu, torch.bfloat16, 64) == "packed"
    assert module._form("compile", packed, gpu, torch.float16, 64) == "packed"
    assert module._form("eager", packed, gpu, torch.float32, 64) == "mask"
    assert module._form("eager", packed, gpu, torch.bfloat16, 12) == "mask"
    assert module._form("eager", packed, gpu, torch.bfloat16, 320) == "mask"
    assert module._form("eager", cached, gpu, torch.bfloat16, 64) == "mask"
    assert module._form("eager", packed, cpu, torch.bfloat16, 64) == "mask"
    assert module._form("eager", None, gpu, torch.bfloat16, 64) == "plain"
    assert module._form("triton", packed, gpu, torch.bfloat16, 64) == "triton"


@pytest.mark.parametrize(
    ("change", "lack"),
    [
        (lambda m: m.setattr(packed_attention, "varlen_attn", None), "PyTorch 2.10 or later"),
        (lambda m: m.setattr(torch.version, "hip", "6.4"), "a build of PyTorch with flash attention"),
        (lambda m: m.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: False), "a build of"),
        (lambda m: m.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5)), "compute capability 8.0"),
    ],
)
def test_what_is_missing_is_said_and_the_mask_serves(able, monkeypatch, change, lack):
    assert packed_attention.lacks(torch.device("cuda"), torch.bfloat16, 64) is None
    change(monkeypatch)
    assert lack in packed_attention.lacks(torch.device("cuda"), torch.bfloat16, 64)
    sight = documents(torch.zeros(1, 3))
    assert module._form("eager", sight, torch.device("cuda", 0), torch.bfloat16, 64) == "mask"


@pytest.mark.skipif(GPU, reason="a GPU makes the offsets")
def test_what_all_layers_ask_for_is_made_before_them():
    x = torch.zeros(2, 17, 8, device=DEVICE)
    sight = prepare(documents(some_segments()), x, 8)
    assert sight._mask is not None
    assert sight._offsets is None


@pytest.mark.parametrize("form", ["mask", "packed"])
def test_each_form_is_prepared(monkeypatch, form):
    monkeypatch.setattr(module, "_form", lambda *_: form)
    sight = prepare(documents(some_segments()), torch.zeros(2, 17, 8, device=DEVICE), 8)
    assert (sight._mask is not None, sight._offsets is not None) == (form == "mask", form == "packed")


def test_a_kernel_that_honours_one_end_refuses_the_other():
    q, k, v = inputs(dtype=torch.float32)
    bounds = torch.zeros(2, 17, dtype=torch.int32, device=DEVICE)
    for sight in (Sight(None, bounds, 17), Sight(bounds, bounds, 17)):
        with pytest.raises(ValueError, match="is causal and takes no other end: choose impl 'eager'"):
            attention(q, k, v, sight, impl="triton")
    for sight in (Sight(bounds, bounds, 17), Sight(bounds, None, 17)):
        with pytest.raises(ValueError, match="sees it from its start: choose impl 'eager'"):
            module.cached_attention(q, k, v, sight, impl="triton")
    both = Sight(torch.full_like(bounds, 1), torch.full_like(bounds, 3), 17)  # a window that PyTorch's op does see
    expected = torch.nn.functional.scaled_dot_product_attention(q, k[:, :, 1:4], v[:, :, 1:4], enable_gqa=True)
    torch.testing.assert_close(attention(q, k, v, both, impl="eager"), expected)


def test_heads_are_repeated_where_no_fused_kernel_shares_them(monkeypatch):
    """Off the CPU: 16-bit without a mask is flash attention, which shares them; the others would hold all scores."""
    calls = []
    fused = module.F.scaled_dot_product_attention

    def recorded(q, k, v, **options):
        calls.append((k.shape[1], options["enable_gqa"]))
        return fused(q, k, v, **options)

    monkeypatch.setattr(module.F, "scaled_dot_product_attention", recorded)
    q, k, v = (torch.empty(1, heads, 5, 8, device="meta") for heads in (4, 2, 2))
    sight = documents(torch.empty(1, 5, device="meta"))
    assert attention(q, k, v).shape == q.shape
    assert attention(q, k, v, sight).shape == q.shape
    assert module.cached_attention(q, k, v, so_far(torch.empty(1, 5, device="meta"), 5)).shape == q.shape
    assert calls == [(4, False), (4, False), (2, False)]  # a cache is never repeated: its queries are stacked


def test_stacked_queries_are_the_same():
    """What a GPU does with a cache and grouped heads."""
    q, k, v = inputs()
    sight = so_far(torch.arange(14, 17, device=DEVICE).expand(2, 3), 17)
    expected = reference.attention(q, k, v)[:, :, -3:]
    torch.testing.assert_close(module._stacked(q[:, :, -3:], k, v, sight.mask), expected)
