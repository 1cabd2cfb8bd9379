"""Weights, gradients and optimizer state cut up over processes (FSDP2), for models that do not fit one device.

Arithmetic stays that of one process: weights are gathered in the dtype they have. arXiv:2304.11277.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from tutelage.teacher.signal import Teacher
from tutelage.training.distiller import Distiller


def shard(distiller: Distiller, teacher: Teacher, device: torch.device) -> None:
    """Cuts up the student, in place, block by block; the rest, its head included, is one more piece with the losses.

    Of a teacher that can `spread`, its layers are cut up: its head is needed whole by every loss.
    """
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for block in distiller.student.layers:
        fully_shard(block, mesh=mesh)
    fully_shard(distiller, mesh=mesh)
    if spread := getattr(teacher, "spread", None):
        spread(partial(fully_shard, mesh=mesh, reshard_after_forward=True), device)


@contextmanager
def inference(distiller: Distiller) -> Iterator[None]:
    """A context in which the student predicts, outside the distiller's forward pass; every process must enter it."""
    distiller.student.eval()
    if isinstance(distiller, FSDPModule):
        distiller.unshard()
    try:
        yield
    finally:
        if isinstance(distiller, FSDPModule):
            distiller.reshard()
        distiller.student.train()


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be cut up; every process must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(source: Tensor, tensor: Tensor) -> Tensor:
    """A whole `source`, the same in every process, cut up as `tensor` is."""
    if not isinstance(tensor, DTensor):
        return source
    return distribute_tensor(source.to(tensor.device), tensor.device_mesh, tensor.placements, src_data_rank=None)
