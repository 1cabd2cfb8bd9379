"""Weights, gradients and optimizer state cut up over processes (FSDP2), for models that do not fit one device.

Arithmetic stays that of one process: weights are gathered in the dtype they have. arXiv:2304.11277.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from tutelage.errors import UserError
from tutelage.teacher.signal import Shardable, Teacher
from tutelage.training.distiller import Distiller
from tutelage.training.processes import Processes


def teacher_device(processes: Processes, quantisation: str | None) -> str:
    """Where a process loads a teacher that `shard` will cut up: rank 0 on the CPU, the others its shape alone.

    A 4-bit teacher stays whole, so each process loads it where it is used.
    """
    if processes.size == 1 or quantisation:
        return str(processes.device)
    return "cpu" if processes.first else "meta"


def shard(distiller: Distiller, teacher: Teacher, processes: Processes) -> None:
    """Cuts up student and teacher, in place, block by block; their weights are rank 0's.

    The rest of the student, its head included, is one more piece with the losses; a teacher's head stays whole in
    every process, as every loss needs all of it. Raises UserError, in all processes, where their models differ.
    """
    mesh = init_device_mesh(processes.device.type, (processes.size,))
    receive(distiller, processes)
    for block in distiller.student.layers:
        fully_shard(block, mesh=mesh)
    fully_shard(distiller, mesh=mesh)
    if isinstance(teacher, Shardable):
        specs = processes.all_gather(replace(teacher.spec, weights=""))
        if any(spec != specs[0] for spec in specs):
            raise UserError(f"--teacher {specs[0].name} is not the same in every process: make it so")
        teacher.shard(
            partial(receive, processes=processes), partial(fully_shard, mesh=mesh, reshard_after_forward=True)
        )
        teacher.spec = replace(teacher.spec, weights=processes.broadcast(teacher.spec.weights))


def receive(module: nn.Module, processes: Processes) -> None:
    """Puts rank 0's parameters and buffers into `module`, on this process's device; every process must call it.

    Those on the meta device are made here, tensor by tensor, so that no other host ever holds the whole; what is cut
    up already is left alone, and tied tensors stay tied. Raises UserError, in all processes, where names or shapes
    differ.
    """
    tensors = {
        name: tensor
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]
        if not isinstance(tensor, DTensor)
    }
    theirs = processes.broadcast({name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()})
    processes.raise_together(lambda: _check_shapes(tensors, {name: shape for name, (shape, _) in theirs.items()}))
    received: dict[Tensor, Tensor] = {}
    for name, old in tensors.items():
        dtype = theirs[name][1]  # which a model may choose by tensor while it loads weights
        if old.is_meta:
            new = torch.empty(old.shape, dtype=dtype, device=processes.device)
        else:
            new = old.detach().to(processes.device, dtype).contiguous()
        dist.broadcast(new, src=0)
        received[old] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
    slots: dict[str, Any]
    for holder in module.modules():
        for slots in (holder._parameters, holder._buffers):
            slots |= {name: received[old] for name, old in slots.items() if old in received}


def _check_shapes(tensors: dict[str, Tensor], theirs: dict[str, torch.Size]) -> None:
    mine = {name: tensor.shape for name, tensor in tensors.items()}
    if differ := sorted({name for name, _ in mine.items() ^ theirs.items()}):
        here, there = (str(tuple(shapes[differ[0]])) if differ[0] in shapes else "absent" for shapes in (mine, theirs))
        raise UserError(
            f"--fsdp: {differ[0]} is {here} in process {dist.get_rank()} and {there} in the first"
            " process, so this model cannot be loaded once for all: leave out --fsdp"
        )


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
