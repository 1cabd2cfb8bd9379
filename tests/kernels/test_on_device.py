"""Every op in the dtype of training, on the device there is, against fp64; and a training step made of them.

|truth − ours| ≤ |truth − plain arithmetic in the same dtype| + tolerance, for values and for gradients. On a GPU at the
sizes and with the kernels of training, within a minute; on a CPU the same in small, by what runs there.

Shapes: B rows, T tokens, H query heads, K key/value heads, Dh head width; N tokens, V vocabulary, D, E widths.
"""

import pytest
import torch
import torch.nn.functional as F

from tests.kernels.device import DEVICE, GPU, normal
from tutelage.data.batch import Batch
from tutelage.kernels import reference
from tutelage.kernels.attention import attention, cached_attention, documents, rotate, so_far
from tutelage.kernels.linear_divergence import DenseTeacher, linear_divergence
from tutelage.kernels.logit_divergence import logit_divergence
from tutelage.kernels.reference import IGNORE
from tutelage.kernels.rms_norm import rms_norm
from tutelage.kernels.rows import TopK
from tutelage.losses.config import LossConfig
from tutelage.losses.objective import Objective
from tutelage.losses.term import Progress
from tutelage.student.config import StudentOptions, resolve
from tutelage.student.decoder import Decoder
from tutelage.student.layers import rope_table
from tutelage.teacher.signal import Signal

DTYPE, TOLERANCE = torch.bfloat16, 1e-2
LENGTHS = [1, 17, 2048] if GPU else [1, 17, 65]
# Triton's interpreter multiplies no bf16
ATTENTIONS = ["auto", "triton"] if GPU else ["auto"]
LOSSES = ["auto", "eager", "triton"] if GPU else ["auto", "eager"]
N, V, D, E, CHUNK = (2500, 30_011, 256, 320, 1024) if GPU else (50, 311, 32, 40, 16)
"""More than two chunks, and a vocabulary that nothing divides."""


