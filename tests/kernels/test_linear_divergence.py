"""The fused loss against the specification in fp64.

Shapes: N tokens, V vocabulary, D student width, E teacher width.
"""

from dataclasses import dataclass, replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.kernels.device import DEVICE, GPU, normal
from tutelage.kernels import dispatch, reference
from tutelage.kernels import linear_divergence as module
from tutelage.kernels.dispatch import interpreted
from tutelage.kernels.divergences import KINDS
from tutelage.kernels.linear_divergence import DenseTeacher, linear_divergence
from tutelage.kernels.reference import IGNORE


@pytest.fixture(params=["auto", "eager", "triton"], autouse=True)
def impl(request):
    """Everything here holds for each implementation."""
    dispatch.use(request.param, DEVICE)
    yield request.param
    dispatch.use("auto", DEVICE)


ROWS = 17  # every row of every test costs Triton's interpreter some milliseconds


@dataclass(frozen=True)
class Case:
    hidden: torch.Tensor
    head: torch.Tensor
    t_hidden: torch.Tensor | None
    t_head: torch.Tensor | None
    targets: torch.Tensor

    @property
    def args(self):
        teacher = None if self.t_hidden is None else DenseTeacher(self.t_hidden, self.t_head)
        return [self.hidden, self.head, teacher, self.targets]

    def to(self, dtype):
        floats = {f: getattr(self, f) for f in ("hidden", "head", "t_hidden", "t_head")}
        return replace(self, **{k: None if v is None else v.detach().to(dtype) for k, v in floats.items()})

    def rows(self, index):
        t_hidden = None if self.t_hidden is None else self.t_hidden[index]
        return replace(self, hidden=self.hidden[index], t_hidden=t_hidden, targets=self.targets[index])

    def leaves(self):
        return replace(self, hidden=self.hidden.detach().requires_grad_(), head=self.head.detach().requires_grad_())


def make(N=ROWS, V=101, D=19, E=13, seed=0, ignored=0.25, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape, scale=1.0):
        return (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(DEVICE, dtype)

    targets = torch.randint(V, (N,), generator=generator)
    targets[torch.rand(N, generator=generator) < ignored] = IGNORE
    targets = targets.to(DEVICE)
    return Case(draw(N, D), draw(V, D, scale=D**-0.5), draw(N, E), draw(V, E, scale=2 * E**-0.5), targets)


def call(case, *, bias=None, scale=1.0, cap=None, **options):
    """The op on a case, whose teacher does this to its logits."""
    hidden, head, teacher, targets = case.args
    if teacher is not None:
        teacher = teacher._replace(bias=bias, scale=scale, cap=cap)
    return linear_divergence(hidden, head, teacher, targets, **options)


def specified(
    case, *, kind="forward_kl", mix=None, temperature=1.0, kd_weight=1.0, ce_weight=0.0, vocab_size=None, bias=None,
    scale=1.0, cap=None,
):  # fmt: skip
    """(total, divergence, cross-entropy) in the inputs' dtype, from whole logits."""
    keep = case.targets != IGNORE
    logits = (case.hidden[keep] @ case.head.T)[:, :vocab_size]
    cross_entropy = -logits.log_softmax(-1).gather(1, case.targets[keep, None]).sum()
    divergence = logits.new_zeros(())
    if case.t_hidden is not None:
        teacher = reference.teacher_logits(case.t_hidden[keep], case.t_head[:vocab_size], bias, scale, cap)
        mix = KINDS[kind].mix if mix is None else mix
        divergence = reference.divergence(kind, logits, teacher, temperature, mix).sum()
    return kd_weight * temperature**2 * divergence + ce_weight * cross_entropy, divergence, cross_entropy


def compare(case, *, rtol=1e-10, atol=1e-12, chunk_size=5, **options):
    """Value, parts and both gradients agree with the specification; returns ours."""
    truth, ours = case.leaves(), case.leaves()
    total, divergence, cross_entropy = specified(truth, **options)
    total.backward()
    out = call(ours, chunk_size=chunk_size, **options)
    out.total.backward()
    close = {"rtol": rtol, "atol": atol, "check_dtype": False}
    torch.testing.assert_close(out.total, total, **close)
    torch.testing.assert_close(out.divergence, divergence, **close)
    torch.testing.assert_close(out.cross_entropy, cross_entropy, **close)
    torch.testing.assert_close(ours.hidden.grad, truth.hidden.grad, **close)
    torch.testing.assert_close(ours.head.grad, truth.head.grad, **close)
    assert out.count.item() == int((case.targets != IGNORE).sum())
    return out, ours


def parts(out):
    return [out.total, out.divergence, out.cross_entropy, out.count]


def run(case, **options):
    """(outputs, d_hidden, d_head) of one forward and backward pass."""
    case = case.leaves()
    out = call(case, **options)
    out.total.backward()
    return out, case.hidden.grad, case.head.grad


MIX = {"temperature": 2.0, "kd_weight": 0.8, "ce_weight": 0.2}


class Watch(TorchDispatchMode):
    """Records the shape of every tensor that an operation makes, views of the inputs left out."""

    def __init__(self):
        super().__init__()
        self.known = set()
        self.shapes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, torch.Tensor) and x.untyped_storage().data_ptr() not in self.known:
                self.shapes.append(tuple(x.shape))
        return result

    @property
    def largest(self):
        return max(torch.Size(shape).numel() for shape in self.shapes)


