"""The processes of a run: which rows each one reads, what they add up, and that one of them speaks for all.

One process is the common case, and every method then does nothing that costs.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from datetime import timedelta
from typing import TypeVar, cast

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from tutelage.data.batch import IGNORE, Batch
from tutelage.errors import UserError
from tutelage.training.config import RunConfig

T = TypeVar("T")
PATIENCE = timedelta(hours=2)
"""How long processes wait for another, which may be downloading a teacher; one that died ends the job at once."""


class Processes:
    """All processes of this run, as `torchrun` or `accelerate launch` started them, and this one's place.

    Raises UserError for a device that is not there.
    """

    def __init__(self, config: RunConfig) -> None:
        # one process may make several runs, each its own way
        AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
        try:
            torch.empty(0, device="cpu" if config.device == "auto" else config.device)
        except (RuntimeError, AssertionError) as error:
            raise UserError(f"--device {config.device} is not available here: use auto or cpu") from error
        self.accelerator = Accelerator(
            cpu=config.device == "cpu" or not torch.accelerator.is_available(),
            mixed_precision="bf16" if config.precision == "bf16" else "no",
            kwargs_handlers=[
                DistributedDataParallelKwargs(gradient_as_bucket_view=True),
                InitProcessGroupKwargs(timeout=PATIENCE),
            ],
        )
        place: torch.device = self.accelerator.device
        self.device = torch.device("cpu") if place.type == "cpu" else place  # accelerate numbers CPUs, others do not
        self.rank: int = self.accelerator.process_index
        self.size: int = self.accelerator.num_processes

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes, tracks and speaks."""
        return self.rank == 0

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """The first process of each machine goes before its others, which then find what it left in the caches."""
        leads = self.accelerator.is_local_main_process
        if not leads:
            self.accelerator.wait_for_everyone()
        try:
            yield
        finally:  # the others must not wait for one that failed
            if leads:
                self.accelerator.wait_for_everyone()

    def agree(self, make: Callable[[], T]) -> T:
        """What `make` returns here; where it is a UserError in some process, that is raised in all of them."""
        result, fault = None, None
        try:
            result = make()
        except UserError as error:
            fault = str(error)
        for line in filter(None, self.gather(fault)):
            raise UserError(line)
        return cast(T, result)

    def share(self, batch: Batch, pieces: int) -> list[Batch]:
        """This process's rows of the global batch, in up to `pieces` micro-batches.

        Those of all processes together are the batch, and no row is read twice.
        """
        return [piece.to(self.device) for piece in batch.split(self.size)[self.rank].split(pieces)]

    def deal(self, batches: Sequence[Batch]) -> list[Batch]:
        """This process's batches of all, as many for each: where they run out, one whose targets do not count."""
        mine = [batch.to(self.device) for batch in batches[self.rank :: self.size]]
        if len(mine) * self.size < len(batches):
            spare = batches[0].to(self.device)
            mine.append(replace(spare, targets=torch.full_like(spare.targets, IGNORE)))
        return mine

    def total(self, value: Tensor) -> Tensor:
        """The sum of `value` over all processes."""
        if self.size == 1:
            return value
        summed: Tensor = self.accelerator.reduce(value.to(self.device), "sum")
        return summed

    def anywhere(self, flag: bool) -> bool:
        """Whether `flag` is set in some process: all decide alike, or one would wait for the others for ever."""
        return bool(self.total(torch.tensor(float(flag))))

    def told(self, value: T) -> T:
        """What the first process has as `value`."""
        said: T = broadcast_object_list([value])[0]
        return said

    def gather(self, value: T) -> list[T]:
        """`value` of every process, by rank."""
        everyone: list[T] = gather_object([value])
        return everyone

    def wrap(self, module: nn.Module) -> nn.Module:
        """`module` on its device under mixed precision, its gradients averaged over processes in backward.

        One that `sharding.shard` has cut up averages them by itself.
        """
        wrapped: nn.Module = self.accelerator.prepare_model(module, evaluation_mode=isinstance(module, FSDPModule))
        return wrapped

    def exchange(self, wrapped: nn.Module, *, now: bool) -> AbstractContextManager[None]:
        """A context for forward and backward of a micro-batch, after which gradients are exchanged, or not yet.

        A module that is cut up exchanges them in any case: what it would have to keep is what does not fit.
        """
        wait: AbstractContextManager[None] = nullcontext() if now else self.accelerator.no_sync(wrapped)
        return wait


class Mute:
    """Stands, in all processes but the first, for what only the first one has: takes every call, does nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None