def segments_of(B, T):
    """Documents of 1, 2, 3, … tokens, begun elsewhere in every row."""
    place = torch.arange(T, device=DEVICE)
    ends = torch.tensor([n * (n + 1) // 2 for n in range(1, T + 2)], device=DEVICE)
    return torch.stack([torch.searchsorted(ends, place + 3 * row, right=True) for row in range(B)])


def differentiated(function, *leaves):
    """Value and gradients in fp64, under weights that are the same for every dtype."""
    leaves = [x.detach().clone().requires_grad_() for x in leaves]
    out = function(*leaves)
    weight = normal(*out.shape, seed=9).to(out.dtype)
    return [x.detach().double() for x in (out, *torch.autograd.grad(out, leaves, weight))]


def assert_faithful(ours, truth, eager, tolerance=TOLERANCE):
    for mine, true, plain in zip(ours, truth, eager, strict=True):
        assert mine.isfinite().all()
        assert (true - mine).abs().max() <= (true - plain).abs().max() + tolerance * true.abs().max()


@pytest.mark.parametrize("impl", ATTENTIONS)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("T", LENGTHS)
def test_attention_with_rope_grouped_heads_and_documents(impl, packed, T):
    B, H, K, Dh = 2, 6, 2, 64
    leaves = [normal(B, n, T, Dh, seed=i, dtype=DTYPE) for i, n in enumerate((H, K, K))]
    segments = segments_of(B, T) if packed else None
    rope = rope_table(torch.arange(T, device=DEVICE).expand(B, T), Dh, 10_000.0)
    sight = documents(segments) if packed else None

    def plainly(q, k, v):
        return reference.attention(rotate(q, *rope), rotate(k, *rope), v, segments)

    ours = differentiated(lambda *x: attention(*x, sight, rope, impl), *leaves)
    truth, eager = (differentiated(plainly, *(x.to(dtype) for x in leaves)) for dtype in (torch.float64, DTYPE))
    assert_faithful(ours, truth, eager)


@pytest.mark.parametrize("impl", ATTENTIONS)
@pytest.mark.parametrize("T", [1, 5])
def test_attention_over_a_cache(impl, T):
    B, H, K, Dh, L = 2, 6, 2, 64, 2048 if GPU else 70
    q, k, v = (normal(B, n, t, Dh, seed=i, dtype=DTYPE) for i, (n, t) in enumerate(((H, T), (K, L), (K, L))))
    last = torch.arange(T, device=DEVICE) + torch.tensor([[L - T], [3]], device=DEVICE)
    rope = rope_table(last, Dh, 10_000.0)
    sight = so_far(last, L)

    def plainly(dtype):
        x = [rotate(q.to(dtype), *rope), *(y.to(dtype).repeat_interleave(H // K, 1) for y in (k, v))]
        scores = (x[0] @ x[1].mT / Dh**0.5).masked_fill(~sight.mask, -torch.inf)
        return [(scores.softmax(-1) @ x[2]).double()]

    ours = [cached_attention(q, k, v, sight, rope, impl).double()]
    assert_faithful(ours, plainly(torch.float64), plainly(DTYPE))


def test_rms_norm():
    x, weight = normal(N, D, dtype=DTYPE), normal(D, seed=1, dtype=DTYPE)
    truth, eager = (
        differentiated(lambda x, w: F.rms_norm(x, w.shape, w, 1e-5), x.to(dtype), weight.to(dtype))
        for dtype in (torch.float64, DTYPE)
    )
    assert_faithful(differentiated(lambda x, w: rms_norm(x, w, 1e-5), x, weight), truth, eager)


def batch_of_rows(head_dtype):
    """Student leaves, teacher and targets of the loss."""
    generator = torch.Generator().manual_seed(3)
    targets = torch.where(torch.rand(N, generator=generator) < 0.2, IGNORE, torch.randint(V, (N,), generator=generator))
    student = normal(N, D, dtype=DTYPE), normal(V, D, seed=1, dtype=head_dtype, scale=D**-0.5)
    teacher = normal(N, E, seed=2, dtype=DTYPE), normal(V, E, seed=3, dtype=DTYPE, scale=2 * E**-0.5)
    return student, teacher, targets.to(DEVICE)


@pytest.mark.parametrize("impl", LOSSES)
@pytest.mark.parametrize("head_dtype", [torch.float32, DTYPE])
@pytest.mark.parametrize("kind", ["forward_kl", "jsd"])
def test_the_fused_loss_beyond_a_chunk(impl, head_dtype, kind):
    student, teacher, targets = batch_of_rows(head_dtype)
    keep = targets != IGNORE

    def fused(hidden, head):
        how = {"kind": kind, "temperature": 2.0, "kd_weight": 0.8, "ce_weight": 0.2}
        loss = linear_divergence(
            hidden, head, DenseTeacher(*teacher), targets, compute_dtype=DTYPE, chunk_size=CHUNK, impl=impl, **how
        )
        return loss.total / int(keep.sum())

    def plainly(hidden, head):
        logits = hidden[keep] @ head.T
        t = teacher[0][keep].to(hidden.dtype) @ teacher[1].T.to(hidden.dtype)
        kl = reference.divergence(kind, logits, t, 2.0, 0.5).sum()
        return (0.8 * 4 * kl + 0.2 * F.cross_entropy(logits, targets[keep], reduction="sum")) / int(keep.sum())

    truth, eager = (differentiated(plainly, *(x.to(dtype) for x in student)) for dtype in (torch.float64, DTYPE))
    assert_faithful(differentiated(fused, *student), truth, eager)


@pytest.mark.parametrize("impl", LOSSES)
@pytest.mark.parametrize("sparse", [False, True])
def test_the_loss_of_logits(impl, sparse):
    s, t = normal(9, V, scale=2, dtype=DTYPE), normal(9, V, seed=1, scale=2, dtype=DTYPE)
    top = t.double().log_softmax(-1).topk(20)
    targets = top.indices[:, 3].contiguous()

    def fused(logits):
        teacher = TopK(top.indices, top.values.float()) if sparse else t
        return logit_divergence(logits, teacher, targets, kd_weight=0.8, ce_weight=0.2, impl=impl).total

    def plainly(logits):
        if sparse:
            kl = reference.sparse_divergence("forward_kl", logits, top.indices, top.values.to(logits.dtype)).sum()
        else:
            kl = reference.forward_kl(logits, t.to(logits.dtype)).sum()
        return 0.8 * kl + 0.2 * F.cross_entropy(logits, targets, reduction="sum")

    truth, eager = (differentiated(plainly, s.to(dtype)) for dtype in (torch.float64, DTYPE))
    assert_faithful(differentiated(fused, s), truth, [x.nan_to_num(torch.inf) for x in eager])


@pytest.mark.parametrize("compiled", [False, True] if GPU else [False])
def test_a_training_step(compiled):
    """Packed rows through student, objective and AdamW, as the loop runs them: two losses near those of fp64."""
    B, T = (4, 512) if GPU else (2, 24)
    config = resolve(StudentOptions(n_layers=3, n_heads=4, n_kv_heads=2, d_model=64, d_ff=96), V, "nano")
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(V, (B, T), generator=generator).to(DEVICE)
    segments = segments_of(B, T)
    targets = torch.where(segments == segments.roll(-1, 1), tokens.roll(-1, 1), IGNORE)
    targets[:, -1] = IGNORE
    positions = torch.arange(T, device=DEVICE) - documents(segments).first
    batch = Batch(tokens, targets, segments, positions.long(), tokens[:, 0])
    objective = Objective(LossConfig(), V)
    found = []
    for dtype in (DTYPE, torch.float64):
        torch.manual_seed(0)
        model = Decoder(config).to(DEVICE, torch.float32 if dtype == DTYPE else dtype).train()
        if compiled and dtype == DTYPE:
            model.compile_blocks()
        signal = Signal(
            DenseTeacher(normal(B, T, E, seed=2, dtype=dtype), normal(V, E, seed=3, dtype=dtype, scale=2 * E**-0.5))
        )
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
        losses = []
        for step in range(3):
            with torch.autocast(DEVICE, DTYPE, enabled=dtype == DTYPE):
                output = model(batch.tokens, positions=batch.positions, segments=batch.segments)
                counts, progress = objective.counts(batch), Progress(step, 3)
                loss, _ = objective(output, model.head, signal, batch, counts=counts, progress=progress)
            losses.append(float(loss.detach()))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        found.append(losses)
    ours, truth = found
    assert ours == pytest.approx(truth, rel=5e-3)
    assert truth[-1] < truth[0] - 0.1
