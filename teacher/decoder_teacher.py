"""A teacher in our own arithmetic: the embedded one, or any student trained here.

Shapes: B rows, T tokens, E teacher width, V vocabulary.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from tutelage.data.batch import Batch
from tutelage.data.tokenizer import Tokenizer, check_fingerprint
from tutelage.kernels.linear_divergence import DenseTeacher
from tutelage.student.config import StudentConfig
from tutelage.student.decoder import Decoder
from tutelage.student.weights import Student, find_student, load_student
from tutelage.teacher.fingerprint import weights_fingerprint
from tutelage.teacher.load_errors import load_errors
from tutelage.teacher.signal import Signal, TeacherSpec


@dataclass
class DecoderTeacher:
    """A frozen `Decoder` that teaches."""

    decoder: Decoder
    tokenizer: Tokenizer
    spec: TeacherSpec
    prompt_style: str = "completion"
    provides: frozenset[str] = frozenset({"full"})

    @torch.no_grad()
    def signal(self, batch: Batch, taps: Sequence[int] = ()) -> Signal:
        """See `Teacher.signal`."""
        output = self.decoder(batch.tokens, positions=batch.positions, segments=batch.segments, taps=taps)
        return Signal(DenseTeacher(output.hidden, self.decoder.head), taps=output.taps)

    def shard(self, receive: Callable[[nn.Module], None], fully_shard: Callable[..., object]) -> None:
        """See `Shardable`."""
        for layer in self.decoder.layers:
            receive(layer)
            fully_shard(layer)
        receive(self.decoder)  # the rest of it
        fully_shard(self.decoder, ignored_params={self.decoder.head})

    def generator(self) -> Decoder:
        """The decoder itself."""
        return self.decoder


def load(name: str, path: Path, *, device: str, dtype: torch.dtype = torch.bfloat16) -> DecoderTeacher:
    """The student at `path` (see `load_student`) as a teacher that computes in `dtype`, bf16 or fp32.

    On "meta" only its shape is read, not its weights. Raises UserError for whatever goes wrong.
    """
    with load_errors(name, str(path), device, dtype):
        if device == "meta":
            student = _skeleton(path, dtype)
        else:
            student = load_student(path, dtype=dtype)
            student.model.to(device)
    weights = "" if device == "meta" else weights_fingerprint(student.model)
    spec = decoder_spec(name, path.name, student.model, student.tokenizer, weights)
    return DecoderTeacher(student.model, student.tokenizer, spec)


def decoder_spec(name: str, source: str, decoder: Decoder, tokenizer: Tokenizer, weights: str = "") -> TeacherSpec:
    """What a teacher that is a decoder of ours says of itself."""
    shape = decoder.config
    return TeacherSpec(
        name=name,
        source=source,
        revision=None,
        quantisation=None,
        n_parameters=shape.n_parameters,
        vocab_size=shape.vocab_size,
        d_model=shape.d_model,
        n_layers=shape.n_layers,
        tokenizer_fingerprint=tokenizer.fingerprint,
        context=shape.max_seq_len,
        weights=weights,
    )


def _skeleton(path: Path, dtype: torch.dtype) -> Student:
    """The student on the meta device: `shard` brings the weights of the process that has them."""
    directory = find_student(path)
    record = json.loads((directory / "config.json").read_text())
    fingerprint = record.pop("tokenizer_fingerprint")
    record.pop("format")
    with torch.device("meta"):
        model = Decoder(StudentConfig(**record))
    tokenizer = Tokenizer.saved(directory)
    check_fingerprint(fingerprint, tokenizer.fingerprint, str(directory))
    return Student(model.to(dtype).eval().requires_grad_(False), tokenizer)
