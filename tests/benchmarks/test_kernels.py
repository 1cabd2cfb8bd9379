"""The kernels beside their peers, at tiny sizes: that everybody computes the same, and what is reported of it."""

import itertools
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks import kernel_peers, kernel_student_peers, kernels
from benchmarks import kernel_report as report
from benchmarks.kernel_peers import (
    Contender,
    NotHereError,
    Sizes,
    chunked,
    layouts,
    logit_losses,
    losses,
    naive,
    problem,
)
from benchmarks.kernel_student_peers import Heads, attentions, decoding, norms, packed, rotations
from benchmarks.kernel_targets import TARGETS, MemoryRow, Row, Target, judge
from benchmarks.timing import laps

SIZES = Sizes(tokens=24, vocab=130, student=16, teacher=12)
FLAGS = ["--device", "cpu", "--tokens", "32", "--vocab", "200", "--students", "16", "--teacher", "12", "--repeats", "1"]
HEADS = Heads(batch=2, heads=4, kv_heads=2, tokens=32, width=16)
WANTED = {
    "cuda": {
        "fused loss vs Liger fused_linear_jsd": [(5, 8), (6, 12)],
        "fused loss vs fair eager naive": [(3, 5), (25, 60)],
        "fused loss vs torch.compile of the naive loss": [(1.15, 1.4), (8, None)],
        "fused loss / sum of its four GEMMs": [(1.5, 1.3)],
        "logit-level divergence": [(0.75, 0.9)],
        "attention forward vs SDPA": [(1.2, 1.35), (0.95, 1.05)],
        "attention forward+backward vs SDPA": [(1.0, 1.2), (0.7, 0.85)],
        "RoPE + attention vs separate RoPE + flash": [(1.25, 1.5)],
        "student step vs compiled SDPA + naive loss": [(1.3, 1.8)],
    },
    "cpu": {
        "fused loss vs naive eager": [(2.8, 3.5), (4.5, 6)],
        "fused loss vs torch.compile of the naive loss": [(1.1, 1.4), (2, 2.5)],
        "fused loss vs Liger chunked loss": [(1.6, 2), (1, None)],
        "fused loss / sum of its four matmuls": [(1.6, 1.3)],
        "KL error against fp64": [(1, None)],
    },
}


