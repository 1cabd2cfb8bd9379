"""`evaluate` end to end on a tiny run: what it chooses, writes and refuses."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tutelage import distill, evaluate
from tutelage.errors import UserError
from tutelage.evaluation.config import EvaluateConfig
from tutelage.evaluation.run import choose_models
from tutelage.runs import checkpoints, step_of
from tutelage.student.weights import find_student


@pytest.fixture
def run(make_config):
    """A tiny run."""
    return distill(make_config(steps=3, output_dir=str(Path(make_config().output_dir).parent / "runs" / "tiny"))).path


@pytest.fixture
def teacher(make_config):
    """Its teacher, as evaluate names it."""
    return f"teacher:{make_config().teacher}"


def test_a_run_beside_its_teacher(run, teacher):
    models = evaluate(model=f"{run},{teacher}", perplexity=True, fidelity=True, latency=True, eval_rows=4)
    student, reference = models[run.name].metrics, models[teacher].metrics
    assert {"perplexity/loss", "fidelity/kl", "fidelity/agreement", "fidelity/acceptance"} <= student.keys()
    assert 0 < student["fidelity/acceptance"] < 1
    assert "fidelity/kl" not in reference
    assert reference["latency/token_ms_p50"] > 0
    assert student["size/bytes"] == pytest.approx(2 * student["size/parameters"])
    written = json.loads((run / "eval" / "results.json").read_text())
    assert written["models"][run.name]["metrics"] == student
    assert written["settings"]["eval_rows"] == 4
    assert (written["settings"]["device"], written["settings"]["precision"]) == ("cpu", "bf16")
    assert written["settings"]["dtypes"] == {run.name: "bf16", teacher: "bf16"}
    assert written["settings"]["environment"]["torch"]


def test_perplexity_is_that_of_training(run):
    trained = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    [found] = evaluate(model=str(run), perplexity=True, eval_rows=4).values()
    assert found.metrics["perplexity/loss"] == pytest.approx(trained["eval/loss"], rel=5e-3)  # bf16 against fp32
    [found] = evaluate(model=str(run), perplexity=True, eval_rows=4, precision="fp32").values()
    assert found.metrics["perplexity/loss"] == pytest.approx(trained["eval/loss"], rel=1e-5)
    assert json.loads((run / "eval" / "results.json").read_text())["settings"]["dtypes"] == {run.name: "fp32"}


def test_students_that_diverged_are_measured_drawn_and_called_so(run, teacher, caplog):
    for name, scale in (("huge", 1e4), ("nan", float("nan"))):
        shutil.copytree(find_student(run), run / name)
        weights = load_file(run / name / "model.safetensors")
        save_file({key: scale * weight for key, weight in weights.items()}, run / name / "model.safetensors")
    evaluate(
        model=f"{run / 'huge'},{run / 'nan'},{teacher}", perplexity=True, fidelity=True, report=True, limit=1,
        max_new_tokens=4, eval_rows=2, allow_weak_sandbox=True,
    )  # fmt: skip
    text = (run / "eval" / "results.json").read_text()
    written = json.loads(text, parse_constant=pytest.fail)["models"]
    assert written["huge"]["metrics"]["perplexity/perplexity"] is None
    assert written["nan"]["metrics"]["fidelity/kl"] is None
    assert written[teacher]["metrics"]["perplexity/perplexity"] < 1e6
    page = (run / "eval" / "report.md").read_text()
    for name in ("huge", "nan"):
        assert f"**{name} has diverged" in page
        assert [line.startswith(name) for line in caplog.messages if "has diverged" in line].count(True) == 1
    assert f"{teacher} has diverged" not in page
    for picture in ("calibration", "agreement", "latency-score"):
        assert (run / "eval" / "pictures" / f"{picture}.png").stat().st_size > 1000


def test_humaneval_of_an_untrained_student_is_zero_and_kept(run, tmp_path):
    models = evaluate(
        model=str(run), humaneval=True, limit=2, max_new_tokens=8, output_dir=str(tmp_path), allow_weak_sandbox=True
    )
    assert models[run.name].metrics["humaneval/pass@1"] == 0
    assert models[run.name].intervals["humaneval/pass@1"][0] == 0
    [samples] = tmp_path.glob("humaneval-tiny-*.jsonl")
    assert len(samples.read_text().splitlines()) == 2


def test_a_report_on_a_run_its_teacher_and_a_model_that_is_not_ours(run, teacher, llama_dir, capsys):
    told = evaluate(
        model=f"{run},{teacher},{llama_dir}",
        report=True,
        limit=2,
        max_new_tokens=8,
        eval_rows=2,
        allow_weak_sandbox=True,
    )
    assert list(told) == [run.name, teacher, llama_dir.name]
    for one in told.values():
        assert {"humaneval/pass@1", "perplexity/bits_per_byte", "latency/tokens_per_s_batch_32"} <= one.metrics.keys()
        assert one.metrics["size/disk_bytes"] > 0
    written = json.loads((run / "eval" / "results.json").read_text())
    assert len(written["comparisons"]) == 3
    assert written["settings"]["humaneval"]["problems"] == 2
    assert set(written["models"][run.name]["details"]) == {"humaneval", "fidelity"}
    assert (run / "eval" / "report.md").is_file()
    assert (run / "eval" / "pictures" / "agreement.png").is_file()


def test_a_model_without_its_tokenizer_is_named(llama_dir, tmp_path):
    for file in llama_dir.iterdir():
        if "token" not in file.name:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(UserError, match=str(tmp_path)):
        evaluate(model=str(tmp_path), perplexity=True, output_dir=str(tmp_path / "eval"))
    assert not (tmp_path / "eval").exists()


def test_models_of_one_name_are_told_apart(run, tmp_path):
    two = [tmp_path / which / "student" for which in ("a", "b")]
    for path in two:
        shutil.copytree(find_student(run), path)
    told = evaluate(model=",".join(map(str, two)), latency=True, output_dir=str(tmp_path / "eval"))
    assert list(told) == ["student", str(two[1])]


def test_by_default_the_newest_run_and_its_teacher(run, teacher, monkeypatch):
    monkeypatch.chdir(run.parent.parent)
    names, home = choose_models(EvaluateConfig())
    assert home == Path("runs") / "tiny"
    assert names == [str(home), teacher]


def test_a_step_of_a_run_is_a_model(run, tmp_path):
    step = step_of(checkpoints(run)[0])
    assert choose_models(EvaluateConfig(model=f"{run}@{step}")) == ([f"{run}@{step}"], run)
    told = evaluate(model=f"{run}@{step}", perplexity=True, eval_rows=1, output_dir=str(tmp_path / "eval"))
    assert list(told) == [f"{run.name}@{step}"]
    with pytest.raises(UserError, match=f"no checkpoint of step 999.*{step}"):
        evaluate(model=f"{run}@999", perplexity=True, output_dir=str(tmp_path / "eval"))


@pytest.mark.parametrize("fields", [{"seed": 2**64}, {"precision": "fp16"}, {"batch_size": 0}, {"samples": 0.5}])
def test_what_python_gives_is_checked_as_flags_are(fields):
    with pytest.raises(UserError, match=next(iter(fields))):
        evaluate(model="teacher:smollm2-135m", latency=True, **fields)


def test_nothing_to_measure_is_an_error():
    with pytest.raises(UserError, match="--humaneval"):
        evaluate(model="teacher:smollm2-135m")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model", "nowhere", "--latency"], "nowhere"),
        (["--model", "teacher:smollm2-135m,nowhere", "--latency"], "nowhere"),
        (["--model", ".", "--problems", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--model", "teacher:smollm2-135m", "--mbpp_file", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--model", "teacher:smollm", "--latency"], "did you mean 'smollm2-135m'"),
        (["--latency", "--seed", str(2**64)], "--seed 18446744073709551616"),
        (["--model", "teacher:smollm2-135m", "--latency", "--device", "cuda:9"], "--device cuda:9"),
        (["--latency", "--precision", "fp16"], "fp16"),
        (["--humanevall"], "did you mean '--humaneval'"),
        (["--humaneval", "--samples", "-1"], "--samples -1"),
        (["--model", "teacher:smollm2-135m", "--humaneval", "--k", "10"], "--k 10"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(flags, words, root, tmp_path):
    done = subprocess.run(
        [sys.executable, str(root / "evaluate.py"), *flags], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error:") == 1
    assert list(tmp_path.iterdir()) == []
