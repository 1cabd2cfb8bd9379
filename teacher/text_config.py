"""What a transformers configuration says of a text model, whatever its makers called it."""

from typing import Any

LENGTHS = ("max_position_embeddings", "max_seq_len", "max_sequence_length", "context_length")
WINDOWS = (
    "sliding_window",
    "sliding_window_size",
    "attention_chunk_size",
    "attention_window_size",
    "attention_window",
    "local_attention",
    "window_size",
)
SCALES = ("logit_scale", "lm_head_multiplier")
"""What logits are multiplied by (Cohere, Falcon-H1)."""
DIVISORS = ("logits_scaling",)
"""What they are divided by (Granite)."""
CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
"""The bound that a tanh keeps them within (Gemma, RecurrentGemma, xLSTM)."""


def context(config: Any) -> int | None:
    """Longest text in tokens, rope scaling included; None where there is no limit (ALiBi, recurrence)."""
    if getattr(config, "alibi", False):
        return None
    lengths = _whole(config, LENGTHS)
    for rope in _ropes(config):
        if rope.get("rope_type") in ("dynamic", "yarn"):
            original = rope.get("original_max_position_embeddings") or max(lengths, default=0)
            lengths.append(int(original * float(rope.get("factor") or 1)))
    return max(lengths, default=None)


def window(config: Any) -> int | None:
    """How far back the layers with the widest limited view see, in tokens; None where every layer sees all."""
    longest = context(config)
    return max((size for size in _whole(config, WINDOWS) if longest is None or size < longest), default=None)


def packs_up_to(config: Any) -> int | None:
    """Longest row in which documents may stand side by side; None where any may.

    In longer ones dynamic frequencies would follow the row's length instead of the document's, and chunks of
    attention would begin where they do in the row.
    """
    limits = _whole(config, ("attention_chunk_size",))
    for rope in _ropes(config):
        if rope.get("rope_type") in ("dynamic", "longrope"):
            trained = _whole(config, LENGTHS)
            limits.append(int(rope.get("original_max_position_embeddings") or max(trained, default=0)))
    return min(limits, default=None)


def long_rope(config: Any) -> int | None:
    """Longest text for which the short factors of a longrope hold; None without one."""
    return min(
        (rope["original_max_position_embeddings"] for rope in _ropes(config) if rope.get("rope_type") == "longrope"),
        default=None,
    )


def remembers_length(config: Any) -> bool:
    """Whether frequencies stay those of the longest text that was met, until a short one comes."""
    return any(rope.get("rope_type") == "dynamic" for rope in _ropes(config))


def scale_and_cap(config: Any) -> tuple[float, float | None]:
    """What logits are multiplied by, and the bound that they are kept within."""
    scale = 1.0
    for name in (*SCALES, *DIVISORS):
        value = getattr(config, name, None)
        if isinstance(value, int | float) and value:
            scale = scale * value if name in SCALES else scale / value
    caps = [getattr(config, name, None) for name in CAPS]
    return scale, next((float(cap) for cap in caps if cap), None)


def _whole(config: Any, names: tuple[str, ...]) -> list[int]:
    values = [getattr(config, name, None) for name in names]
    return [value for value in values if isinstance(value, int) and value > 0]


def _ropes(config: Any) -> list[dict[str, Any]]:
    """Rope parameters: one set, or one for each type of layer."""
    given = getattr(config, "rope_parameters", None) or {}
    sets = [given] if "rope_type" in given else list(given.values())
    return [rope for rope in sets if isinstance(rope, dict)]
