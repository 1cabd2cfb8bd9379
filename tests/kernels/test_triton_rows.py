"""The Triton row kernels where they have several tiles, among them those of the table at the real vocabulary."""

import pytest
import torch

from tests.kernels.device import DEVICE, GPU
from tests.kernels.test_rows import MIXES, logits, specified, sums
from tutelage.kernels import reference, triton_rows
from tutelage.kernels.divergences import KINDS
from tutelage.kernels.rows import Work

V = 49_152
LOW = pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        (torch.float32, 5e-4),
        (torch.float16, 1e-3),
        pytest.param(torch.bfloat16, 1e-2, marks=[pytest.mark.gpu, pytest.mark.skipif(not GPU, reason="GPU")]),
    ],
)


def dense(N, V, seed=0, dtype=torch.float64, spread=2.0):
    generator = torch.Generator().manual_seed(seed)
    s, t = torch.randn(2, N, V, generator=generator, dtype=torch.float64) * spread
    return s.to(DEVICE, dtype), t.to(DEVICE, dtype), torch.randint(V, (N,), generator=generator).to(DEVICE)


def eagerly(s, t, targets, kind, kd, ce, temperature, mix):
    """Sums and gradient by autograd, in the dtype of the logits."""
    s = s.detach().clone().requires_grad_()
    divergence = reference.divergence(kind, s, t, temperature, mix).sum()
    cross_entropy = -s.log_softmax(-1).gather(1, targets[:, None]).sum()
    (kd * temperature**2 * divergence + ce * cross_entropy).backward()
    return torch.stack((divergence, cross_entropy)).detach(), s.grad


@pytest.fixture
def small_tiles(monkeypatch):
    """Sixteen tokens at a time, so that a short row has several tiles and a ragged last one."""
    tile = triton_rows.Tile(16, 4, 2)
    monkeypatch.setattr(triton_rows, "TILES", dict.fromkeys(triton_rows.TILES, tile))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("V", [1, 16, 17, 75])
