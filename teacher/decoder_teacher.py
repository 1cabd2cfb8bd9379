"""A teacher in our own arithmetic: the embedded one, or any student trained here.

Shapes: B rows, T tokens, E teacher width, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from tutelage.data.batch import Batch
from tutelage.data.tokenizer import Tokenizer
from tutelage.student.decoder import Decoder
from tutelage.student.weights import load_student
from tutelage.teacher.fingerprint import weights_fingerprint
from tutelage.teacher.signal import FullSignal, TeacherSpec


@dataclass(frozen=True)
class DecoderTeacher:
    """A frozen `Decoder` that teaches."""

    decoder: Decoder
    tokenizer: Tokenizer
    spec: TeacherSpec
    prompt_style: str = "completion"
    provides: frozenset[str] = frozenset({"full"})

    @torch.no_grad()
    def signal(self, batch: Batch, taps: Sequence[int] = ()) -> FullSignal:
        """See `Teacher.signal`."""
        output = self.decoder(batch.tokens, positions=batch.positions, segments=batch.segments, taps=taps)
        return FullSignal(output.hidden, self.decoder.head, taps=output.taps)

    def spread(self, cut: Callable[[nn.Module], object], device: torch.device) -> None:
        """Cuts up its layers, so that `--fsdp` shares them between processes, and moves the rest to `device`."""
        for layer in self.decoder.layers:
            cut(layer)
        self.decoder.to(device)

    def generator(self) -> Decoder:
        """The decoder itself."""
        return self.decoder


def load(
    name: str,
    path: Path,
    *,
    device: str,
    dtype: torch.dtype = torch.bfloat16,
    prompt_style: str = "completion",
) -> DecoderTeacher:
    """The student at `path` (see `load_student`) as a teacher that computes in `dtype`, bf16 or fp32."""
    student = load_student(path, dtype=dtype, device=device)
    shape = student.model.config
    spec = TeacherSpec(
        name=name,
        source=path.name,
        revision=None,
        quantisation=None,
        n_parameters=shape.n_parameters,
        vocab_size=shape.vocab_size,
        d_model=shape.d_model,
        n_layers=shape.n_layers,
        tokenizer_fingerprint=student.tokenizer.fingerprint,
        weights=weights_fingerprint(student.model),
    )
    return DecoderTeacher(student.model, student.tokenizer, spec, prompt_style)
