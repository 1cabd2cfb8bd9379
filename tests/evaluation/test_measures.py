"""What the measurements share is loaded once, and only if asked for."""

from dataclasses import replace

import pytest

from tutelage.errors import UserError
from tutelage.evaluation import measures
from tutelage.evaluation.candidate import load_candidate
from tutelage.evaluation.config import EvaluateConfig
from tutelage.evaluation.measures import MEASURES, Bench
from tutelage.evaluation.report import Measured
from tutelage.evaluation.run import KINDS


def test_every_kind_has_its_measure():
    assert set(MEASURES) == set(KINDS)


def test_the_teacher_is_loaded_once_and_for_fidelity_alone(make_config, teacher_dir, tmp_path, monkeypatch):
    loaded = []
    load = measures.load_candidate
    monkeypatch.setattr(measures, "load_candidate", lambda *args: loaded.append(args) or load(*args))
    bench = Bench(EvaluateConfig(eval_rows=2), make_config(), tmp_path)
    student = load_candidate(str(teacher_dir), "cpu")
    MEASURES["perplexity"](student, bench, Measured())
    MEASURES["latency"](student, bench, Measured())
    assert loaded == []
    for _ in range(2):
        MEASURES["fidelity"](student, bench, into := Measured())
    assert len(loaded) == 1
    assert into.metrics["fidelity/kl"] == pytest.approx(0, abs=1e-3)  # the same weights


def test_fidelity_across_vocabularies_is_refused_or_left_out_of_a_report(
    make_config, teacher_dir, tmp_path, monkeypatch, caplog
):
    bench = Bench(EvaluateConfig(eval_rows=2, fidelity=True), make_config(), tmp_path)
    student = load_candidate(str(teacher_dir), "cpu")
    monkeypatch.setattr(student.tokenizer, "fingerprint", "another", raising=False)
    into = Measured()
    MEASURES["fidelity"](student, replace(bench, config=replace(bench.config, report=True, fidelity=False)), into)
    assert into.metrics == {}
    assert "different vocabularies" in caplog.text
    with pytest.raises(UserError, match="another"):
        MEASURES["fidelity"](student, bench, into)
