"""Cut up over a group of one process, which is enough to see what is cut; numbers are in tests/test_distributed.py."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from tutelage.losses.config import LossConfig
from tutelage.losses.objective import Objective
from tutelage.student.config import StudentConfig
from tutelage.student.decoder import Decoder
from tutelage.teacher.decoder_teacher import DecoderTeacher
from tutelage.training.distiller import Distiller
from tutelage.training.sharding import inference, like, shard, whole

SHAPE = StudentConfig(vocab_size=60, n_layers=2, n_heads=2, n_kv_heads=1, d_model=16, d_ff=32)


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def make() -> Distiller:
    return Distiller(Decoder(SHAPE), Objective(LossConfig(), SHAPE.vocab_size))


@pytest.mark.usefixtures("group")
def test_all_of_the_student_and_the_layers_of_the_teacher_are_cut() -> None:
    distiller, decoder = make(), Decoder(SHAPE)
    before = {name: p.detach().clone() for name, p in distiller.named_parameters()}
    shard(distiller, DecoderTeacher(decoder, None, None), torch.device("cpu"))  # type: ignore[arg-type]
    assert all(isinstance(p, DTensor) for p in distiller.parameters())
    cut = {name for name, p in decoder.named_parameters() if isinstance(p, DTensor)}
    assert cut == {name for name, _ in decoder.named_parameters() if name.startswith("layers.")}
    for name, p in distiller.named_parameters():
        assert torch.equal(whole(p.detach()), before[name]), name
        assert torch.equal(whole(like(before[name], p)), before[name]), name


@pytest.mark.usefixtures("group")
def test_a_teacher_that_cannot_spread_stays_whole_and_inference_ends_whatever_happens() -> None:
    distiller = make()
    shard(distiller, SimpleNamespace(), torch.device("cpu"))  # type: ignore[arg-type]
    assert isinstance(distiller.student.head, DTensor)
    with suppress(ZeroDivisionError), inference(distiller):
        assert not isinstance(distiller.student.head, DTensor)  # whole, to be used outside of the forward pass
        raise ZeroDivisionError
    assert isinstance(distiller.student.head, DTensor)
    assert distiller.student.training


def test_what_is_whole_stays_the_same_tensor() -> None:
    tensor = torch.ones(3)
    assert whole(tensor) is tensor
    assert like(tensor, torch.zeros(3)) is tensor


def test_inference_is_without_dropout_and_ends() -> None:
    distiller: Any = make().train()
    with inference(distiller):
        assert not distiller.student.training
    assert distiller.student.training
