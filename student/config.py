"""The student's shape: every architectural choice, the presets, and the flags that override them."""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from jsonargparse.typing import NonNegativeFloat, PositiveFloat, PositiveInt

from tutelage.errors import UserError, unknown

Position = Literal["rope", "sinusoidal"]
Norm = Literal["rmsnorm", "layernorm"]
MLP = Literal["swiglu", "gelu"]


@dataclass(frozen=True)
class StudentConfig:
    """A decoder's architecture. RoPE + RMSNorm + SwiGLU is Llama's arithmetic, with `qkv_bias` Qwen2's, with `qk_norm`
    Qwen3's; RoPE + LayerNorm + GELU + biases is StarCoder2's.

    Raises UserError where the numbers do not fit together.
    """

    vocab_size: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    d_ff: int
    max_seq_len: int = 2048
    position: Position = "rope"
    norm: Norm = "rmsnorm"
    mlp: MLP = "swiglu"
    bias: bool = False
    qkv_bias: bool = False
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    tie_embeddings: bool = True
    dropout: float = 0.0
    d_head: int | None = None  # None: d_model / n_heads
    mlp_bias: bool | None = None  # None: as bias
    qk_norm: bool = False

    def __post_init__(self) -> None:
        if self.d_head is None and self.d_model % self.n_heads:
            raise UserError(f"d_model {self.d_model} is not a multiple of n_heads {self.n_heads}: change one of them")
        if self.n_heads % self.n_kv_heads:
            raise UserError(f"n_heads {self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}")
        if self.position == "rope" and self.head_size % 2:
            raise UserError(f"RoPE rotates pairs: a head of {self.head_size} is odd; change d_model or n_heads")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout must be in [0, 1), got {self.dropout}")

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.d_head or self.d_model // self.n_heads

    @property
    def biased_mlp(self) -> bool:
        """Whether the matrices of the MLP have biases."""
        return self.bias if self.mlp_bias is None else self.mlp_bias

    @property
    def explicit(self) -> "StudentConfig":
        """The same architecture with nothing left to follow from other fields: equal ones are equal here."""
        return replace(self, d_head=self.head_size, mlp_bias=self.biased_mlp)

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding: a multiple of 64, as tensor cores like it. Rows past `vocab_size` are never scored."""
        return -(-self.vocab_size // 64) * 64

    @property
    def n_parameters(self) -> int:
        """Parameters of the decoder, a tied head counted once."""
        q, kv = self.n_heads * self.head_size, self.n_kv_heads * self.head_size
        attention = self.d_model * (2 * q + 2 * kv) + self.qkv_bias * (q + 2 * kv) + self.bias * self.d_model
        matrices = 3 if self.mlp == "swiglu" else 2
        mlp = matrices * self.d_model * self.d_ff + self.biased_mlp * ((matrices - 1) * self.d_ff + self.d_model)
        vectors = 2 if self.norm == "layernorm" else 1
        norms = vectors * (2 * self.d_model + self.qk_norm * 2 * self.head_size)
        tables = (1 if self.tie_embeddings else 2) * self.padded_vocab_size * self.d_model
        return tables + self.n_layers * (attention + mlp + norms) + vectors * self.d_model


_LLAMA = {"max_seq_len": 2048, "rope_theta": 10_000.0}
PRESETS: dict[str, dict[str, int | float]] = {
    "125m": {"n_layers": 12, "n_heads": 12, "n_kv_heads": 12, "d_model": 768, "d_ff": 2048, **_LLAMA},
    "60m": {"n_layers": 10, "n_heads": 8, "n_kv_heads": 4, "d_model": 512, "d_ff": 1536, **_LLAMA},
    "30m": {"n_layers": 6, "n_heads": 6, "n_kv_heads": 6, "d_model": 384, "d_ff": 1024, **_LLAMA},
    # The embedded teacher's own width, head layout and RoPE base, so that its layers fit.
    "smollm2-6l": {
        "n_layers": 6,
        "n_heads": 9,
        "n_kv_heads": 3,
        "d_model": 576,
        "d_ff": 1536,
        "max_seq_len": 8192,
        "rope_theta": 100_000.0,
    },
    "nano": {"n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "d_model": 64, "d_ff": 128, **_LLAMA},
}


@dataclass(frozen=True)
class StudentOptions:
    """Which student to build: a preset, its initialisation, and any field of it set otherwise."""

    preset: str | None = None
    """Preset: 125m, 60m, 30m, smollm2-6l or nano (default: the one that suits the teacher)."""
    init: str = "random"
    """Initial weights: random; the teacher's embeddings, or layers (evenly spaced ones, and embeddings); or those of a
    run, a model's directory or ORG/NAME[@REVISION] on the hub, whose shape they bring."""
    n_layers: PositiveInt | None = None
    """Decoder blocks."""
    n_heads: PositiveInt | None = None
    """Query heads."""
    n_kv_heads: PositiveInt | None = None
    """Key and value heads; fewer than n_heads is grouped-query attention."""
    d_model: PositiveInt | None = None
    """Width of the residual stream."""
    d_ff: PositiveInt | None = None
    """Width inside the MLP."""
    d_head: PositiveInt | None = None
    """Width of one head (default: d_model / n_heads)."""
    max_seq_len: PositiveInt | None = None
    """Longest context, in tokens."""
    position: Position | None = None
    """Positions: rope, or sinusoidal added to the embeddings."""
    norm: Norm | None = None
    """Normalisation."""
    mlp: MLP | None = None
    """Feed-forward: swiglu, or gelu (tanh form)."""
    bias: bool | None = None
    """Biases on the attention's output projection and, unless mlp_bias says otherwise, the MLP."""
    mlp_bias: bool | None = None
    """Biases on the MLP (default: as bias)."""
    qkv_bias: bool | None = None
    """Biases on the query, key and value projections."""
    qk_norm: bool | None = None
    """Normalise each head's queries and keys."""
    rope_theta: PositiveFloat | None = None
    """Base of the rotary frequencies."""
    norm_eps: PositiveFloat | None = None
    """Added to the variance in each norm."""
    tie_embeddings: bool | None = None
    """Share the embedding with the head."""
    dropout: NonNegativeFloat | None = None
    """Dropout on the embeddings, the attention output and the MLP output."""


def resolve(options: StudentOptions, vocab_size: int, default_preset: str) -> StudentConfig:
    """The preset with the given fields set otherwise. Raises UserError for an unknown preset."""
    preset = options.preset or default_preset
    if preset not in PRESETS:
        raise unknown("preset", preset, PRESETS)
    return StudentConfig(vocab_size=vocab_size, **{**PRESETS[preset], **given(options)})


def given(options: StudentOptions) -> dict[str, Any]:
    """The fields of the architecture that somebody set."""
    names = {field.name for field in fields(StudentConfig)}
    return {name: value for name, value in asdict(options).items() if name in names and value is not None}
