"""Fidelity against its formulas, in fp64, on distributions small enough to write out."""

import math

import pytest
import torch

from tutelage.data.batch import IGNORE, Batch
from tutelage.data.corpus import Corpus, unigram_counts
from tutelage.data.packing import pack
from tutelage.evaluation.closeness import closeness
from tutelage.kernels.linear_divergence import DenseTeacher
from tutelage.student.config import StudentConfig
from tutelage.student.decoder import Decoder
from tutelage.teacher.signal import Signal
from tutelage.training.fidelity import decoder_scorer, fidelity, perplexity_loss, unigram_loss

V = 11


def batch(targets):
    targets = torch.tensor(targets)
    zeros = torch.zeros_like(targets)
    return Batch(zeros, targets, zeros, zeros, torch.zeros(len(targets), dtype=torch.long))


def scorer(seed, padding=0):
    generator = torch.Generator().manual_seed(seed)
    head = torch.randn(V + padding, 4, generator=generator)
    hidden = torch.randn(2, 5, 4, generator=generator)
    return lambda batch: Signal(DenseTeacher(hidden, head)), torch.log_softmax((hidden @ head[:V].T).double(), -1)


class OnHost(torch.Tensor):
    """What has come to the CPU from a device without fp64, as far as the tests below can tell."""


@pytest.fixture
def without_fp64(monkeypatch):
    """Tensors of a device that has no fp64, until `cpu` is called on them."""
    to, double, cpu = torch.Tensor.to, torch.Tensor.double, torch.Tensor.cpu

    def checked_to(self, *args, **options):
        if torch.float64 in (*args, *options.values()) and not isinstance(self, OnHost):
            raise TypeError("this device has no float64")
        return to(self, *args, **options)

    def checked_double(self):
        if not isinstance(self, OnHost):
            raise TypeError("this device has no float64")
        return double(self)

    monkeypatch.setattr(torch.Tensor, "to", checked_to)
    monkeypatch.setattr(torch.Tensor, "double", checked_double)
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: cpu(self).as_subclass(OnHost))


def test_no_fp64_off_the_host(without_fp64, letters):
    generator = torch.Generator().manual_seed(3)
    head, hidden = torch.randn(257, 4, generator=generator), torch.randn(2, 20, 4, generator=generator)
    tokens = torch.arange(40).view(2, 20)
    rows = Batch(tokens, tokens + 1, tokens * 0, torch.arange(20).expand(2, -1), torch.zeros(2, dtype=torch.long))
    model = lambda batch: Signal(DenseTeacher(hidden, head))  # noqa: E731
    found = fidelity(model, model, [rows], 257)
    assert found.kl == 0
    assert perplexity_loss(model, [rows], 257) == pytest.approx(found.loss, rel=1e-5)
    assert closeness(model, model, [rows], 257, letters).agreement == 1
    with pytest.raises(TypeError, match="no float64"):
        hidden.to(torch.float64)


@pytest.mark.parametrize("scale", [1e3, 1e6, float("nan"), float("inf")])
def test_a_model_that_diverged_is_measured_all_the_same(scale, letters):
    generator = torch.Generator().manual_seed(3)
    head, hidden = torch.randn(257, 4, generator=generator), torch.randn(2, 20, 4, generator=generator)
    tokens = torch.arange(40).view(2, 20)
    rows = Batch(tokens, tokens + 1, tokens * 0, torch.arange(20).expand(2, -1), torch.zeros(2, dtype=torch.long))
    student, teacher = (lambda batch, s=s: Signal(DenseTeacher(s * hidden, head)) for s in (scale, 1.0))
    found = fidelity(student, teacher, [rows], 257)
    assert found.perplexity == math.inf or math.isnan(found.perplexity)
    assert not perplexity_loss(student, [rows], 257) < 700
    deep = closeness(student, teacher, [rows], 257, letters)
    assert not deep.kl < 700
    assert 0 <= deep.student.error <= 1
    assert sum(one.count for one in deep.student.bins) == 40


def test_every_mean_is_its_formula_over_the_targets_that_count():
    targets = [[1, 2, IGNORE, 3, 0], [IGNORE, 5, 6, 10, 4]]
    (student, log_q), (teacher, log_p) = scorer(0, padding=5), scorer(1)
    found = fidelity(student, teacher, [batch(targets)], V)
    rows = [(i, j, t) for i, row in enumerate(targets) for j, t in enumerate(row) if t != IGNORE]
    q, p = log_q.exp(), log_p.exp()
    means = {
        "loss": -sum(log_q[i, j, t] for i, j, t in rows),
        "reference_loss": -sum(log_p[i, j, t] for i, j, t in rows),
        "kl": sum((p[i, j] * (log_p[i, j] - log_q[i, j])).sum() for i, j, _ in rows),
        "agreement": sum(float(q[i, j].argmax() == p[i, j].argmax()) for i, j, _ in rows),
        "acceptance": sum(torch.minimum(p[i, j], q[i, j]).sum() for i, j, _ in rows),
    }
    for name, total in means.items():
        assert getattr(found, name) == pytest.approx(float(total) / len(rows), rel=1e-5), name
    assert found.perplexity == pytest.approx(math.exp(found.loss))
    assert perplexity_loss(student, [batch(targets)], V) == pytest.approx(found.loss, rel=1e-6)


def test_a_model_beside_itself_agrees_and_is_accepted_everywhere():
    model, _ = scorer(3)
    found = fidelity(model, model, [batch([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]])], V)
    assert found.kl == pytest.approx(0, abs=1e-6)
    assert found.agreement == 1
    assert found.acceptance == pytest.approx(1, abs=1e-5)


def test_unigram_loss_counts_training_text_once_more_than_it_saw():
    train, heldout = pack([[1, 1, 2]], 0, 4), pack([[1, 2]], 0, 4)
    corpus = Corpus((train,), (1.0,), heldout, "", 2)
    targets = batch([[1, 2, IGNORE]])
    counts = {0: 2, 1: 3, 2: 2}  # each once more; the stream ends in token 0
    whole = sum(counts.values()) + (V - 3)
    expected = -(math.log(counts[1] / whole) + math.log(counts[2] / whole)) / 2
    assert unigram_loss(unigram_counts(corpus, V), [targets]) == pytest.approx(expected)


def test_the_student_is_scored_in_either_precision():
    torch.manual_seed(0)
    model = Decoder(StudentConfig(V, 1, 2, 1, 16, 32)).eval()
    rows = batch([[1, 2, 3], [4, 5, 6]])
    exact = perplexity_loss(decoder_scorer(model, "fp32"), [rows], V)
    rounded = perplexity_loss(decoder_scorer(model, "bf16"), [rows], V)
    assert rounded == pytest.approx(exact, rel=1e-2)
    assert rounded != exact
