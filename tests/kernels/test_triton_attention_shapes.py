"""Any shape, any documents: the Triton attention against the specification."""

import pytest
import torch

pytest.importorskip("hypothesis")
pytest.importorskip("triton")
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.device import DEVICE
from tutelage.kernels import reference
from tutelage.kernels import triton_attention as module
from tutelage.kernels.triton_attention import Tile, causal_attention

# what numpy says about masked entries, which are computed and not selected
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
sizes = st.sampled_from([16, 32])
tiles = st.builds(Tile, sizes, sizes, st.just(4), st.just(1))
documents = st.lists(st.one_of(st.integers(1, 24), st.sampled_from([1, 16, 32])), min_size=1, max_size=3)


@given(
    plan=st.fixed_dictionaries({"forward": tiles, "dq": tiles, "dkv": tiles}),
    documents=documents,
    half=st.integers(1, 24),
    heads=st.sampled_from([(1, 1), (2, 1), (2, 2), (3, 1)]),
    packed=st.booleans(),
    scale=st.sampled_from([1e-2, 1.0, 30.0]),
)
@settings(max_examples=15, deadline=None)
def test_value_and_gradients(plan, documents, half, heads, packed, scale):
    (H, K), T = heads, sum(documents)
    generator = torch.Generator().manual_seed(T)
    q, k, v, weight = (
        torch.randn(1, n, T, 2 * half, generator=generator).to(DEVICE, torch.float16) for n in (H, K, K, H)
    )
    q = q * scale
    lengths = torch.tensor(documents)
    segments = torch.arange(len(lengths)).repeat_interleave(lengths)
    first = (lengths.cumsum(0) - lengths)[segments][None].to(DEVICE) if packed else None

    def run(function, dtype, *rest):
        leaves = [x.to(dtype).requires_grad_() for x in (q, k, v)]
        out = function(*leaves, *rest)
        return [x.detach().double() for x in (out, *torch.autograd.grad(out, leaves, weight.to(dtype)))]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "TILES", dict.fromkeys(module.TILES, plan))
        ours = run(causal_attention, torch.float16, first)
    rest = segments[None].to(DEVICE) if packed else None
    truth, eager = (run(reference.attention, dtype, rest) for dtype in (torch.float64, torch.float16))
    for mine, true, plain in zip(ours, truth, eager, strict=True):
        assert (true - mine).abs().max() <= 1.5 * (true - plain).abs().max() + 2e-3 * max(1, true.abs().max())
