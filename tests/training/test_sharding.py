"""Cut up over a group of one process, which is enough to see what is cut; two are in test_two_processes.py."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from tutelage.errors import UserError
from tutelage.losses.config import LossConfig
from tutelage.losses.objective import Objective
from tutelage.student.config import StudentConfig
from tutelage.student.decoder import Decoder
from tutelage.teacher.decoder_teacher import DecoderTeacher
from tutelage.teacher.signal import TeacherSpec
from tutelage.training.distiller import Distiller
from tutelage.training.processes import Processes
from tutelage.training.sharding import inference, like, receive, shard, teacher_device, whole

SHAPE = StudentConfig(vocab_size=60, n_layers=2, n_heads=2, n_kv_heads=1, d_model=16, d_ff=32)


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


SPEC = TeacherSpec("t", "t", None, None, 1, 60, 16, 2, "f", "content")


def make() -> Distiller:
    return Distiller(Decoder(SHAPE), Objective(LossConfig(), SHAPE.vocab_size))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.usefixtures("group")
def test_all_is_cut_but_the_teachers_head_under_one_root(tied: bool) -> None:
    distiller, decoder = make(), Decoder(replace(SHAPE, tie_embeddings=tied))
    before = {name: p.detach().clone() for name, p in distiller.named_parameters()}
    teacher = DecoderTeacher(decoder, None, SPEC)  # type: ignore[arg-type]
    shard(distiller, teacher, Processes("cpu"))
    assert all(isinstance(p, DTensor) for p in distiller.parameters())
    whole_ones = {name for name, p in decoder.named_parameters() if not isinstance(p, DTensor)}
    assert whole_ones == {"embed_tokens.weight" if tied else "lm_head.weight"}
    assert decoder.head is (decoder.embed_tokens if decoder.lm_head is None else decoder.lm_head).weight
    assert isinstance(decoder, FSDPModule)  # one root, whose children gather the next layer in time
    assert all(isinstance(layer, FSDPModule) for layer in decoder.layers)
    assert teacher.spec.weights == "content"
    for name, p in distiller.named_parameters():
        assert torch.equal(whole(p.detach()), before[name]), name
        assert torch.equal(whole(like(before[name], p)), before[name]), name


@pytest.mark.usefixtures("group")
def test_a_teacher_that_cannot_spread_stays_whole_and_inference_ends_whatever_happens() -> None:
    distiller = make()
    shard(distiller, SimpleNamespace(), Processes("cpu"))  # type: ignore[arg-type]
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


@pytest.mark.usefixtures("group")
def test_what_is_received_keeps_its_ties_and_leaves_meta() -> None:
    with torch.device("meta"):
        model = torch.nn.Sequential(
            torch.nn.Embedding(5, 3), torch.nn.Linear(3, 5, bias=False), torch.nn.BatchNorm1d(5)
        )
    model[1].weight = model[0].weight
    model[2].register_buffer("inv_freq", torch.empty(2, device="meta"), persistent=False)
    receive(model, Processes("cpu"))
    assert model[1].weight is model[0].weight
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])


def placed(rank: int, size: int) -> Processes:
    one = Processes("cpu")
    one.rank, one.size = rank, size
    return one


def other_first(processes: Processes, value: Any) -> None:
    """Makes `value` what the first process says."""
    processes.broadcast = lambda mine: value  # type: ignore[method-assign, assignment]


@pytest.mark.usefixtures("group")
def test_another_model_in_the_first_process_is_refused_and_its_dtypes_are_taken() -> None:
    one = Processes("cpu")
    module = torch.nn.Linear(3, 2, device="meta", dtype=torch.bfloat16)
    other_first(one, {"weight": (torch.Size([4, 3]), torch.float32), "bias": (torch.Size([2]), torch.float32)})
    with pytest.raises(UserError, match=r"weight is \(2, 3\) in .* and \(4, 3\) in the first.*leave out --fsdp"):
        receive(module, one)
    other_first(one, {"weight": (torch.Size([2, 3]), torch.bfloat16), "bias": (torch.Size([2]), torch.float32)})
    receive(module, one)
    assert (module.weight.dtype, module.bias.dtype) == (torch.bfloat16, torch.float32)


def test_one_process_of_all_loads_a_teacher_that_is_cut_up() -> None:
    assert [teacher_device(placed(rank, 2), None) for rank in (0, 1)] == ["cpu", "meta"]
    assert [teacher_device(placed(rank, 2), "nf4") for rank in (0, 1)] == ["cpu", "cpu"]
    assert teacher_device(placed(0, 1), None) == "cpu"