def test_several_tiles_and_a_ragged_one(small_tiles, kind, temperature, V):
    s, t, targets = dense(4, V)
    knobs = [0.8, 0.2, temperature, MIXES[kind]]
    found = sums("triton", s, t, targets, knobs, kind=kind, tempered=temperature != 1)
    torch.testing.assert_close(found, eagerly(s, t, targets, kind, *knobs), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
def test_several_tiles_of_a_sparse_teacher(small_tiles, kind):
    s, teacher, targets = logits(V=75, k=7, temperature=2.0)
    knobs = [0.8, 0.2, 2.0, MIXES[kind]]
    found = sums("triton", s, teacher, targets, knobs, kind=kind)
    torch.testing.assert_close(found, specified(kind, s, teacher, targets, *knobs), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("order", ["rising", "falling"])
def test_a_maximum_that_moves_from_tile_to_tile(small_tiles, order):
    """Logits that rise by hundreds: what was summed before must shrink with every new maximum."""
    s, t, targets = dense(3, 96)
    slope = torch.linspace(0, 400, 96, dtype=torch.float64, device=DEVICE)
    s, t = (x + (slope if order == "rising" else slope.flip(0)) for x in (s, t))
    knobs = [0.8, 0.2, 1.0, 0.0]
    found = sums("triton", s, t, targets, knobs, tempered=False)
    torch.testing.assert_close(found, eagerly(s, t, targets, "forward_kl", *knobs), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
@LOW
def test_production_tiles_at_the_real_vocabulary(kind, dtype, tolerance):
    """|truth − ours| ≤ |truth − plain arithmetic in the same dtype| + tolerance."""
    s, t, targets = dense(2, V, dtype=dtype)
    knobs = [0.8, 0.2, 2.0, MIXES[kind]]
    truth = eagerly(s.double(), t.double(), targets, kind, *knobs)
    plain = eagerly(s, t, targets, kind, *knobs)
    found = sums("triton", s, t, targets, knobs, kind=kind)
    for exact, eager, ours in zip(truth, plain, found, strict=True):
        allowed = (exact - eager).abs().nan_to_num(torch.inf) + tolerance * exact.abs().max()
        assert ((exact - ours).abs() <= allowed.max()).all()


@LOW
def test_a_sparse_teacher_at_the_real_vocabulary(dtype, tolerance):
    s, t, targets = dense(2, V, dtype=dtype)
    top = t.double().log_softmax(-1).topk(64)
    teacher = triton_rows.TopK(top.indices, top.values.float())
    targets[0] = teacher.ids[0, 3]
    truth, slope = specified("forward_kl", s, teacher, targets, 0.8, 0.2, 1.0, 0.0)
    found, grad = sums("triton", s, teacher, targets, [0.8, 0.2, 1.0, 0.0])
    torch.testing.assert_close(found.double(), truth, rtol=1e-4, atol=1e-4)
    assert (grad - slope).abs().max() <= tolerance * slope.abs().max()


@pytest.mark.parametrize("noise", [3.0, 0.03, 0.003])
def test_kl_error_against_fp64_on_the_same_logits(noise):
    _, t, targets = dense(4, 4096, dtype=torch.float32, spread=4.0)
    s = t + noise * torch.randn(4, 4096, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    truth = reference.forward_kl(s.double(), t.double()).sum()
    found, _ = sums("triton", s, t, targets, [1.0, 0.0, 1.0, 0.0], tempered=False)
    assert abs(found[0].double() - truth) <= 1e-5 * truth + 4e-6


def test_nothing_is_read_that_was_not_written(monkeypatch):
    s, t, targets = dense(5, 101)
    expected = sums("triton", s, t, targets, [0.8, 0.2, 2.0, 0.0])
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(torch.nan))
    torch.testing.assert_close(sums("triton", s, t, targets, [0.8, 0.2, 2.0, 0.0]), expected, rtol=0, atol=0)


def test_what_lies_behind_the_vocabulary_is_left_alone():
    s, t, targets = dense(5, 101)
    wide = torch.cat((s, torch.full((5, 27), torch.nan, dtype=s.dtype, device=DEVICE)), 1)
    expected = sums("triton", s, t, targets, [0.8, 0.2, 2.0, 0.0])
    found, grad = sums("triton", wide, t, targets, [0.8, 0.2, 2.0, 0.0], vocab_size=101)
    torch.testing.assert_close((found, grad[:, :101]), expected, rtol=0, atol=0)
    assert grad[:, 101:].isnan().all()


def test_bitwise_repeat():
    s, t, targets = dense(5, 5000, dtype=torch.float32)
    first, again = (sums("triton", s, t, targets, [0.8, 0.2, 2.0, 0.0]) for _ in range(2))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])


def test_nan_in_a_teacher_row_shows_in_the_loss():
    s, t, targets = dense(3, 50)
    t[1, 7] = torch.nan
    assert sums("triton", s, t, targets, [1.0, 0.0, 1.0, 0.0])[0][0].isnan()


@pytest.mark.parametrize("target", [-100, -1, 101, 2**40])
@pytest.mark.parametrize("sparse", [False, True])
def test_a_target_outside_of_the_vocabulary_is_not_read_and_shows_in_the_loss(sparse, target):
    """The row before and the one after hold numbers that would be taken for its logit."""
    s, t, targets = dense(3, 101)
    targets[1] = target
    teacher = triton_rows.TopK(targets[:, None] * 0 + 7, t[:, :1] * 0 - 1.0) if sparse else t
    found, _ = sums("triton", s, teacher, targets, [1.0, 0.0, 1.0, 0.0])
    assert found[1] == torch.inf
    assert found[0].isfinite()


@pytest.mark.parametrize("bad", [-1, 101, 120, 2**33])
@pytest.mark.parametrize("with_grad", [True, False])
def test_ids_outside_of_the_vocabulary_touch_no_memory_and_show_in_the_loss(bad, with_grad):
    s, t, targets = dense(3, 128)
    top = t[:, :101].log_softmax(-1).topk(4)
    top.indices[1, 2] = bad
    wide = s.clone()
    found, after = sums(
        "triton", wide, triton_rows.TopK(*reversed(top)), targets % 101, [1.0, 0.5, 1.0, 0.0], vocab_size=101,
        with_grad=with_grad,
    )  # fmt: skip
    assert found[1].isnan()
    assert torch.equal(after[:, 101:], s[:, 101:])
    if not with_grad:
        assert torch.equal(after, s)


def test_a_teacher_of_any_strides():
    s, t, targets = dense(4, 75)
    expected = sums("triton", s, t, targets, [0.8, 0.2, 2.0, 0.0])
    for other in (t.t().contiguous().t(), t.repeat_interleave(2, 1)[:, ::2], t.repeat_interleave(2, 0)[::2]):
        torch.testing.assert_close(sums("triton", s, other, targets, [0.8, 0.2, 2.0, 0.0]), expected, rtol=0, atol=0)
    spread = targets.repeat_interleave(2)[::2]
    torch.testing.assert_close(sums("triton", s, t, spread, [0.8, 0.2, 2.0, 0.0]), expected, rtol=0, atol=0)


def test_logits_that_do_not_lie_row_by_row_are_refused():
    s, t, targets = dense(4, 75)
    work = Work("forward_kl", 75, False, True, False, False)
    with pytest.raises(ValueError, match="row by row"):
        triton_rows.rows(s.t().contiguous().t(), t, targets, torch.ones(4, device=DEVICE), work)
    with pytest.raises(ValueError, match="at most 1024 tokens of a sparse teacher, got 1025"):
        triton_rows.rows(s, triton_rows.TopK(targets[:, None].expand(4, 1025), t), targets, s[0, :4], work)