@pytest.fixture(autouse=True)
def _small(one_thread: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    torch.manual_seed(0)
    monkeypatch.setitem(
        kernel_peers.SETTINGS,
        "cpu",
        {"fast": {"chunk_size": 24}, "lean": {"chunk_size": 8, "accum_dtype": torch.bfloat16}},
    )
    yield
    torch.compiler.reset()


def options(**fields: object) -> kernels.Options:
    base = kernels.Options("cpu", ("loss",), 24, 130, (16,), 12, repeats=2, limit=60.0)
    return replace(base, **fields)  # type: ignore[arg-type]


def test_every_loss_that_runs_here_agrees_with_the_naive_one() -> None:
    p = problem(SIZES, "cpu")
    exact = [tensor.detach().double().requires_grad_() for tensor in p[:2]]
    total = naive(*exact, p.t_hidden.double(), p.t_head.double(), p.targets)
    total.backward()
    ran = set()
    for name, factory in losses(p, "cpu").items():
        contender = kernels.prepare(factory, 60.0)
        if isinstance(contender, str) or contender.expected is None:
            continue
        ran.add(name)
        assert contender(lambda: None).item() == pytest.approx(total.item(), rel=2e-2), name
        for leaf, right in zip(p.leaves, exact, strict=True):
            assert (leaf.grad.double() - right.grad).norm() < 0.02 * right.grad.norm(), name
    assert {"ours, eager, fast", "ours, compile, fast", "ours, eager, lean", "naive"} <= ran


def test_losses_of_logits_agree() -> None:
    for name, factory in logit_losses(9, 50, "cpu").items():
        if "compile" not in name and "triton" not in name:
            assert isinstance(kernels.prepare(factory, 60.0), Contender), name


@pytest.mark.parametrize(
    "table",
    [
        lambda: attentions(HEADS, "cpu"),
        lambda: rotations(HEADS, "cpu"),
        lambda: packed(HEADS, "cpu"),
        lambda: decoding(HEADS, 40, "cpu"),
        lambda: norms(12, 16, "cpu"),
    ],
    ids=["attention", "rope", "packed", "decode", "norm"],
)
def test_peers_of_the_student_agree(table: Callable[[], dict[str, Callable[[], Contender]]]) -> None:
    found = {}
    for name, factory in table().items():
        if not any(word in name for word in ("compile", "Flex")):  # they compile for long
            contender = kernels.prepare(factory, 60.0)
            if isinstance(contender, Contender):
                found[name] = contender.forward()
    first = found.popitem()[1]
    assert found
    for name, out in found.items():
        torch.testing.assert_close(out, first, atol=0.03, rtol=0.03, msg=lambda text, name=name: f"{name}: {text}")


def test_who_cannot_run_here_is_a_row_that_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "liger_kernel.chunked_loss", None)
    p = problem(SIZES, "cpu")
    every = losses(p, "cpu")
    names = ["ours, eager, fast", "ours, triton, fast", "Liger chunked, compiled"]
    names += ["Liger fused_linear_jsd, KL alone"]
    rows = kernels.measure("loss", "s", {name: every[name] for name in names}, options())
    assert [row.contender for row in rows] == [names[0]] * 3 + names[1:]
    notes = [row.note for row in rows[2:]]
    assert notes[0] == ""
    assert notes[1] == "needs CUDA"
    assert notes[2].startswith("ModuleNotFoundError")
    assert notes[3] == "needs CUDA (Triton)"
    assert all(name in report.table(rows) for name in names)


def test_wrong_slow_and_broken_contenders_stay_out() -> None:
    def sleep() -> Contender:
        while True:
            pass

    def broken() -> Contender:
        raise NotHereError("no such thing\nand more")

    assert kernels.prepare(sleep, 0.1) == "not ready within 0.1 s (--limit)"
    assert kernels.prepare(broken, 9.0) == "no such thing"
    wrong = kernels.prepare(lambda: Contender(lambda: torch.tensor(2.0), expected=1.0), 9.0)
    assert wrong == "gives 2 where 1 is right"


