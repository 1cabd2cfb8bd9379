"""A student's shape and its first weights: random, the teacher's, or those of another model, shape included."""

from dataclasses import replace

from torch import nn

from tutelage.data.tokenizer import Tokenizer
from tutelage.errors import UserError
from tutelage.student.config import StudentConfig, StudentOptions, given, resolve
from tutelage.student.decoder import Decoder
from tutelage.student.huggingface import ARCHITECTURES
from tutelage.student.source import INITS, read_shape, read_source

FREE = {"dropout", "max_seq_len"}
"""Fields that may be set over the shape of a source."""


def shape_of(
    options: StudentOptions, vocab_size: int, default_preset: str, known: StudentConfig | None = None
) -> StudentConfig:
    """The student's shape: a preset with fields set otherwise, or that of the model it starts from.

    `known` is what that model's shape is, or was when the run began; else its config.json is read. Raises UserError
    where flags and that shape differ.
    """
    if options.init in INITS:
        return resolve(options, vocab_size, default_preset)
    known = known or read_shape(options.init)
    source = f"--student.init {options.init} brings its own shape"
    if options.preset is not None:
        raise UserError(f"--student.preset {options.preset}: {source}: leave the preset out, or pass null for it")
    chosen, whole = given(options), known.explicit
    for name, value in chosen.items():
        if name not in FREE and value != getattr(whole, name):
            raise UserError(f"--student.{name} {value}: {source}, with {getattr(whole, name)}: leave the flag out")
    return replace(known, vocab_size=vocab_size, **{name: chosen[name] for name in FREE & chosen.keys()})


def read_start(name: str, tokenizer: Tokenizer) -> Decoder:
    """The model that a student starts from, in fp32. Raises UserError where it has not the teacher's vocabulary."""
    source = read_source(name)
    check_vocabulary(source.tokenizer, tokenizer, name)
    return source.model


def check_vocabulary(theirs: Tokenizer, ours: Tokenizer, name: str) -> None:
    """Raises UserError unless every id of `ours`, the teacher's, spells the same in `theirs`, that of the source.

    Which token ends a text may differ, as it does between the base and the chat model of one family.
    """
    for token in range(ours.vocab_size):
        here, there = (_spelling(tokenizer, token) for tokenizer in (ours, theirs))
        if here != there:
            raise UserError(
                f"--student.init {name}: its vocabulary of {theirs.vocab_size} tokens is not the teacher's of"
                f" {ours.vocab_size}: id {token} is {there!r} there and {here!r} here: choose a model of the"
                " teacher's family"
            )


def _spelling(tokenizer: Tokenizer, token: int) -> bytes | None:
    try:
        return tokenizer.token_bytes(token)
    except KeyError:
        return None


def initialise(student: Decoder, source: Decoder | None, init: str) -> None:
    """Copies the teacher's embeddings, or also its uniformly spaced layers, first to first and last to last; of a model
    that the student has its shape of, those are all. Weights become the student's dtype.

    Raises UserError where the source is no decoder of a kind we know, or where shapes differ.
    """
    if init == "random":
        return
    if source is None:
        raise UserError(f"--student.init {init} needs a teacher of {', '.join(ARCHITECTURES)} arithmetic: use random")
    _copy(student.embed_tokens, source.embed_tokens, "embed_tokens", init)
    if student.lm_head is not None:
        _copy(student.lm_head, source.embed_tokens if source.lm_head is None else source.lm_head, "lm_head", init)
    if init == "embeddings":
        return
    ours, theirs = student.config, source.config
    if ours.position != theirs.position or ours.rope_theta != theirs.rope_theta:
        raise UserError(
            f"--student.init {init}: positions differ: student {ours.position} with base {ours.rope_theta:g},"
            f" teacher {theirs.position} with base {theirs.rope_theta:g}: pass --student.rope_theta"
            f" {theirs.rope_theta:g}"
        )
    if ours.head_size != theirs.head_size:
        raise UserError(
            f"--student.init {init}: heads of {ours.head_size} in the student and {theirs.head_size} in the teacher:"
            f" pass --student.n_heads {theirs.n_heads}"
        )
    _copy(student.norm, source.norm, "norm", init)
    for layer, source_layer in enumerate(spaced_layers(len(source.layers), len(student.layers))):
        _copy(student.layers[layer], source.layers[source_layer], f"layers.{layer}", init)


def spaced_layers(n_teacher: int, n_student: int) -> list[int]:
    """Teacher layers for the student's, uniformly over depth, first to first and last to last."""
    if n_student == 1:
        return [n_teacher - 1]
    return [round(i * (n_teacher - 1) / (n_student - 1)) for i in range(n_student)]


def _copy(target: nn.Module, source: nn.Module, name: str, init: str) -> None:
    ours, theirs = dict(target.named_parameters()), dict(source.named_parameters())
    if ours.keys() != theirs.keys():
        differ = ", ".join(sorted(ours.keys() ^ theirs.keys()))
        raise UserError(f"--student.init {init}: {name} of teacher and student differ in {differ}: use random")
    for key, parameter in ours.items():
        if not theirs[key].is_floating_point():
            reason = f"the teacher's {name}.{key} is quantised"
            raise UserError(f"--student.init {init}: {reason}: use embeddings or random")
        source_rows = theirs[key].data
        if name in ("embed_tokens", "lm_head") and parameter.shape[1:] == source_rows.shape[1:]:
            rows = min(len(parameter), len(source_rows))  # either may be padded; padding is never scored
            parameter.data[:rows].copy_(source_rows[:rows])
            continue
        if parameter.shape != theirs[key].shape:
            raise UserError(
                f"--student.init {init}: {name}.{key} is {tuple(parameter.shape)} in the student and"
                f" {tuple(theirs[key].shape)} in the teacher: choose the teacher's widths or --student.init random"
            )
        parameter.data.copy_(theirs[key].data)