# --- the value and the gradients -------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7, 4.0])
@pytest.mark.parametrize(("kd_weight", "ce_weight"), [(1.0, 0.0), (0.8, 0.2), (0.0, 1.0), (3.0, 2.0), (0.0, 0.0)])
def test_equals_the_specification(temperature, kd_weight, ce_weight):
    compare(make(), temperature=temperature, kd_weight=kd_weight, ce_weight=ce_weight)


def test_equals_the_reference_op():
    case = make()
    tensors = case.hidden, case.head, case.t_hidden, case.t_head, case.targets
    total, divergence, cross_entropy = reference.linear_divergence(*tensors, **MIX)
    out = linear_divergence(*case.args, **MIX)
    for ours, theirs in zip(parts(out), (total, divergence, cross_entropy), strict=False):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(252, 507, 123, 77), (1, 33, 5, 7), (2, 2, 1, 1), (65, 1, 3, 2), (7, 1000, 16, 48)])
def test_irregular_shapes(shape):
    N, V, D, E = shape
    compare(make(N, V, D, E, ignored=0.0 if N < 5 else 0.3), chunk_size=100, **MIX)


def test_default_chunks_at_an_irregular_shape():
    case = make(61, 507, 123, 64)
    expected = specified(case, **MIX)[0]
    torch.testing.assert_close(linear_divergence(*case.args, **MIX).total, expected, rtol=1e-11, atol=0)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("with_teacher", [True, False])
def test_gradcheck(temperature, with_teacher):
    case = make(N=3, V=5, D=2, E=3).leaves()
    teacher = DenseTeacher(case.t_hidden, case.t_head) if with_teacher else None

    def total(hidden, head):
        return linear_divergence(
            hidden, head, teacher, case.targets, temperature=temperature, kd_weight=0.6, ce_weight=0.4, chunk_size=2
        ).total

    assert torch.autograd.gradcheck(total, (case.hidden, case.head))


@pytest.mark.parametrize("wanted", ["hidden", "head"])
def test_one_gradient_alone(wanted):
    case = make()
    _, d_hidden, d_head = run(case, **MIX)
    leaf = getattr(case, wanted).clone().requires_grad_()
    linear_divergence(*replace(case, **{wanted: leaf}).args, **MIX).total.backward()
    torch.testing.assert_close(leaf.grad, d_hidden if wanted == "hidden" else d_head)


def test_the_teacher_gets_no_gradient():
    case = make().leaves()
    t_hidden, t_head = case.t_hidden.clone().requires_grad_(), case.t_head.clone().requires_grad_()
    linear_divergence(case.hidden, case.head, DenseTeacher(t_hidden, t_head), case.targets).total.backward()
    assert t_hidden.grad is None
    assert t_head.grad is None


def test_only_the_total_carries_a_gradient():
    case = make().leaves()
    out = linear_divergence(*case.args, **MIX)
    assert out.total.requires_grad
    assert not any(part.requires_grad for part in parts(out)[1:])
    assert all(part.ndim == 0 for part in parts(out))


def test_statistics_are_at_least_fp32():
    for dtype, expected in [(torch.bfloat16, torch.float32), (torch.float32, torch.float32)]:
        out = linear_divergence(*make(dtype=dtype).args, **MIX)
        assert {part.dtype for part in parts(out)} == {expected}


# --- rows that count -------------------------------------------------------------------------------------------


def test_one_row():
    compare(make(N=1, ignored=0.0), **MIX)


def test_all_rows_ignored_is_zero_with_zero_gradients():
    case = make()
    case.targets.fill_(IGNORE)
    out, d_hidden, d_head = run(case, **MIX)
    assert [part.item() for part in parts(out)] == [0, 0, 0, 0]
    assert torch.count_nonzero(d_hidden) == 0
    assert torch.count_nonzero(d_head) == 0


