"""What a run is made of, and what cannot be."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tutelage import distill
from tutelage.data.config import PackingConfig
from tutelage.errors import UserError
from tutelage.losses.config import LossConfig
from tutelage.student.config import StudentOptions
from tutelage.student.decoder import Decoder
from tutelage.teacher.memory import Memory
from tutelage.training.config import RunConfig
from tutelage.training.parts import build

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
    student = build(make_config(student=StudentOptions(preset="nano", init=init)), None).student  # type: ignore[arg-type]
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