def test_peers_that_compute_a_part_are_compared_with_that_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins for packages that are not here: the calls and the factors are ours to get right."""

    class FusedKLDivLoss:
        def __call__(self, hidden: Tensor, t_hidden: Tensor, head: Tensor, t_head: Tensor) -> Tensor:
            total = naive(hidden, head, t_hidden, t_head, torch.zeros(len(hidden), dtype=torch.long), ce_weight=0.0)
            return total / kernel_peers.KD / len(hidden)

    def linear_cross_entropy(hidden: Tensor, head: Tensor, targets: Tensor, reduction: str) -> Tensor:
        return torch.nn.functional.cross_entropy((hidden @ head.T).float(), targets, reduction=reduction)

    monkeypatch.setattr(kernel_peers, "needs_cuda", lambda device, also="": None)
    kl = ModuleType("fla.modules.fused_kl_div")
    kl.FusedKLDivLoss = FusedKLDivLoss  # type: ignore[attr-defined]
    cut = ModuleType("cut_cross_entropy")
    cut.linear_cross_entropy = linear_cross_entropy  # type: ignore[attr-defined]
    for module in (ModuleType("fla"), ModuleType("fla.modules"), kl, cut):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    every = losses(problem(SIZES, "cpu"), "cpu")
    for name in ("FLA fused_kl_div, KL alone", "Cut Cross-Entropy, CE alone"):
        contender = kernels.prepare(every[name], 60.0)
        assert isinstance(contender, Contender), contender


def test_chunks_by_hand_are_the_naive_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_peers, "PEER_CHUNK", 10)
    p = problem(SIZES, "cpu")
    chunked(p, naive).backward()
    found = [leaf.grad.clone() for leaf in p.leaves]
    for leaf in p.leaves:
        leaf.grad = None
    naive(*p).backward()
    for leaf, mine in zip(p.leaves, found, strict=True):
        torch.testing.assert_close(mine, leaf.grad, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("version", ["2.10", "2.13"])
def test_packed_rows_reach_varlen_attn_as_documents(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in that attends document by document, with either version's signature."""

    def attend(q: Tensor, k: Tensor, v: Tensor, cuts: Tensor) -> Tensor:
        cuts = cuts.long()
        assert q.shape == k.shape == v.shape
        parts = [[x[a:b].transpose(0, 1)[None] for x in (q, k, v)] for a, b in itertools.pairwise(cuts.tolist())]
        out = [torch.nn.functional.scaled_dot_product_attention(*part, is_causal=True) for part in parts]
        return torch.cat([x[0].transpose(0, 1) for x in out])

    def older(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None):  # type: ignore[no-untyped-def]
        assert is_causal
        return attend(query, key, value, cu_seq_q)

    def newer(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, window_size=(-1, -1), enable_gqa=False):  # type: ignore[no-untyped-def]
        assert window_size == (-1, 0)
        assert enable_gqa
        key, value = (x.repeat_interleave(2, 1) for x in (key, value))
        return attend(query, key, value, cu_seq_q)

    monkeypatch.setattr(kernel_student_peers, "needs_cuda", lambda device, also="": None)
    module = ModuleType("torch.nn.attention.varlen")
    module.varlen_attn = older if version == "2.10" else newer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", module)
    every = packed(HEADS, "cpu")
    mine, theirs = (every[name]().forward() for name in ("varlen_attn", "SDPA with a mask"))
    torch.testing.assert_close(mine, theirs, atol=0.03, rtol=0.03)


def test_what_there_is_no_time_for_says_so() -> None:
    calls = []

    def slow() -> Contender:
        def forward() -> None:
            calls.append(1)
            time.sleep(0.05)

        return Contender(forward)

    rows = kernels.measure("norm", "s", {"ours": slow, "peer": slow}, options(repeats=50), time.monotonic() + 1.2)
    assert [row.note for row in rows if row.contender == "ours"] == [""]
    assert len(calls) < 40
    late = kernels.measure("norm", "s", {"ours": slow}, options(), time.monotonic())
    assert late[0].note == "not measured: no time left (--seconds)"


def test_laps_are_taken_in_turn_from_another_one_each_round() -> None:
    calls = []

    def run(name: str) -> Callable[[Callable[[], None]], None]:
        def timed(lap: Callable[[], None]) -> None:
            np.ones(1 << 20).sum()  # before the first lap: not counted
            for _ in range(3):
                lap()
            calls.append(name)

        return timed

    found = laps({name: run(name) for name in "abc"}, repeats=2)
    assert "".join(calls) == "abcbcacab"
    assert all(rounds.shape == (2, 2) and (rounds < 1e-3).all() for rounds in found.values())


def test_layouts_are_all_the_same_product() -> None:
    a, b = torch.randn(5, 7), torch.randn(7, 3)
    runs = layouts(a, b)
    assert len(runs) == 8
    for name, run in runs.items():
        found = run()
        torch.testing.assert_close(found.t() if name.endswith("columns") else found, a @ b)


def test_every_target_is_listed_with_its_numbers() -> None:
    for device, rows in WANTED.items():
        own = [target for target in TARGETS if target.device == device]
        for what, numbers in rows.items():
            found = [target for target in own if target.what.startswith(what)]
            assert sorted((t.goal, t.stretch or 0) for t in found) == sorted((g, s or 0) for g, s in numbers), what
        assert len(own) == sum(map(len, rows.values()))
    table = report.targets_table([], "cpu")
    assert len(table.splitlines()) == 2 + len(TARGETS)
    assert "not here: needs a CUDA device" in table
    assert "not measured: --rows loss" in table


