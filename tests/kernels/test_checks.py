"""What a sparse teacher, a batch or a number may not be. Shapes of the dense case: test_linear_divergence."""

import pytest
import torch

from tests.kernels.device import DEVICE
from tutelage.kernels import checks
from tutelage.kernels.linear_divergence import DenseTeacher, linear_divergence
from tutelage.kernels.reference import IGNORE
from tutelage.kernels.rows import TopK

N, V, D, K = 4, 10, 3, 2


def call(teacher, **options):
    targets = torch.tensor([1, IGNORE, 2, 3], device=DEVICE)
    teacher = None if teacher is None else type(teacher)(*(x.to(DEVICE) if torch.is_tensor(x) else x for x in teacher))
    student = torch.zeros(N, D, device=DEVICE), torch.zeros(V, D, device=DEVICE)
    return linear_divergence(*student, teacher, targets, **{"check_values": True, **options})


def top(ids=None, log_probs=None):
    ids = torch.tensor([[1, 2]] * N) if ids is None else ids
    return TopK(ids, torch.tensor([[-0.5, -1.5]] * N) if log_probs is None else log_probs)


def changed(row, values, of):
    of = of.clone()
    of[row] = torch.tensor(values, dtype=of.dtype)
    return of


def test_a_good_one_is_taken():
    assert call(top()).count == 3


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (top(ids=torch.zeros(N, 3, dtype=torch.long)), r"\(N, k\): student \(4, 3\), ids \(4, 3\), log_probs \(4, 2\)"),
        (TopK(torch.zeros(3, 2).long(), torch.zeros(3, 2)), r"ids \(3, 2\)"),
        (
            TopK(torch.zeros(N, 11).long(), torch.zeros(N, 11)),
            r"from 1 to the vocabulary of 10.*ids \(4, 11\)",
        ),
        (TopK(torch.zeros(N, 0).long(), torch.zeros(N, 0)), r"k must be from 1"),
        (top(ids=changed(2, [3, 3], top().ids)), "top-k ids repeat, in row 2 of the batch"),
        (top(ids=changed(2, [3, 10], top().ids)), "leave the vocabulary of 10, in row 2"),
        (top(ids=changed(0, [-1, 3], top().ids)), "leave the vocabulary of 10, in row 0"),
        (top(log_probs=changed(3, [-1.5, -0.5], top().log_probs)), "unsorted: give the likeliest first, in row 3"),
        (top(log_probs=changed(3, [0.0, 0.0], top().log_probs)), "sum to more than one, in row 3"),
        (top(log_probs=changed(2, [-0.5, float("nan")], top().log_probs)), "not finite, in row 2"),
        (
            DenseTeacher(changed(2, [torch.nan] * 3, torch.zeros(N, D)), torch.zeros(V, D)),
            "t_hidden .* in row 2",
        ),
        (DenseTeacher(torch.full((N, D), torch.nan), torch.zeros(V, D)), "in row 0 of the batch and 2 more"),
    ],
)
def test_bad_teachers_are_refused(teacher, message):
    with pytest.raises(ValueError, match=message):
        call(teacher)


def test_rows_that_do_not_count_may_hold_anything():
    call(top(ids=changed(1, [3, 3], top().ids)))
    call(DenseTeacher(changed(1, [torch.nan] * 3, torch.zeros(N, D)), torch.zeros(V, D)))


def test_values_are_not_looked_at_where_nobody_wants_it():
    out = call(DenseTeacher(torch.full((N, D), torch.nan), torch.zeros(V, D)), check_values=False)
    assert out.total.isnan()


@pytest.mark.parametrize("mix", [-0.1, 1.5, float("nan")])
def test_a_mix_that_is_none(mix):
    with pytest.raises(ValueError, match="mix must lie from 0 to 1"):
        call(None, kind="jsd", mix=mix)


def test_a_mix_is_not_learned():
    with pytest.raises(ValueError, match="mix has no derivative"):
        call(None, kind="jsd", mix=torch.tensor(0.5, requires_grad=True))


def test_a_temperature_is_not_learned_from_a_top_k():
    with pytest.raises(ValueError, match="cannot be learned from top-k"):
        call(top(), temperature=torch.tensor(2.0, requires_grad=True))


@pytest.mark.parametrize("count", [2, 4])
def test_a_wrong_count_is_refused(count):
    """Too few would silently be all; too many would feed rows that have no target."""
    if DEVICE != "cpu":
        pytest.skip("there it is an assertion on the device, which ends the process")
    with pytest.raises(ValueError, match=f"count says that {count} targets count, and 3 do"):
        call(top(), count=count)
    assert call(top(), count=3).count == 3


def test_a_device_is_told_and_not_asked(monkeypatch):
    """On a GPU the same is asserted there, without waiting."""

    class OnGPU(torch.Tensor):
        is_cuda = True

    said = []
    monkeypatch.setattr(torch, "_assert_async", lambda holds, message: said.append((bool(holds), message)))
    for targets, count, expected in (
        ([1, IGNORE, 9], 2, [True, True]), ([1, IGNORE, 10], 2, [False, True]), ([-1, 3, 4], 2, [False, False]),
        ([1, 2, IGNORE], None, [True]),
    ):  # fmt: skip
        said.clear()
        checks.target_values(torch.tensor(targets).as_subclass(OnGPU), V, count)
        assert [holds for holds, _ in said] == expected
    assert said[0][1] == "targets leave the vocabulary of 10"


def test_a_sum_in_fp16_is_refused():
    with pytest.raises(ValueError, match=r"accum_dtype must be torch.float32, got torch.float16"):
        call(None, compute_dtype=torch.float16, accum_dtype=torch.float16)
