"""The processes of a run, as torchrun or accelerate launch started them: one each, or one alone.

`torch.distributed` underneath. With one process every method returns at once and there is no process group.
"""

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tutelage.data.batch import IGNORE, Batch
from tutelage.errors import UserError
from tutelage.training.devices import find_device

T = TypeVar("T")
STARTING = timedelta(hours=2)
"""How long processes wait for another that may be downloading a teacher or tokenising the text."""
TRAINING = timedelta(minutes=10)
"""How long they wait once training has started."""
_runs = itertools.count()
_closed: list[Any] = []
c10d: Any = dist  # with the names that it re-exports and its stubs leave out


class Processes:
    """All processes of this run and this one's place among them; closes the process group it made.

    `rank` of `size`, on `device` ("auto", "cpu", "cuda", "cuda:N" or "mps"; see `find_device`). A process group that
    exists already is used and left alone. Raises UserError where the device is not there or the others are not found.
    """

    def __init__(self, device: str = "auto") -> None:
        foreign = dist.is_available() and dist.is_initialized()
        self.rank, self.size = (dist.get_rank(), dist.get_world_size()) if foreign else _place()
        self._local_rank = _environment("LOCAL_RANK", self.rank)
        self.device = find_device(device, self._local_rank, self.size)
        self._made = self.size > 1 and not foreign
        if self._made:
            _start(self.device, self.rank, self.size)
        # flags are exchanged on the host, where the group can, so that nobody waits for the device
        on_host = self.size == 1 or "cpu" in dist.get_backend_config()
        self._host = torch.device("cpu") if on_host else self.device

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Destroys the process group, if this object made it; another run of these processes makes its own."""
        if self._made:
            self._made = False
            # Gloo's destructor waits for its threads with Python's lock held, and one that still drops a tensor of the
            # last collective wants that lock: so the groups are let go when the next run's are closed, long after.
            _closed[:] = _groups()
            dist.destroy_process_group()

    def started(self) -> None:
        """Says that the slow part is over: from now on whoever keeps the others waiting for ten minutes is dead."""
        if not self._made:
            return
        self.barrier()  # or one that still loads would be held to the shorter time
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        # a private name up to torch 2.13, a public one after it; without either the long timeout stays
        private = getattr(dist.distributed_c10d, "_set_pg_timeout", None)
        set_timeout: Any = getattr(dist, "set_timeout", private)
        for group in _groups() if set_timeout else []:
            set_timeout(TRAINING, group)

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes, tracks and prints."""
        return self.rank == 0

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """The sum of `tensor` over all processes, on this process's device; with one process `tensor` itself."""
        if self.size == 1:
            return tensor
        total = tensor.to(self.device, copy=True)
        dist.all_reduce(total)
        return total

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set in any process."""
        if self.size == 1:
            return flag
        count = torch.tensor(int(flag), device=self._host)
        dist.all_reduce(count)
        return bool(count)

    def barrier(self) -> None:
        """Waits, on the host, until every process is here."""
        self.any(False)

    def broadcast(self, value: T) -> T:
        """Rank 0's `value`, in all processes: any object, or a tensor of one shape and dtype on the device."""
        if self.size == 1:
            return value
        if isinstance(value, Tensor):
            dist.broadcast(received := value.clone(memory_format=torch.contiguous_format), src=0)
            return cast(T, received)
        objects = [value]
        dist.broadcast_object_list(objects, src=0)
        return objects[0]

    def all_gather(self, value: T) -> list[T]:
        """Every process's `value`, an object, by rank."""
        if self.size == 1:
            return [value]
        values = [value] * self.size
        dist.all_gather_object(values, value)
        return values

    def raise_together(self, make: Callable[[], T]) -> T:
        """What `make` returns here; where it raises UserError in any process, all raise it."""
        result, fault = None, None
        try:
            result = make()
        except UserError as error:
            fault = error
        for line in filter(None, self.all_gather(fault and str(fault))):
            raise UserError(line) from fault
        return cast(T, result)

    @contextmanager
    def local_first(self) -> Iterator[None]:
        """The first process of each machine goes before its others, which then find the caches filled."""
        leads = self._local_rank == 0
        if not leads:
            self.barrier()
        try:
            yield
        finally:  # the others must not wait for one that failed
            if leads:
                self.barrier()

    def shard(self, batch: Batch, pieces: int) -> list[Batch]:
        """This process's rows of the global batch, in up to `pieces` micro-batches; no row goes to two processes."""
        return [piece.to(self.device) for piece in batch.split(self.size)[self.rank].split(pieces)]

    def shard_batches(self, batches: Sequence[Batch]) -> list[Batch]:
        """This process's share of `batches`, as many for each; where they run out, one without a trained target."""
        mine = [batch.to(self.device) for batch in batches[self.rank :: self.size]]
        if len(mine) * self.size < len(batches):
            spare = batches[0].to(self.device)
            mine.append(replace(spare, targets=torch.full_like(spare.targets, IGNORE)))
        return mine

    def wrap(self, module: nn.Module) -> nn.Module:
        """`module` on its device, its gradients averaged over the processes in backward.

        One that FSDP has sharded averages them by itself.
        """
        from torch.distributed.fsdp import FSDPModule  # seconds to import

        if isinstance(module, FSDPModule):
            return module
        module.to(self.device)
        return module if self.size == 1 else DistributedDataParallel(module, gradient_as_bucket_view=True)

    def sync(self, wrapped: nn.Module, now: bool) -> AbstractContextManager[None]:
        """A context for forward and backward of a micro-batch, after which gradients are averaged, or not yet.

        A sharded module always averages them: whole gradients are what does not fit.
        """
        if now or not isinstance(wrapped, DistributedDataParallel):
            return nullcontext()
        waiting: AbstractContextManager[None] = wrapped.no_sync()
        return waiting


class Silent:
    """Stands, in all processes but the first, for what only the first one has: takes every call, does nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None


def _groups() -> list[Any]:
    """Every process group there is: FSDP's mesh may have made one of its own."""
    return list(dist.distributed_c10d._world.pg_map)


def _place() -> tuple[int, int]:
    """Rank and number of processes, as the launcher set them."""
    size = _environment("WORLD_SIZE", 1)
    rank = _environment("RANK", -1) if size > 1 else 0
    if not 0 <= rank < size:
        raise UserError(f"RANK {os.environ.get('RANK', '(unset)')} of WORLD_SIZE {size} processes: use torchrun")
    return rank, size


def _environment(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    try:
        return int(text) if text else default
    except ValueError as error:
        raise UserError(
            f"the environment variable {name} is '{text}', not a number: unset it or use torchrun"
        ) from error


@cache
def _store(rank: int, size: int) -> Any:
    """Where the processes find each other (MASTER_ADDR, MASTER_PORT); kept, as its port can be opened only once."""
    store, _, _ = next(c10d.rendezvous("env://", rank, size, timeout=STARTING))
    return store


def _start(device: torch.device, rank: int, size: int) -> None:
    """Makes the process group of one run; each has its part of the store, where an earlier one's addresses lie."""
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        store = c10d.PrefixStore(f"run-{next(_runs)}", _store(rank, size))
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=STARTING)
    except (RuntimeError, ValueError) as error:
        place = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"process {rank} of {size} (WORLD_SIZE) does not find the others at MASTER_ADDR:MASTER_PORT {place}"
            f" ({reason}): start them with torchrun"
        ) from error
