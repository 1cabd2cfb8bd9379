"""What a run is made of, and what cannot be."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import HF_SHAPE
from tutelage.data.config import PackingConfig
from tutelage.data.tokenizer import train
from tutelage.errors import UserError
from tutelage.losses.config import LossConfig
from tutelage.runs import checkpoint_path
from tutelage.student.config import StudentConfig, StudentOptions
from tutelage.student.decoder import Decoder
from tutelage.student.weights import load_student, save_student
from tutelage.teacher.memory import Memory
from tutelage.training.config import RunConfig
from tutelage.training.loop import distill
from tutelage.training.parts import build
from tutelage.training.plan import show

Make = Callable[..., RunConfig]


def test_the_parts_fit_together(make_config: Make, teacher_decoder: Decoder) -> None:
    parts = build(make_config(), None)
    assert parts.vocab_size == 600
    assert parts.loader.batch(0).tokens.shape == (4, 32)
    ours = {id(p) for group in parts.optimizer.param_groups for p in group["params"]}
    assert ours == {id(p) for p in parts.distiller.parameters()}
    assert parts.student.training
    assert parts.steps == 4
    assert parts.distiller.objective.needs == {"full"}


def test_the_seed_decides_the_weights(make_config: Make) -> None:
    heads = [build(make_config(seed=seed), None).student.head for seed in (0, 0, 1)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


@pytest.mark.parametrize("init", ["embeddings", "layers"])
def test_weights_come_from_the_teacher(make_config: Make, teacher_decoder: Decoder, init: str) -> None:
    student = build(make_config(student=StudentOptions(preset="nano", init=init)), None).student
    assert torch.equal(student.head, teacher_decoder.head)
    same = torch.equal(
        student.layers[1].mlp.up_proj.weight,  # type: ignore[union-attr,arg-type]
        teacher_decoder.layers[1].mlp.up_proj.weight,  # type: ignore[union-attr,arg-type]
    )
    assert same == (init == "layers")
    assert all(p.dtype == torch.float32 and p.requires_grad for p in student.parameters())


def test_epochs_become_steps(make_config: Make) -> None:
    whole = build(make_config(steps=None), None)
    assert whole.steps == pytest.approx(whole.loader.rows_per_epoch / 4, abs=0.5)
    assert build(make_config(steps=None, epochs=2.0), None).steps == pytest.approx(2 * whole.steps, abs=1)
    assert build(make_config(steps=None, epochs=1e-9), None).steps == 1


@pytest.mark.parametrize(
    ("fields", "remembers"),
    [
        ({"steps": 2}, False),
        ({"steps": 3}, True),
        ({"steps": 3, "accumulate": 2}, True),
        ({"steps": 3, "accumulate": 3}, False),  # micro-batches of 2, 1 and 1 rows
        ({"steps": None, "epochs": 1.0}, False),
        ({"steps": None, "epochs": 2.0}, True),
    ],
)
def test_a_teacher_remembers_where_rows_come_again(make_config: Make, fields: dict[str, Any], remembers: bool) -> None:
    parts = build(make_config(max_rows=8, **fields), None)
    assert isinstance(parts.teacher, Memory) == parts.remembers == remembers


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"teacher": "smollm2-136m"}, "smollm2-135m"),
        ({"data": "nowhere/at/all"}, "nowhere/at/all"),
        ({"device": "cuda:77"}, "--device cuda:77"),
        ({"accumulate": 5}, "--accumulate 5.*4"),
        ({"packing": PackingConfig(seq_len=4096, heldout=0.2)}, "--packing.seq_len 4096.*2048"),
        ({"student": StudentOptions(preset="nanoo")}, "did you mean 'nano'"),
        ({"student": StudentOptions(preset="30m", init="layers")}, r"--student\.init layers"),
        ({"student": StudentOptions(preset="nano", init="layers", rope_theta=5e5)}, r"rope_theta 10000"),
        ({"loss": LossConfig(terms="nothing")}, "unknown loss 'nothing'"),
        ({"loss": LossConfig(ce_weight=0, kd_weight=0)}, "raise one"),
    ],
)
def test_what_cannot_work_is_refused(make_config: Make, fields: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(make_config(**fields), None)


def test_rows_beyond_the_teachers_context_are_refused(make_config: Make, teacher_dir: Path) -> None:
    config = make_config(packing=PackingConfig(seq_len=300, heldout=0.2))
    said = f"^--packing.seq_len 300 is more than the context of teacher {teacher_dir}, which is 256: lower it"
    with pytest.raises(UserError, match=said):
        build(config, None)
    with pytest.raises(UserError, match=said):
        distill(config)
    assert not Path(config.output_dir or "").exists()


def test_steps_and_epochs_together_are_refused(make_config: Make) -> None:
    with pytest.raises(UserError, match="--steps 3 and --epochs 2"):
        build(make_config(steps=3, epochs=2.0), None)


def test_epochs_are_passes_over_the_rows(make_config: Make) -> None:
    parts = build(make_config(steps=None, epochs=2.0), None)
    assert parts.steps == round(2 * parts.loader.rows_per_epoch / 4)


# --- a student that starts from another model ------------------------------------------------------------------


@pytest.fixture(scope="session")
def qwen_dir(tmp_path_factory: pytest.TempPathFactory, save_model: Callable[..., Path]) -> Path:
    """A Qwen2 model with more rows than tokens, two matrices, and a shape that is no preset's."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(3)
    shape = {**HF_SHAPE, "vocab_size": 640, "intermediate_size": 96, "num_hidden_layers": 3}
    return save_model(Qwen2ForCausalLM(Qwen2Config(**shape)), tmp_path_factory.mktemp("qwen"))


