"""The guard around launches, gradients that have none, and that nothing off the CPU waits for the device."""

from types import SimpleNamespace

import pytest
import torch

from tests.kernels.device import DEVICE, normal
from tutelage.kernels import rows
from tutelage.kernels.attention import attention
from tutelage.kernels.launch import on_its_device, only_once
from tutelage.kernels.linear_divergence import DenseTeacher, Plan, linear_divergence, sweep
from tutelage.kernels.logit_divergence import logit_divergence
from tutelage.kernels.rms_norm import rms_norm
from tutelage.kernels.rows import TopK, Work
from tutelage.student.config import StudentOptions, resolve
from tutelage.student.decoder import Decoder

IMPLS = ["eager", "triton"]


@pytest.mark.parametrize("module", ["triton_attention", "triton_decode", "triton_rows"])
def test_every_launch_is_made_on_the_device_of_its_tensors(module, monkeypatch):
    pytest.importorskip("triton")
    current = []

    class Guard:
        def __init__(self, tensor):
            self.device = tensor.device

        def __enter__(self):
            current.append(self.device)

        def __exit__(self, *_):
            current.pop()

    seen = []

    class Kernel:
        def __getitem__(self, grid):
            return lambda *args, **kwargs: seen.append(list(current))

    monkeypatch.setattr(torch.cuda, "device_of", Guard)
    from tutelage.kernels import triton_attention, triton_attention_kernels, triton_decode, triton_rows

    q, k, v = (normal(1, heads, 3, 8, dtype=torch.float32).requires_grad_() for heads in (2, 1, 1))
    if module == "triton_attention":
        for name in ("rotate_kernel", "forward_kernel", "dq_kernel", "dkv_kernel"):
            monkeypatch.setattr(triton_attention_kernels, name, Kernel())
        table = normal(1, 1, 3, 8, dtype=torch.float32)
        triton_attention.causal_attention(q, k, v, None, (table, table)).sum().backward()
    elif module == "triton_decode":
        for name in ("_split_kernel", "_combine_kernel"):
            monkeypatch.setattr(triton_decode, name, Kernel())
        monkeypatch.setattr(triton_decode, "_splits", lambda *_: 2)
        triton_decode.decode_attention(q, k, v, torch.zeros(1, 3, dtype=torch.int32, device=DEVICE))
    else:
        for name in ("_dense_rows", "_sparse_rows"):
            monkeypatch.setattr(triton_rows, name, Kernel())
        s, targets = normal(3, 8, dtype=torch.float32), torch.zeros(3, dtype=torch.long, device=DEVICE)
        work = Work("forward_kl", 8, False, True, False, False)
        knobs = torch.ones(4, device=DEVICE)
        for teacher in (s.clone(), TopK(targets[:, None], s[:, :1])):
            triton_rows.rows(s, teacher, targets, knobs, work)
    assert len(seen) == {"triton_attention": 4}.get(module, 2)
    assert all(devices == [q.device] for devices in seen)


def test_the_guard_takes_the_first_argument(monkeypatch):
    entered = []
    monkeypatch.setattr(torch.cuda, "device_of", lambda x: entered.append(x) or pytest.MonkeyPatch.context())
    tensor = SimpleNamespace(device="cuda:1")
    assert on_its_device(lambda first, second=1: (first, second))(tensor, second=2) == (tensor, 2)
    assert entered == [tensor]


# --- second derivatives ----------------------------------------------------------------------------------------


def losses(impl):
    """Each op that makes its gradient by hand, as a function of one leaf, and the leaf."""
    x = normal(4, 6, dtype=torch.float32)
    head, targets = normal(7, 6, seed=1, dtype=torch.float32), torch.arange(4, device=DEVICE)
    q = normal(1, 2, 4, 8, dtype=torch.float32)
    yield (
        lambda x: linear_divergence(x, head, DenseTeacher(x.detach(), head), targets, ce_weight=1.0, impl=impl).total,
        x,
    )
    yield lambda x: logit_divergence(x, None, targets, ce_weight=1.0, impl=impl).total, x
    if impl == "triton":
        yield lambda q: attention(q, q, q, impl=impl).square().sum(), q
    elif DEVICE == "cpu":
        yield lambda x: rms_norm(x, head[0], 1e-5).square().sum(), x


@pytest.mark.parametrize("impl", IMPLS)
def test_a_second_derivative_is_an_error_and_never_incomplete(impl):
    for loss, leaf in losses(impl):
        leaf = leaf.clone().requires_grad_()
        plain = torch.autograd.grad(loss(leaf), leaf)[0]
        for power in (1, 2):
            total = loss(leaf) ** power
            (once,) = torch.autograd.grad(total, leaf, create_graph=True)
            if power == 1:
                torch.testing.assert_close(once.detach(), plain)
            with pytest.raises(RuntimeError, match="no second derivative"):
                torch.autograd.grad(once.square().sum(), leaf)


def test_without_a_graph_nothing_is_wrapped():
    with torch.no_grad():
        gradients = only_once(torch.ones(2), None)
    assert gradients[0].grad_fn is None
    assert gradients[1] is None


# --- no waiting: on the meta device there is nothing that .item(), .tolist() or nonzero() could return -------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
@pytest.mark.parametrize("kind", ["forward_kl", "jsd"])
@pytest.mark.parametrize("teacher", ["dense", "sparse", None])
def test_the_loss_waits_for_no_device(dtype, kind, teacher):
    N, V, D = 40, 100, 8
    empty = lambda *shape, dtype=torch.float32: torch.empty(shape, dtype=dtype, device="meta")  # noqa: E731
    dense = DenseTeacher(empty(N, 6), empty(V + 3, 6), empty(V), 1.0, 30.0)
    sparse = TopK(empty(N, 4, dtype=torch.long), empty(N, 4))
    work, plan = Work(kind, V, True, True, False, True), Plan(dtype, 16, torch.float32, 30, False, False, "eager")
    given = {"dense": dense, "sparse": sparse, None: None}[teacher]
    total, _, d_hidden, d_head, _ = sweep(
        empty(N, D), empty(V, D), given, empty(N, dtype=torch.long), empty(4), work, plan
    )
    assert (total.shape, d_hidden.shape, d_head.shape) == ((), (N, D), (V, D))
    assert (d_head.dtype, d_head.device.type) == (torch.float32, "meta")


def test_off_the_cpu_a_compiled_slice_is_the_chunk(monkeypatch):
    lengths = []
    monkeypatch.setattr(rows, "compiled", lambda f: lambda s, *rest: lengths.append(len(s)) or f(s, *rest))
    s = torch.empty(300, 50, device="meta")
    rows.compile(s, s.clone(), s[:, 0].long(), s[0, :4], Work("forward_kl", 50, False, True, False, False))
    assert lengths == [300]


@pytest.mark.parametrize("packed", [False, True])
def test_a_training_step_of_the_student_waits_for_no_device(packed):
    config = resolve(StudentOptions(n_layers=2, n_heads=4, n_kv_heads=2, d_model=32, d_ff=48), 50, "nano")
    with torch.device("meta"):
        model, tokens = Decoder(config), torch.zeros(2, 600, dtype=torch.long)
    with torch.autocast("cpu", torch.bfloat16):
        model(tokens, segments=tokens if packed else None).hidden.sum().backward()
    assert model.head.grad.shape == model.head.shape
