"""Teachers by name."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from tutelage import distill, evaluate, load_student
from tutelage.errors import UserError
from tutelage.teacher.decoder_teacher import DecoderTeacher
from tutelage.teacher.registry import CODE, EMBEDDED, GEMMA, TEACHERS, entry, load_teacher, pinned
from tutelage.teacher.signal import TeacherSpec
from tutelage.training.config import RunConfig


def test_the_promised_names_are_known() -> None:
    assert {EMBEDDED, GEMMA, "starcoder2-3b", "codellama-7b"} <= set(TEACHERS)
    assert entry("codellama-7b").quantisation == "nf4"
    assert entry("starcoder2-3b").quantisation is None
    assert entry(EMBEDDED).download_bytes == 0
    assert (entry(EMBEDDED).data, entry("starcoder2-3b").data) == ("stdlib", CODE)


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(UserError, match=r"smollm2-135\b.*did you mean 'smollm2-135m'"):
        entry("smollm2-135")
    with pytest.raises(UserError, match=r"zzz.*codellama-7b.*smollm2-135m.*starcoder2-3b"):
        entry("zzz")


def test_a_hub_id_is_taken_as_it_is() -> None:
    assert entry("org/some-model").source == "org/some-model"


@pytest.mark.parametrize("name", ["./nowhere", "/no/where", "a/b/c", "~/model", "models/tiny.gguf", "x.gguf"])
def test_a_path_that_is_not_there_is_no_hub_id(name: str) -> None:
    with pytest.raises(UserError, match=rf"{name} does not exist"):
        entry(name)


@pytest.mark.parametrize("where", ["x", "./x"])
def test_a_file_where_a_directory_is_meant_says_so(
    where: str, llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_config: Callable[..., RunConfig]
) -> None:
    shutil.copytree(llama_dir, tmp_path / "x")
    monkeypatch.chdir(tmp_path)
    name = f"{where}/model.safetensors"
    for call in (lambda: distill(make_config(teacher=name)), lambda: evaluate(model=name, latency=True)):
        with pytest.raises(UserError, match=rf"^{name} is a file: pass the directory it is in, or a \.gguf file$"):
            call()


def test_what_is_neither_here_nor_on_the_hub_says_both(
    monkeypatch: pytest.MonkeyPatch, make_config: Callable[..., RunConfig]
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"models/typo.*on the hub, nor in the local cache .*no directory here"):
        distill(make_config(teacher="models/typo"))
    with pytest.raises(UserError, match=r"--model models/typo: no such directory .*teacher:NAME"):
        evaluate(model="models/typo", latency=True)


def test_a_revision_is_a_part_of_a_name_where_nothing_on_disk_is_called_so(
    llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (entry("org/name@v1.0").source, entry("org/name@v1.0").revision) == ("org/name", "v1.0")
    assert entry("org/name@refs/pr/1").revision == "refs/pr/1"
    pinned_code = entry("starcoder2-3b@733247c55e3f73af49ce8e9c7949bf14af205928")
    assert (pinned_code.source, pinned_code.revision) == (
        TEACHERS["starcoder2-3b"].source,
        "733247c55e3f73af49ce8e9c7949bf14af205928",
    )
    for folder in ("odd@name", "smollm2-135m", "org/name@v1.0"):
        shutil.copytree(llama_dir, tmp_path / folder)
    monkeypatch.chdir(tmp_path)
    assert entry("odd@name").source == "odd@name"
    assert entry("org/name@v1.0").revision is None
    assert entry("./smollm2-135m").d_model == 64
    assert entry("smollm2-135m").d_model == 576
    for name in ("smollm2-135m@main", f"{GEMMA}@main"):
        with pytest.raises(UserError, match="comes in a package, whose version decides: leave out @main"):
            entry(name)
    with pytest.raises(UserError, match=r"\./smollm2-135m is a directory, which has no revisions"):
        entry("./smollm2-135m@main")
    for name in ("org/name@", "@main"):
        with pytest.raises(UserError, match="write NAME@REVISION"):
            entry(name)


def test_what_was_loaded_from_the_hub_is_named_by_its_commit() -> None:
    def spec(revision: str | None) -> TeacherSpec:
        return TeacherSpec("x", "x", revision, None, 1, 1, 1, 1, "")

    assert pinned("org/name", spec("c0ffee")) == pinned("org/name@main", spec("c0ffee")) == "org/name@c0ffee"
    assert pinned("starcoder2-3b", spec("c0ffee")) == "starcoder2-3b@c0ffee"
    assert pinned("runs/x@120", spec(None)) == "runs/x@120"


def test_weights_are_packed_as_is_asked_and_else_as_suits_them() -> None:
    assert entry("starcoder2-3b", "int8").quantisation == "int8"
    assert entry("codellama-7b", "none").quantisation is None
    assert entry("codellama-7b", "int8").memory_bytes == int(1.1 * 6_738_415_616)
    assert entry(EMBEDDED, "none") == entry(EMBEDDED)


def test_arithmetic_of_our_own_packs_no_weights(teacher_dir: Path, make_config: Callable[..., RunConfig]) -> None:
    for name in (EMBEDDED, str(teacher_dir)):
        with pytest.raises(UserError, match=f"^--teacher_quantization nf4 is for models of transformers, and {name}"):
            distill(make_config(teacher=name, teacher_quantization="nf4"))
        with pytest.raises(UserError, match=r"^--teacher_quantization int8"):
            evaluate(model=f"teacher:{name}", latency=True, teacher_quantization="int8")


def test_an_object_is_no_name() -> None:
    with pytest.raises(UserError, match=r"the object 'smollm2-135m' of your own: pass it again.*--teacher"):
        entry("object:smollm2-135m")


def test_a_run_stands_for_its_newest_student(make_config: Callable[..., RunConfig]) -> None:
    run = distill(make_config(steps=2, checkpoint_every=1))
    newest = run.path / "checkpoints" / "step-2" / "student"
    found, student = entry(str(run.path)), load_student(newest).model
    assert (found.source, found.d_model) == (str(newest), student.config.d_model)
    assert found.n_parameters == pytest.approx(sum(p.numel() for p in student.parameters()), rel=0.02)
    teacher = load_teacher(str(run.path))
    assert isinstance(teacher, DecoderTeacher)
    assert torch.equal(teacher.decoder.head, student.head.bfloat16())


def test_a_student_directory_teaches(teacher_dir: Path) -> None:
    teacher = load_teacher(str(teacher_dir))
    assert isinstance(teacher, DecoderTeacher)
    assert json.loads((teacher_dir / "config.json").read_text())["format"] == "tutelage"
    assert entry(str(teacher_dir)).vocab_size == 600


@pytest.fixture
def hub_cache(tmp_path: Path, llama_dir: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The hub's local cache with two commits of a model, and a hub that does not answer; the commits by branch."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    home, commits = tmp_path / "hub" / "models--org--name", {"main": "a" * 40, "old": "b" * 40}
    for branch, commit in commits.items():
        shutil.copytree(llama_dir, home / "snapshots" / commit)
        (home / "refs").mkdir(exist_ok=True)
        (home / "refs" / branch).write_text(commit)
    weights = home / "snapshots" / commits["old"] / "model.safetensors"
    changed = {key: -tensor for key, tensor in load_file(weights).items()}
    save_file(changed, weights, {"format": "pt"})
    return commits


def test_the_commit_that_was_loaded_is_what_a_run_records_resumes_and_is_scored_with(
    hub_cache: dict[str, str], tmp_path: Path, make_config: Callable[..., RunConfig]
) -> None:
    for branch, commit in hub_cache.items():
        name = "org/name" if branch == "main" else f"org/name@{branch}"
        run = distill(make_config(teacher=name, steps=2, stop_after=1, output_dir=str(tmp_path / branch)))
        recorded = yaml.safe_load((run.path / "config.yaml").read_text())["teacher"]
        assert recorded == f"org/name@{commit}"
    kept = load_teacher(recorded)
    assert kept.spec.revision == hub_cache["old"]
    assert kept.spec.weights != load_teacher("org/name").spec.weights
    for ref in (tmp_path / "hub" / "models--org--name" / "refs").iterdir():
        ref.write_text(hub_cache["main"])  # the branch has gone on
    again = make_config(teacher=recorded, steps=2, resume=str(run.path))
    assert distill(again).step == 2
    models = f"{run.path},teacher:{recorded}"
    scored = evaluate(model=models, fidelity=True, output_dir=str(tmp_path / "e"), eval_rows=2, precision="fp32")
    assert list(scored) == ["old", f"teacher:org/name@{hub_cache['old'][:12]}"]


@pytest.mark.parametrize("packing", ["int8", "nf4"])
def test_packed_weights_teach_and_a_run_keeps_them(
    packing: Literal["int8", "nf4"], llama_dir: Path, tmp_path: Path, make_config: Callable[..., RunConfig]
) -> None:
    pytest.importorskip("bitsandbytes")
    config = make_config(teacher=str(llama_dir), teacher_quantization=packing, steps=2, stop_after=1)
    run = distill(config)
    resumed = replace(config, resume=str(run.path), stop_after=None)
    with pytest.raises(UserError, match=rf"teacher.quantisation was {packing}, is None"):
        distill(replace(resumed, teacher_quantization=None))
    assert distill(resumed).step == 2
    options: dict[str, Any] = {"fidelity": True, "eval_rows": 2, "device": "cpu", "precision": "fp32"}
    models = f"{run.path},teacher:{llama_dir}"
    for said, dtype in ((None, f"{packing}, fp32"), ("none", "fp32")):
        evaluate(model=models, output_dir=str(tmp_path / "e"), teacher_quantization=said, **options)
        found = json.loads((tmp_path / "e" / "results.json").read_text())
        assert found["settings"]["dtypes"][f"teacher:{llama_dir}"] == dtype