def starts(make_config: Make, init: Path | str, **fields: Any) -> RunConfig:
    return make_config(student=StudentOptions(init=str(init)), **fields)


def test_a_qwen_is_a_student(make_config: Make, qwen_dir: Path, llama_dir: Path, tmp_path: Path) -> None:
    """Of a Llama with the same vocabulary; before the first step it is the model it starts from."""
    from transformers import AutoModelForCausalLM

    parts = build(starts(make_config, qwen_dir, teacher=str(llama_dir)), None)
    shape = parts.student.config
    assert (shape.n_layers, shape.d_ff, shape.qkv_bias, shape.vocab_size) == (3, 96, True, 600)
    assert not shape.tie_embeddings
    assert all(p.dtype == torch.float32 and p.requires_grad for p in parts.student.parameters())
    theirs = AutoModelForCausalLM.from_pretrained(qwen_dir, dtype=torch.float32).eval()
    batch = parts.loader.batch(0)
    row, targets = batch.tokens[:1], batch.targets[:1]
    alone = (batch.segments[:1] == batch.segments[:1, :1]) & (targets != -100)  # the first document of the row
    with torch.no_grad():
        ours = parts.student.eval()(row, segments=batch.segments[:1], positions=batch.positions[:1]).hidden
        ours, expected = parts.student.logits(ours)[alone], theirs(row).logits[..., :600][alone]
    assert alone.sum() > 8
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    loss = torch.nn.functional.cross_entropy
    assert loss(ours, targets[alone]).item() == pytest.approx(loss(expected, targets[alone]).item(), rel=1e-4)


def test_it_goes_on_without_the_model_it_started_from(make_config: Make, qwen_dir: Path, tmp_path: Path) -> None:
    source = shutil.copytree(qwen_dir, tmp_path / "source")
    whole = distill(starts(make_config, source, steps=3, output_dir=str(tmp_path / "whole")))
    config = starts(make_config, source, steps=3, stop_after=2)
    run = distill(config)
    shutil.rmtree(source)
    resumed = replace(config, resume=str(run.path), output_dir=None, stop_after=None)
    flags = replace(resumed, student=replace(resumed.student, n_layers=7))
    with pytest.raises(UserError, match=r"--student\.n_layers 7: --student\.init \S+ brings its own shape, with 3"):
        distill(flags)
    show(replace(resumed, dry_run=True))
    done = distill(resumed)
    files = [checkpoint_path(path, 3) / "student" / "model.safetensors" for path in (done.path, whole.path)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_run_goes_on_as_another_with_another_teacher(make_config: Make, llama_dir: Path, tmp_path: Path) -> None:
    """Its student is where the next one starts, whatever its preset was."""
    first = distill(make_config(steps=2, checkpoint_every=1, student=StudentOptions(preset="nano", n_layers=1)))
    for name, step in ((str(first.path), 2), (f"{first.path}@1", 1)):
        config = starts(make_config, name, teacher=str(llama_dir), output_dir=str(tmp_path / f"second-{step}"))
        student = build(config, None).student
        saved = load_student(checkpoint_path(first.path, step) / "student").model
        assert student.config == saved.config
        assert all(torch.equal(a, b) for a, b in zip(student.parameters(), saved.parameters(), strict=True))


@pytest.mark.parametrize(
    ("student", "message"),
    [
        ({"init": "layer"}, "--student.init layer: unknown value 'layer': did you mean 'layers'"),
        ({"init": "./nowhere"}, "--student.init ./nowhere: there is no such directory"),
        ({"init": "{qwen}", "n_layers": 2}, "--student.n_layers 2: .* with 3"),
        ({"init": "{qwen}", "preset": "nano"}, "--student.preset nano: .* leave the preset out"),
        ({"init": "{other}"}, "its vocabulary of 258 tokens is not the teacher's of 600: id 257 is .* there and"),
    ],
)
def test_a_start_that_cannot_work_leaves_nothing(
    make_config: Make, qwen_dir: Path, tmp_path: Path, student: dict[str, Any], message: str
) -> None:
    save_student(Decoder(StudentConfig(258, 1, 4, 2, 64, 96)), train(["zq" * 50], 258), tmp_path / "other")
    init = student["init"].format(qwen=qwen_dir, other=tmp_path / "other")
    with pytest.raises(UserError, match=message):
        distill(make_config(student=StudentOptions(**{**student, "init": init})))
    assert not (tmp_path / "run").exists()


def test_a_source_whose_rows_are_too_short_is_refused_with_the_flag(make_config: Make, qwen_dir: Path) -> None:
    long = PackingConfig(seq_len=300, heldout=0.2)
    with pytest.raises(UserError, match=r"--packing.seq_len 300.*context of 256.*raise --student.max_seq_len"):
        build(starts(make_config, qwen_dir, packing=long), None)
    free = StudentOptions(init=str(qwen_dir), max_seq_len=512, dropout=0.25)
    student = build(make_config(student=free), None).student
    assert (student.context, student.config.dropout) == (512, 0.25)


def test_the_plan_knows_the_shape_that_a_source_brings(
    make_config: Make, qwen_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show(starts(make_config, qwen_dir))
    assert "3 layers, width 64, init" in capsys.readouterr().out
