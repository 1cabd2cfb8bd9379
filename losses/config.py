"""The objective's settings."""

from dataclasses import dataclass

from jsonargparse.typing import NonNegativeFloat, PositiveFloat


@dataclass(frozen=True)
class LossConfig:
    """`ce_weight·CE + kd_weight·τ²·KL(teacher‖student)`; the α of the field is ce_weight = α, kd_weight = 1 − α."""

    terms: str = "divergence"
    """Losses to add up, separated by commas."""
    ce_weight: NonNegativeFloat = 0.2
    """Weight of the cross-entropy with the text."""
    kd_weight: NonNegativeFloat = 0.8
    """Weight of the divergence from the teacher; 0 trains without one."""
    temperature: PositiveFloat = 1.0
    """Softmax temperature τ of both distributions; the divergence is scaled by τ²."""