def row(name: str, p50: float, extra: float = 1e6, setting: str = "s", note: str = "") -> Row:
    return Row("loss", setting, name, "", "" if note else "both", p50, p50, p50, extra, 4e5, note=note)


def test_our_fastest_is_judged_in_all_it_costs() -> None:
    rows = [row("ours, a", 2.0, 1e6), row("ours, b", 1.0, 2e6), row("naive", 3.0, 5e6), row("gone", 0, note="no room")]
    target = Target("cpu", "t", "loss", "faster", ("naive",), 2.5, 4.0, setting="s")
    assert judge(target, rows, "cpu") == ("3", "met", "ours, b : naive")
    assert judge(replace(target, stretch=3.0), rows, "cpu")[1] == "met, stretch too"
    assert judge(replace(target, goal=3.5), rows, "cpu")[1] == "missed"
    assert judge(replace(target, setting="other"), rows, "cpu")[1] == "met (at another size)"
    assert judge(replace(target, how="leaner"), rows, "cpu")[::2] == ("2.5", "ours, b : naive")
    assert judge(replace(target, how="workspace"), rows, "cpu")[0] == f"{(5e6 - 4e5) / (2e6 - 4e5):.3g}"
    assert judge(replace(target, how="ratio", goal=0.3, stretch=0.2), rows, "cpu")[:2] == ("0.333", "missed")
    assert judge(replace(target, peers=("gone",)), rows, "cpu")[1] == "not here: no room"
    assert judge(replace(target, device="cuda"), rows, "cpu")[1] == "not here: needs a CUDA device"


def test_the_best_of_the_peers_is_the_leanest_where_memory_counts() -> None:
    rows = [row("ours", 1.0, 2e6), row("fast", 2.0, 9e6), row("lean", 3.0, 4e6)]
    target = Target("cpu", "t", "loss", "leaner", ("fast", "lean"), 1.0, setting="s")
    assert judge(target, rows, "cpu")[::2] == ("2", "ours : lean")
    assert judge(replace(target, how="faster"), rows, "cpu")[::2] == ("2", "ours : fast")


def test_csv_and_picture_are_written_and_read_again(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = [row("ours, a", 2.0), row("naive", 3.0), row("gone", 0, note="no room, none")]
    rows[2] = replace(rows[2], p20=None, p50=None, p80=None, extra_bytes=None, gradient_bytes=None)
    memory = [MemoryRow(n, 8, 4, name, n * 8.0, n * 4.0) for n in (1, 2) for name in ("ours", "naive")]
    report.write(rows, memory, tmp_path, "cpu", "a device, 2026")
    assert report.draw(rows, memory, tmp_path / "kernels-cpu.png", "a device, 2026").endswith("kernels-cpu.png")
    assert report.read(tmp_path, "cpu") == (rows, memory, "a device, 2026")
    assert (tmp_path / "kernels-cpu.png").read_bytes()[:4] == b"\x89PNG"
    head = (tmp_path / "kernels-cpu.csv").read_text().splitlines()[0]
    assert head.endswith("device,date,torch,triton,liger")


def test_the_command_prints_tables_and_targets(root: Path, script_env: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.kernels", "--rows", "memory,decode,step", *FLAGS]
    command += ["--output", str(tmp_path)]
    done = subprocess.run(command, cwd=root, env=script_env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    for text in ("1 threads, torch", "memory: V=200 D=16", "decode: B=4", "step: N=32", "needs CUDA", "Targets"):
        assert text in done.stdout
    assert (tmp_path / "kernels-cpu.csv").exists()


def test_an_unknown_table_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        kernels.main(["--rows", "los"])
    assert "los: choose from loss" in capsys.readouterr().err