def test_no_rows_at_all():
    out, d_hidden, d_head = run(make(N=0), **MIX)
    assert [part.item() for part in parts(out)] == [0, 0, 0, 0]
    assert d_hidden.shape == (0, 19)
    assert torch.count_nonzero(d_head) == 0


def test_ignored_rows_change_nothing_even_when_they_are_nan():
    case = make()
    expected = run(case.rows(case.targets != IGNORE), **MIX)
    ignored = case.targets == IGNORE
    case.hidden[ignored] = torch.nan
    case.t_hidden[ignored] = torch.nan
    out, d_hidden, d_head = run(case, **MIX)
    torch.testing.assert_close(parts(out), parts(expected[0]))
    torch.testing.assert_close(d_head, expected[2])
    torch.testing.assert_close(d_hidden[~ignored], expected[1])
    assert torch.count_nonzero(d_hidden[ignored]) == 0


@pytest.mark.parametrize("chunk_size", [1, 3, 8, ROWS - 1, ROWS, 10_000])
def test_chunks_are_an_implementation_detail(chunk_size):
    case = make()
    whole = run(case, chunk_size=4096, **MIX)
    cut = run(case, chunk_size=chunk_size, **MIX)
    torch.testing.assert_close(parts(cut[0]), parts(whole[0]), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(cut[1:], whole[1:], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("n", [2, 3, ROWS])
def test_micro_batches_sum_to_the_whole_batch(n):
    case = make()
    whole, d_hidden, d_head = run(case, **MIX)
    pieces = [run(case.rows(index), **MIX) for index in torch.arange(ROWS).tensor_split(n)]
    sums = [sum(values) for values in zip(*(parts(out) for out, _, _ in pieces), strict=True)]
    torch.testing.assert_close(sums, parts(whole))
    torch.testing.assert_close(torch.cat([piece[1] for piece in pieces]), d_hidden)
    torch.testing.assert_close(sum(piece[2] for piece in pieces), d_head)


# --- the vocabulary --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_padding_rows_of_the_head_are_never_scored(temperature):
    options = {**MIX, "temperature": temperature}
    case = make(V=101)
    expected = run(case, **options)
    padded = replace(
        case,
        head=torch.cat([case.head, torch.full_like(case.head[:27], 50.0)]),
        t_head=torch.cat([case.t_head, torch.full_like(case.t_head[:9], 50.0)]),
    )
    out, d_hidden, d_head = run(padded, vocab_size=101, chunk_size=7, **options)
    torch.testing.assert_close(parts(out), parts(expected[0]))
    torch.testing.assert_close(d_hidden, expected[1])
    torch.testing.assert_close(d_head[:101], expected[2])
    assert torch.count_nonzero(d_head[101:]) == 0


@pytest.mark.parametrize("scale", [1.0, 0.3])
@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("biased", [False, True])
def test_what_a_teacher_does_to_its_logits(scale, cap, biased):
    case = make()
    bias = normal(101, seed=5) if biased else None
    compare(case, bias=bias, scale=scale, cap=cap, **MIX)


def test_a_longer_bias_is_cut_to_the_vocabulary():
    case = make(V=64)
    bias = normal(64, seed=5)
    case.targets.clamp_(max=59)
    compare(case, bias=None, vocab_size=60, **MIX)
    ours = call(case, bias=bias, vocab_size=60, **MIX)
    torch.testing.assert_close(ours.total, specified(case, bias=bias[:60], vocab_size=60, **MIX)[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0, 2.0])
def test_a_bias_of_minus_infinity_masks_a_token(dtype, temperature):
    case = make(dtype=dtype)
    masked = torch.arange(101, device=DEVICE) % 3 == 0
    bias = torch.zeros(101, dtype=dtype, device=DEVICE).masked_fill(masked, -torch.inf)
    options = {**MIX, "temperature": temperature}
    out, d_hidden, d_head = run(case, bias=bias, **options)
    truth = specified(case.to(torch.float64), bias=bias.double(), **options)
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 5e-2}[dtype]
    torch.testing.assert_close(out.total, truth[0], rtol=tolerance, atol=0, check_dtype=False)
    assert torch.isfinite(d_hidden).all()
    assert torch.isfinite(d_head).all()


@pytest.mark.parametrize("scale", [0.5, 8.0])
def test_a_masking_bias_survives_a_scale(scale):
    case = make(dtype=torch.float32)
    bias = torch.zeros(101, device=DEVICE).masked_fill(torch.arange(101, device=DEVICE) % 3 == 0, -torch.inf)
    out, d_hidden, _ = run(case, bias=bias, scale=scale)
    truth = specified(case.to(torch.float64), bias=bias.double(), scale=scale)[0]
    torch.testing.assert_close(out.total, truth, rtol=1e-4, atol=0, check_dtype=False)
    assert torch.isfinite(d_hidden).all()


def test_without_a_teacher_it_is_the_cross_entropy():
    case = replace(make(), t_hidden=None, t_head=None)
    out, _ = compare(case, temperature=2.0, kd_weight=0.7, ce_weight=0.3)
    assert out.divergence.item() == 0


def test_a_weight_of_zero_still_reports_the_divergence():
    case = make()
    out, _ = compare(case, temperature=2.0, kd_weight=0.0, ce_weight=1.0)
    assert out.divergence > 0


def test_temperature_squared_scales_the_divergence_and_not_the_cross_entropy():
    out = linear_divergence(*make().args, temperature=3.0, kd_weight=1.0, ce_weight=1.0)
    torch.testing.assert_close(out.total, 9 * out.divergence + out.cross_entropy)


# --- q = p and extreme logits ----------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_equal_distributions_give_zero_and_a_zero_gradient(temperature):
    case = make()
    same = replace(case, t_hidden=case.hidden, t_head=case.head)
    out, d_hidden, d_head = run(same, temperature=temperature)
    assert abs(out.total.item()) < 1e-12
    assert d_hidden.abs().max() < 1e-14
    assert d_head.abs().max() < 1e-13


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_distributions_in_low_precision(dtype):
    case = make(dtype=dtype)
    out, d_hidden, _ = run(replace(case, t_hidden=case.hidden, t_head=case.head), temperature=2.0)
    assert abs(out.divergence.item()) < 1e-5
    assert d_hidden.abs().max() < 1e-6


def on_logits(student, teacher, **options):
    """The op on given logits: with a head of ones on the diagonal the matmul changes no bit."""
    eye = torch.eye(student.shape[1], device=DEVICE)
    targets = torch.zeros(len(student), dtype=torch.long, device=DEVICE)
    return linear_divergence(student, eye, DenseTeacher(teacher, eye), targets, **options)


@pytest.mark.parametrize("noise", [3.0, 0.3, 0.03, 0.003])
@pytest.mark.parametrize("offset", [0.0, 20.0])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_kl_error_against_fp64_on_the_same_logits(noise, offset, temperature):
    """At most 1e-5 relative + 1e-6 a row, however close the two distributions are, as logits of 20 are usual."""
    teacher, gap = (normal(16, 512, seed=seed, dtype=torch.float32) for seed in (0, 1))
    teacher = teacher * 4
    student = teacher + noise * gap + offset
    truth = reference.forward_kl(student.double(), teacher.double(), temperature)
    for row in range(16):
        one = slice(row, row + 1)
        ours = on_logits(student[one], teacher[one], temperature=temperature).divergence.item()
        assert abs(ours - truth[row].item()) <= 1e-5 * truth[row].item() + 1e-6


def test_huge_logits_do_not_overflow():
    student, teacher = normal(2, 6, 64, dtype=torch.float32) * 300
    expected = reference.forward_kl(student.double(), teacher.double()).sum()
    out = on_logits(student + 1000, teacher - 1000)
    torch.testing.assert_close(out.divergence.double(), expected, rtol=1e-4, atol=0)
    nll = -student.double().log_softmax(-1)[:, 0].sum()
    torch.testing.assert_close(out.cross_entropy.double(), nll, rtol=1e-4, atol=0)


def test_production_vocabulary():
    """V = 49,152 on dyadic numbers, whose logits are exact in fp32, so that only the row work can err."""
    N, V, D = 3, 49_152, 8
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randint(-8, 9, shape, generator=generator).to(DEVICE) / 8  # noqa: E731
    hidden, head, t_hidden = draw(N, D), draw(V, D), draw(N, D)
    targets = torch.tensor([V - 1, 0, 12_345], device=DEVICE)
    case = Case(hidden, head, t_hidden, head.flip(0).contiguous(), targets)
    options = {"temperature": 2.0, "kd_weight": 0.8, "ce_weight": 0.2}
    out, d_hidden, d_head = run(case, **options)
    truth = case.to(torch.float64).leaves()
    total, divergence, cross_entropy = specified(truth, **options)
    total.backward()
    assert abs(out.divergence.item() - divergence.item()) <= 1e-5 * divergence.item() + N * 1e-6
    assert abs(out.cross_entropy.item() - cross_entropy.item()) <= 1e-6 * cross_entropy.item()
    torch.testing.assert_close(d_hidden.double(), truth.hidden.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(d_head.double(), truth.head.grad, rtol=1e-4, atol=1e-8)


# --- precision -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-4), (torch.float16, 1e-3), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_no_worse_than_plain_arithmetic_in_the_same_dtype(dtype, tolerance, temperature):
    options = {**MIX, "temperature": temperature}
    case = make(61, 507, 123, 77, dtype=dtype)
    truth, eager, ours = case.to(torch.float64).leaves(), case.leaves(), case.leaves()
    values = [specified(c, **options)[0] for c in (truth, eager)]
    out = linear_divergence(*ours.args, chunk_size=25, **options)
    for value in (*values, out.total):
        value.backward()
    triples = [
        (values[0], values[1], out.total),
        (truth.hidden.grad, eager.hidden.grad, ours.hidden.grad),
        (truth.head.grad, eager.head.grad, ours.head.grad),
    ]
    for exact, plain, fused in triples:
        allowed = (exact - plain).abs().max() + tolerance * exact.abs().max()
        assert (exact - fused).abs().max() <= allowed
    assert ours.hidden.grad.dtype == ours.head.grad.dtype == dtype


def test_master_weights_in_fp32_with_bf16_matmuls():
    case = make(61, 507, 64, 48, dtype=torch.float32)
    truth = case.to(torch.float64).leaves()
    specified(truth, **MIX)[0].backward()
    out, d_hidden, d_head = run(case, compute_dtype=torch.bfloat16, chunk_size=16, **MIX)
    assert d_head.dtype == d_hidden.dtype == torch.float32
    assert out.total.dtype == torch.float32
    for ours, exact in ((d_hidden, truth.hidden.grad), (d_head, truth.head.grad)):
        assert (ours - exact).abs().max() <= 1e-2 * exact.abs().max()


def test_the_sum_over_chunks_in_fp32_or_in_the_dtype_of_the_matmuls():
    """Each of eight products is rounded to bf16 by its matmul (a GPU adds it as it is); in bf16 each sum is, too."""
    case = make(64, 507, 64, 48, ignored=0.0, dtype=torch.bfloat16)
    truth = case.to(torch.float64).leaves()
    specified(truth, **MIX)[0].backward()

    def error(**how):
        return ((run(case, **how, **MIX)[2] - truth.head.grad).norm() / truth.head.grad.norm()).item()

    once, in_fp32 = error(chunk_size=64), error(chunk_size=8)
    in_bf16 = error(chunk_size=8, accum_dtype=torch.bfloat16)
    assert error(chunk_size=8, accum_dtype=torch.float32) == in_fp32
    assert GPU or once < in_fp32
    assert in_fp32 < in_bf16 < 2 * once
    assert in_fp32 < 1.2 * once


def test_autocast_gives_what_its_dtype_gives():
    """The autocast dtype is that of the matmuls; statistics stay in fp32 there too."""
    case = make(dtype=torch.float32)
    expected = run(case, compute_dtype=torch.bfloat16, **MIX)
    with torch.autocast(DEVICE, torch.bfloat16):
        out, d_hidden, d_head = run(case, **MIX)
    torch.testing.assert_close(parts(out), parts(expected[0]), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close((d_hidden, d_head), expected[1:], rtol=1e-6, atol=1e-6)


def test_an_explicit_dtype_wins_over_autocast():
    case = make(dtype=torch.float32)
    expected = run(case, **MIX)
    with torch.autocast(DEVICE, torch.bfloat16):
        out, d_hidden, d_head = run(case, compute_dtype=torch.float32, **MIX)
    torch.testing.assert_close(parts(out), parts(expected[0]), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close((d_hidden, d_head), expected[1:], rtol=1e-6, atol=1e-6)


# --- habits ----------------------------------------------------------------------------------------------------


def test_non_contiguous_inputs():
    case = make()
    expected = run(case, **MIX)
    spread = torch.full((ROWS, 38), torch.nan, dtype=torch.float64, device=DEVICE)
    spread[:, ::2] = case.hidden
    other = replace(
        case,
        hidden=spread[:, ::2],
        head=case.head.t().contiguous().t(),
        t_hidden=case.t_hidden.t().contiguous().t(),
        t_head=case.t_head.repeat_interleave(2, 0)[::2],
        targets=case.targets.repeat_interleave(2)[::2],
    )
    out, d_hidden, d_head = run(other, **MIX)
    torch.testing.assert_close(parts(out), parts(expected[0]))
    torch.testing.assert_close((d_hidden, d_head), expected[1:])


def test_stride_zero_and_scaled_grad_output():
    case = make()
    _, d_hidden, d_head = run(case, **MIX)
    for scale in (0.0, -1.0, 2.5):
        leaves = case.leaves()
        total = linear_divergence(*leaves.args, **MIX).total
        total.expand(3).backward(torch.tensor(scale, dtype=torch.float64, device=DEVICE).expand(3))
        torch.testing.assert_close(leaves.hidden.grad, 3 * scale * d_hidden)
        torch.testing.assert_close(leaves.head.grad, 3 * scale * d_head)


def test_repeated_backward_does_not_touch_what_was_saved():
    case = make().leaves()
    total = linear_divergence(*case.args, **MIX).total
    first = torch.autograd.grad(total * 5, (case.hidden, case.head), retain_graph=True)
    second = torch.autograd.grad(total, (case.hidden, case.head), retain_graph=True)
    third = torch.autograd.grad(total, (case.hidden, case.head))
    for five, one, again in zip(first, second, third, strict=True):
        torch.testing.assert_close(five, 5 * one)
        assert torch.equal(one, again)


def test_fp16_does_not_overflow_where_the_mean_does_not():
    """Many tokens of one target: the gradient of their sum passes 65,504, that of their mean does not."""
    hidden = torch.full((40, 4), 6000.0, dtype=torch.float16, device=DEVICE)
    head = torch.zeros(3, 4, dtype=torch.float16, device=DEVICE, requires_grad=True)
    targets = torch.zeros(40, dtype=torch.long, device=DEVICE)
    for chunk_size in (None, 40):
        loss = linear_divergence(hidden, head, None, targets, ce_weight=1.0, chunk_size=chunk_size)
        (grad,) = torch.autograd.grad(loss.total / 40, head)
        expected = torch.tensor([[-2 / 3], [1 / 3], [1 / 3]], device=DEVICE) * 6000
        torch.testing.assert_close(grad.float(), expected.expand(3, 4), rtol=2e-3, atol=0)


def test_gradients_accumulate_through_a_graph():
    """hidden comes from an earlier layer and the head is tied to it, as in a real decoder."""
    case = make()

    def total(loss):
        table, tokens = case.head.clone().requires_grad_(), torch.arange(ROWS)
        loss(replace(case, hidden=torch.tanh(table[tokens]), head=table)).backward()
        return table.grad

    ours = total(lambda c: linear_divergence(*c.args, **MIX).total / 7)
    torch.testing.assert_close(ours, total(lambda c: specified(c, **MIX)[0] / 7))


def test_bitwise_repeat():
    case = make(61, 507, 64, 48, dtype=torch.bfloat16)
    first, again = (run(case, chunk_size=16, **MIX) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(parts(first[0]), parts(again[0]), strict=True))
    assert torch.equal(first[1], again[1])
    assert torch.equal(first[2], again[2])


def test_inputs_are_left_as_they_were():
    case = make()
    tensors = case.hidden, case.head, case.t_hidden, case.t_head, case.targets
    before = [x.clone() for x in tensors]
    run(case, bias=torch.ones(101, dtype=torch.float64, device=DEVICE), scale=2.0, cap=3.0, **MIX)
    assert all(torch.equal(a, b) for a, b in zip(before, tensors, strict=True))


@pytest.fixture
def watch(monkeypatch):
    """Records what is made inside the op, which from outside is one operation; looks at the case's tensors first."""
    watch = Watch()
    sweep = module.sweep

    def watched(hidden, head, teacher, targets, *rest):
        inputs = [hidden, head, targets, *(teacher or ())]
        watch.known = {x.untyped_storage().data_ptr() for x in inputs if isinstance(x, torch.Tensor)}
        with watch:
            return sweep(hidden, head, teacher, targets, *rest)

    monkeypatch.setattr(module, "sweep", watched)
    return watch


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_never_holds_the_logits_of_all_rows(watch, impl, temperature):
    if impl == "triton" and interpreted():
        pytest.skip("the interpreter copies the arguments of every launch")
    N, V, D, chunk = 300, 1024, 8, 64
    case = make(N, V, D, 8, ignored=0.1, dtype=torch.float32).leaves()
    linear_divergence(*case.args, temperature=temperature, ce_weight=1.0, chunk_size=chunk).total.backward()
    assert watch.largest <= chunk * V  # which is also more than 5 slices of 8 rows, (V, D) and (N, D)


@pytest.mark.parametrize("N", [2, 17, 300])
def test_nor_by_default(watch, impl, N):
    """Never more than half of them, however few there are."""
    if impl == "triton" and interpreted():
        pytest.skip("the interpreter copies the arguments of every launch")
    V = 2048
    case = make(N, V, 2, 2, ignored=0.0, dtype=torch.float32)
    linear_divergence(*case.args, ce_weight=1.0)
    logits = [shape for shape in watch.shapes if len(shape) == 2 and shape[1] >= V and shape[0] > 2]
    assert watch.largest <= max(-(-N // 2), 24) * V  # the slices of the row work have up to 24 rows
    assert all(shape[0] <= max(-(-N // 2), 24) for shape in logits)


@pytest.mark.parametrize("V", [1, 63, 64, 65, 101])
def test_rows_of_logits_begin_at_multiples_of_64(monkeypatch, V):
    """Of the student and of the teacher: matmuls into odd rows leave the fast paths of a GPU."""
    made = []
    workspace = module.workspace
    monkeypatch.setattr(module, "workspace", lambda *a: made.append(workspace(*a)) or made[-1])
    case = make(V=V, ignored=0.0)
    linear_divergence(*case.args)
    assert [buffer.shape[1] for buffer in made] == [V, V]
    assert [buffer.stride(0) for buffer in made] == [-(-V // 64) * 64] * 2


def test_no_grad_makes_no_gradient(watch):
    N, V, D = 40, 1000, 16
    case = make(N, V, D, 8, dtype=torch.float32).leaves()
    with torch.no_grad():
        out = linear_divergence(*case.args, chunk_size=32, **MIX)
    assert not out.total.requires_grad
    assert (V, D) not in watch.shapes
    assert (N, D) not in watch.shapes
    torch.testing.assert_close(out.total, linear_divergence(*case.args, chunk_size=32, **MIX).total)


def test_inputs_without_gradients_make_no_gradient(watch):
    case = make(40, 1000, 16, 8, dtype=torch.float32)
    linear_divergence(*case.args, chunk_size=32, **MIX)
    assert (1000, 16) not in watch.shapes


def test_a_first_call_in_inference_mode_spoils_no_later_one():
    case = make()
    expected = run(case, **MIX)
    module.forget_workspace()
    with torch.inference_mode():
        linear_divergence(*case.args, **MIX)
    torch.testing.assert_close(run(case, **MIX)[1:], expected[1:])


def test_what_an_earlier_call_left_behind_changes_nothing():
    small, large = make(N=9, V=40), make()
    expected = run(small, **MIX)
    run(large, **MIX)
    again = run(small, **MIX)
    assert all(torch.equal(a, b) for a, b in zip(expected[1:], again[1:], strict=True))


def test_a_known_count_changes_nothing():
    case = make()
    expected = run(case, **MIX)
    found = run(case, count=int((case.targets != IGNORE).sum()), **MIX)
    assert torch.equal(found[0].total, expected[0].total)
    assert torch.equal(found[1], expected[1])
    assert torch.equal(found[2], expected[2])


# --- what may be learned ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck_of_a_learned_temperature(kind):
    case = make(N=4, V=7, D=3, E=3)

    def total(temperature, kd_weight, ce_weight):
        knobs = {"temperature": temperature, "kd_weight": kd_weight, "ce_weight": ce_weight}
        return linear_divergence(*case.args, kind=kind, chunk_size=2, **knobs).total

    knobs = [torch.tensor(x, dtype=torch.float64, device=DEVICE, requires_grad=True) for x in (1.7, 0.6, 0.4)]
    if kind == "taid":  # by definition the student in its target has no gradient, and numbers know no such thing
        truth = [x.detach().clone().requires_grad_() for x in knobs]
        specified(case, kind=kind, temperature=truth[0], kd_weight=truth[1], ce_weight=truth[2])[0].backward()
        found = torch.autograd.grad(total(*knobs), knobs)
        torch.testing.assert_close(found, tuple(x.grad for x in truth))
    else:
        assert torch.autograd.gradcheck(total, knobs)


def test_a_learned_temperature_leaves_the_other_gradients_as_they_are():
    case = make()
    temperature = torch.tensor(2.0, dtype=torch.float64, device=DEVICE, requires_grad=True)
    learned = run(case, **{**MIX, "temperature": temperature})
    fixed = run(case, **MIX)
    torch.testing.assert_close(learned[1:], fixed[1:])
    torch.testing.assert_close(parts(learned[0]), parts(fixed[0]))


def test_numbers_may_be_tensors():
    case = make()
    options = {name: torch.tensor(value) for name, value in MIX.items()}
    torch.testing.assert_close(run(case, **options)[1:], run(case, **MIX)[1:], rtol=1e-6, atol=1e-6)


def test_the_heads_gradient_is_rounded_before_it_is_scaled_where_it_is_asked_to_be(impl):
    if impl == "triton" and not GPU:
        pytest.skip("bf16 is garbage in the interpreter")
    gradients = []
    for rounded in (False, True):
        case = make(N=12, dtype=torch.float32).leaves()
        linear_divergence(
            *case.args, compute_dtype=torch.bfloat16, chunk_size=4, round_head_gradient=rounded
        ).total.backward()
        gradients.append(case.head.grad)
    kept, rounded = gradients
    assert torch.equal(rounded, rounded.bfloat16().float())
    assert not torch.equal(kept, kept.bfloat16().float())
    torch.testing.assert_close(kept.bfloat16(), rounded.bfloat16(), rtol=2e-2, atol=1e-3)


# --- as an op of torch -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_grad", [True, False])
def test_opcheck(impl, with_grad):
    case = make(N=5, V=11, D=4, E=3)
    if with_grad:
        case = case.leaves()
    knobs = torch.tensor([0.8, 0.2, 2.0, 0.5], dtype=torch.float64, device=DEVICE, requires_grad=with_grad)
    torch.library.opcheck(
        torch.ops.tutelage.linear_divergence.default,
        (case.hidden, case.head, case.targets, knobs, case.t_hidden, case.t_head, None, 1.0, None, None, None,
         "jsd", 11, torch.float64, 2, torch.float64, True, with_grad, with_grad, None, True, False, impl),
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inside_a_compiled_function_it_is_one_op(dtype):
    torch._dynamo.reset()  # a compiled function keeps the implementation it was traced with
    case = make(dtype=dtype)
    expected = run(case, **MIX)
    leaves = case.leaves()
    hidden, head, teacher, targets = leaves.args

    @torch.compile(fullgraph=True, backend="aot_eager")
    def total(hidden, head, t_hidden, t_head, targets):
        return linear_divergence(hidden, head, DenseTeacher(t_hidden, t_head), targets, **MIX).total

    total(hidden, head, *teacher[:2], targets).backward()
    torch.testing.assert_close((leaves.hidden.grad, leaves.head.grad), expected[1:])


# --- refusals --------------------------------------------------------------------------------------------------


def bad(**changes):
    return replace(make(N=6, V=10, D=4, E=3), **changes)


@pytest.mark.parametrize(
    ("case", "options", "named"),
    [
        (bad(hidden=torch.zeros(6, 5)), {}, ["hidden (6, 5)", "head (10, 4)"]),
        (bad(hidden=torch.zeros(2, 3, 4)), {}, ["hidden (2, 3, 4)", "head (10, 4)"]),
        (bad(head=torch.zeros(10)), {}, ["hidden (6, 4)", "head (10,)"]),
        (bad(targets=torch.zeros(7, dtype=torch.long)), {}, ["targets (7,)", "hidden (6, 4)"]),
        (bad(targets=torch.zeros(6, 1, dtype=torch.long)), {}, ["targets (6, 1)", "hidden (6, 4)"]),
        (bad(t_hidden=torch.zeros(5, 3)), {}, ["t_hidden (5, 3)", "hidden (6, 4)"]),
        (bad(t_hidden=torch.zeros(6, 2)), {}, ["t_hidden (6, 2)", "t_head (10, 3)"]),
        (bad(t_head=torch.zeros(9, 3)), {}, ["vocabulary of 10", "t_head (9, 3)"]),
        (bad(), {"vocab_size": 11}, ["11", "head (10, 4)"]),
        (bad(), {"vocab_size": 0}, ["0", "head (10, 4)"]),
        (bad(), {"accum_dtype": torch.float16}, ["accum_dtype", "torch.float64", "torch.float16"]),
        (bad(), {"temperature": 0.0}, ["temperature", "0.0"]),
        (bad(), {"temperature": -1.0}, ["temperature", "-1.0"]),
        (bad(), {"temperature": float("nan")}, ["temperature", "nan"]),
        (bad(), {"kind": "forwards_kl"}, ["forwards_kl", "forward_kl"]),
        (bad(), {"bias": torch.zeros(1)}, ["t_bias (1,)"]),
        (bad(), {"bias": torch.zeros(9)}, ["t_bias (9,)"]),
    ],
)
def test_bad_input_is_refused_with_its_shapes(case, options, named):
    case = replace(case, **{name: x.to(DEVICE) for name, x in vars(case).items()})
    with pytest.raises(ValueError) as error:  # noqa: PT011
        call(case, **options)
    for part in named:
        assert part in str(error.value)
