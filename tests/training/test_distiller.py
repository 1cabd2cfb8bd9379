"""Student and objective as one module."""

import numpy as np
import pytest
import torch

from tutelage.data.packing import pack
from tutelage.kernels.linear_divergence import DenseTeacher
from tutelage.losses.config import LossConfig
from tutelage.losses.objective import Objective
from tutelage.losses.term import Progress
from tutelage.student.decoder import Decoder
from tutelage.teacher.signal import Signal
from tutelage.training.distiller import Distiller


def test_a_student_equal_to_its_teacher_has_no_divergence(teacher_decoder: Decoder) -> None:
    batch = pack([[5, 6, 7], [8, 9, 10, 11, 12]], 0, 8).batch(np.arange(2))
    hidden = teacher_decoder(batch.tokens, positions=batch.positions, segments=batch.segments).hidden
    distiller = Distiller(teacher_decoder, Objective(LossConfig(), 600))
    counts = distiller.objective.counts(batch)
    loss, logs = distiller(batch, Signal(DenseTeacher(hidden, teacher_decoder.head)), counts, Progress(0, 1))
    assert float(logs["kl"]) == pytest.approx(0, abs=1e-5)
    logits = (hidden @ teacher_decoder.head.T)[..., :600][batch.targets >= 0]
    ce = torch.nn.functional.cross_entropy(logits, batch.targets[batch.targets >= 0])
    assert float(logs["ce"]) == pytest.approx(float(ce), rel=1e-4)
    assert float(loss) == pytest.approx(0.2 * float(ce), rel=1e-4)


def test_what_the_objective_learns_is_among_its_parameters(teacher_decoder: Decoder) -> None:
    objective = Objective(LossConfig(), 600)
    objective.register_parameter("scale", torch.nn.Parameter(torch.ones(())))
    names = dict(Distiller(teacher_decoder, objective).named_parameters())
    assert "objective.scale" in names
    assert "student.embed_tokens.weight" in names
