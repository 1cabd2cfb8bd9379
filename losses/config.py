"""The objective's settings."""

from dataclasses import dataclass
from typing import Literal

from jsonargparse.typing import ClosedUnitInterval, NonNegativeFloat, PositiveFloat


@dataclass(frozen=True)
class LossConfig:
    """`ce_weight·CE + kd_weight·τ²·D(teacher, student)`; the α of the field is ce_weight = α, kd_weight = 1 − α."""

    terms: str = "divergence"
    """Losses to add up, separated by commas."""
    divergence: Literal["forward_kl", "reverse_kl", "jsd", "skew_forward_kl", "skew_reverse_kl", "tvd"] = "forward_kl"
    """D: KL(teacher‖student), KL(student‖teacher), Jensen–Shannon, the skewed ones, or total variation."""
    mix: ClosedUnitInterval | None = None
    """The teacher's share β of jsd (default 0.5), or the λ of the skewed divergences (default 0.1)."""
    ce_weight: NonNegativeFloat = 0.2
    """Weight of the cross-entropy with the text."""
    kd_weight: NonNegativeFloat = 0.8
    """Weight of the divergence from the teacher; 0 trains without one."""
    rounding: Literal[1, 2] = 2
    """How the head's gradient is rounded: 2 keeps it in fp32 until it is scaled, and holds at most half of the batch's
    logits; 1 is what runs did that were recorded before there was a choice, which go on with it."""
    temperature: PositiveFloat = 1.0
    """Softmax temperature τ of both distributions; the divergence is scaled by τ²."""
