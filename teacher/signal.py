"""What a teacher is and what it says about a batch.

A teacher of your own is any object with these attributes; about twenty lines, see CONTRIBUTING.md.

Shapes: B rows, T tokens, E teacher width, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from tutelage.data.batch import Batch
from tutelage.data.tokenizer import Tokenizer
from tutelage.kernels.linear_divergence import DenseTeacher
from tutelage.kernels.rows import TopK
from tutelage.student.cache import CausalLM
from tutelage.student.decoder import Decoder


@dataclass(frozen=True)
class TeacherSpec:
    """Which teacher this is, as checkpoints and reports record it."""

    name: str
    source: str
    revision: str | None
    quantisation: str | None
    n_parameters: int
    vocab_size: int
    d_model: int
    n_layers: int
    tokenizer_fingerprint: str
    weights: str = ""
    """Which weights, by content and not by name or path (`weights_fingerprint`); "" where a teacher does not say."""
    context: int | None = None
    """Longest text it was made for, in tokens; None where there is no such limit."""


@dataclass(frozen=True)
class Signal:
    """What a teacher says about a batch: a next-token distribution in the kernels' own form, with rows `(B, T, …)`
    where theirs are `(N, …)`, and `taps`, the residual stream after the layers asked for, `(B, T, E)` each."""

    distribution: DenseTeacher | TopK | None
    taps: tuple[Tensor, ...] = ()

    @property
    def dense(self) -> DenseTeacher:
        """The distribution of a teacher that provides "full". Raises TypeError for another."""
        if not isinstance(self.distribution, DenseTeacher):
            raise TypeError(f"a whole distribution is wanted, the teacher gave {type(self.distribution).__name__}")
        return self.distribution


class Teacher(Protocol):
    """The seam between a teacher and everything that learns from it.

    It may have besides, under these names: `tokenizer`, which the student then shares; `decoder`, its weights in our
    arithmetic, where that is exact, for `--student.init`; `generator()`, the model to generate with; `prompt_style`,
    how benchmarks put problems to it.
    """

    @property
    def spec(self) -> TeacherSpec:
        """What it is, for the record."""

    @property
    def provides(self) -> frozenset[str]:
        """Of {"full"}; an objective checks its needs against it before the first step."""

    def signal(self, batch: Batch, taps: Sequence[int] = ()) -> Signal:
        """Its distribution at every position of the batch; documents of a packed row never see each other."""


def tokenizer_of(teacher: Teacher) -> Tokenizer | None:
    """Its own, if it has one."""
    return getattr(teacher, "tokenizer", None)


def decoder_of(teacher: Teacher) -> Decoder | None:
    """Its weights as a decoder of ours, if they are one."""
    return getattr(teacher, "decoder", None)


def generator_of(teacher: Teacher) -> CausalLM | None:
    """The model to generate with, if it has one."""
    make = getattr(teacher, "generator", None)
    return make and make()


def prompt_style_of(teacher: Teacher) -> str:
    """ "completion", where it does not say "chat"."""
    return getattr(teacher, "prompt_style", "completion")


@runtime_checkable
class Shardable(Protocol):
    """What a `Teacher` has besides, whose weights `--fsdp` may cut up over the processes."""

    spec: TeacherSpec

    def shard(self, receive: Callable[[nn.Module], None], fully_shard: Callable[..., object]) -> None:
        """Calls `receive` on every module that holds weights and then cuts up all but the head, which losses use whole.

        `receive(module)` puts rank 0's weights into a module, on this process's device; until then other processes
        have them on the meta device. `fully_shard` is FSDP2's: first each layer, then the module that `signal` runs,
        with the head (and an embedding tied to it) among its `ignored_params`, so that gathers overlap.
        """
