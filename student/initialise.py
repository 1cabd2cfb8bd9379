"""A student's shape and its first weights: random, the teacher's, or those of another model, shape included."""

from dataclasses import replace

from torch import nn

def initialise(student: Decoder, teacher: Decoder | None, init: Init) -> None:
    """Copies the teacher's embeddings, or also its uniformly spaced layers, first to first and last to last.

    Raises UserError where the teacher is no decoder of a kind we know, or where shapes differ.
    """
    if init == "random":
        return
    if teacher is None:
        raise UserError(f"--student.init {init} needs a teacher of Llama or StarCoder2 arithmetic: use random")
    _copy(student.embed_tokens, teacher.embed_tokens, "embed_tokens", init)
    if student.lm_head is not None:
        source = teacher.embed_tokens if teacher.lm_head is None else teacher.lm_head
        _copy(student.lm_head, source, "lm_head", init)
    if init == "embeddings":
        return
    if student.config.position != teacher.config.position or student.config.rope_theta != teacher.config.rope_theta:
        raise UserError(
            f"--student.init layers: positions differ: student {student.config.position} with base"
            f" {student.config.rope_theta:g}, teacher {teacher.config.position} with base"
            f" {teacher.config.rope_theta:g}: pass --student.rope_theta {teacher.config.rope_theta:g}"
        )
    if student.config.head_size != teacher.config.head_size:
        raise UserError(
            f"--student.init layers: heads of {student.config.head_size} in the student and"
            f" {teacher.config.head_size} in the teacher: pass --student.n_heads {teacher.config.n_heads}"
        )
    _copy(student.norm, teacher.norm, "norm", init)
    for layer, source_layer in enumerate(spaced_layers(len(teacher.layers), len(student.layers))):
        _copy(student.layers[layer], teacher.layers[source_layer], f"layers.{layer}", init)


def spaced_layers(n_teacher: int, n_student: int) -> list[int]:
    """Teacher layers for the student's, uniformly over depth, first to first and last to last."""
    if n_student == 1:
        return [n_teacher - 1]
    return [round(i * (n_teacher - 1) / (n_student - 1)) for i in range(n_student)]


def _copy(target: nn.Module, source: nn.Module, name: str, init: Init) -> None:
    ours, theirs = dict(target.named_parameters()), dict(source.named_parameters())
    if ours.keys() != theirs.keys():
        differ = ", ".join(sorted(ours.keys() ^ theirs.keys()))
        raise UserError(f"--student.init {init}: {name} of teacher and student differ in {differ}: use random")
    for key, parameter in ours.items():
        if not theirs[key].is_floating_point():
            reason = f"the teacher's {name}.{key} is packed in 4 bits"
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


