"""A decoder of ours as a teacher."""

from pathlib import Path

import torch

from tutelage.data.batch import Batch
from tutelage.data.tokenizer import Tokenizer
from tutelage.student.decoder import Decoder
from tutelage.teacher.decoder_teacher import load


def test_each_document_is_seen_alone(teacher_dir: Path, batch: Batch) -> None:
    teacher = load("mine", teacher_dir, device="cpu")
    signal = teacher.signal(batch)
    assert signal.dense.hidden.dtype == torch.bfloat16
    for row in range(len(batch.tokens)):
        for segment in batch.segments[row].unique():
            here = batch.segments[row] == segment
            alone = teacher.decoder(batch.tokens[row, here][None]).hidden[0]
            torch.testing.assert_close(signal.dense.hidden[row, here], alone, rtol=0.05, atol=0.05)


def test_the_weights_are_those_on_disk_in_bf16_and_frozen(
    teacher_dir: Path, teacher_decoder: Decoder, batch: Batch
) -> None:
    teacher = load("mine", teacher_dir, device="cpu")
    assert torch.equal(teacher.decoder.head, teacher_decoder.head.bfloat16())
    assert not teacher.decoder.training
    assert not any(parameter.requires_grad for parameter in teacher.decoder.parameters())
    assert teacher.generator() is teacher.decoder
    signal = teacher.signal(batch, taps=(0, 1))
    assert [tap.shape for tap in signal.taps] == [signal.dense.hidden.shape] * 2
    assert not signal.dense.hidden.requires_grad


def test_in_fp32_the_weights_are_those_on_disk(teacher_dir: Path, teacher_decoder: Decoder, batch: Batch) -> None:
    teacher = load("mine", teacher_dir, device="cpu", dtype=torch.float32)
    assert torch.equal(teacher.decoder.head, teacher_decoder.head)
    assert teacher.signal(batch).dense.hidden.dtype == torch.float32


def test_the_spec_says_what_it_is(teacher_dir: Path, teacher_decoder: Decoder, tokenizer: Tokenizer) -> None:
    teacher = load("mine", teacher_dir, device="cpu")
    spec = teacher.spec
    # The embedding has 640 rows: 600 ids and padding to a multiple of 64.
    assert spec.n_parameters == sum(p.numel() for p in teacher_decoder.parameters()) == 640 * 64 + 2 * 36_992 + 64
    assert (spec.name, spec.vocab_size, spec.d_model, spec.n_layers) == ("mine", 600, 64, 2)
    assert (spec.quantisation, spec.tokenizer_fingerprint) == (None, tokenizer.fingerprint)
    assert (teacher.prompt_style, teacher.provides, spec.context) == ("completion", {"full"}, 256)
