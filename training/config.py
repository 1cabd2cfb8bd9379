"""The run's configuration: one tree that yields the command line, the YAML and the checkpoint's record."""

from dataclasses import dataclass, field
from typing import Literal

from jsonargparse.typing import (
    ClosedUnitInterval,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)

from tutelage.cli import Seed
from tutelage.data.config import PackingConfig
from tutelage.losses.config import LossConfig
from tutelage.student.config import StudentOptions

EXECUTION = {"identity": False}
"""Marks a field that says only how a run is carried out, or how far: it may change when the run goes on. All others
decide which weights come out, but for rounding: they are the run's identity (`identity.py`)."""


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedule."""

    lr: PositiveFloat = 6e-4
    """Peak learning rate."""
    schedule: Literal["cosine", "wsd"] = "cosine"
    """After the warm-up: a cosine to the floor, or stable and then a linear decay (warm-up–stable–decay)."""
    warmup_fraction: ClosedUnitInterval = 0.05
    """Share of all steps that is linear warm-up."""
    warmup_steps: NonNegativeInt | None = None
    """Steps of linear warm-up, instead of a share."""
    decay_fraction: ClosedUnitInterval = 0.2
    """Share of all steps that the decay of wsd takes."""
    min_lr_fraction: ClosedUnitInterval = 0.0
    """The floor, as a share of the peak."""
    weight_decay: NonNegativeFloat = 0.1
    """Decay of matrices; vectors (norms, biases) have none."""
    beta1: ClosedUnitInterval = 0.9
    """Decay rate of the gradient's mean."""
    beta2: ClosedUnitInterval = 0.95
    """Decay rate of the gradient's square."""
    clip: PositiveFloat = 1.0
    """Largest norm of the whole gradient."""


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run."""

    teacher: str = "smollm2-135m"
    """Teacher: smollm2-135m (embedded), gemma3-270m, starcoder2-3b, codellama-7b (4-bit), a hub id, a run, a local
    directory, or a .gguf file; of the hub's also NAME@REVISION."""
    teacher_quantization: Literal["none", "int8", "nf4"] | None = None
    """Pack the teacher's weights in 8 or 4 bits, or not at all (default: as suits it; for models of transformers)."""
    tokenizer: str | None = None
    """Directory with the tokenizer.json of student and text (default: the teacher's own)."""
    data: str | None = None
    """Text: stdlib, site-packages, mbpp, hub:ORG/NAME[:column], or local files and directories, joined by commas,
    each with an optional =WEIGHT (default: what suits the teacher)."""
    max_rows: PositiveInt | None = None
    """Train on so many packed rows of the text, drawn once by the seed (default: all of them)."""
    batch_size: PositiveInt = 8
    """Rows of packed text per optimizer step."""
    accumulate: PositiveInt = field(default=1, metadata=EXECUTION)
    """Micro-batches that a step's rows are split into."""
    steps: PositiveInt | None = field(default=None, metadata=EXECUTION)
    """Optimizer steps; the schedule ends here."""
    epochs: PositiveFloat | None = field(default=None, metadata=EXECUTION)
    """Passes over the data, instead of steps (default: 1)."""
    minutes: PositiveFloat | None = field(default=None, metadata=EXECUTION)
    """Wall-clock minutes of the whole run, instead of steps: a few are timed, and how many fit is written down."""
    teacher_memory: NonNegativeFloat = field(default=1.0, metadata=EXECUTION)
    """GiB for the teacher's hidden states of rows that come again in later epochs, so that it runs once per row."""
    seed: Seed = 0
    """Seed of the initial weights, the order of rows and dropout."""
    device: str = field(default="auto", metadata=EXECUTION)
    """Where to train: auto (the best there is), cpu, cuda, cuda:1, mps."""
    precision: Literal["auto", "bf16", "fp32"] = field(default="auto", metadata=EXECUTION)
    """Arithmetic of the matmuls: bf16, fp32, or for student, teacher and head each what is faster here; the choice is
    recorded and kept when the run goes on. Weights, statistics and optimizer stay fp32."""
    impl: Literal["auto", "triton", "eager", "compile"] = field(default="auto", metadata=EXECUTION)
    """Kernels: triton (a GPU), eager, compile (our C++, torch.compile), or auto, the fastest that starts at once."""
    compile: bool | None = field(default=None, metadata=EXECUTION)
    """torch.compile the student's blocks (default: on CUDA)."""
    fsdp: bool = field(default=False, metadata=EXECUTION)
    """Cut weights, gradients and optimizer state up over the processes (FSDP2), for models that do not fit."""
    gradient_checkpointing: bool = field(default=False, metadata=EXECUTION)
    """Recompute activations in the backward pass: less memory, about a third more work in the trunk."""
    output_dir: str | None = field(default=None, metadata=EXECUTION)
    """Run directory (default: runs/ and a name made of time and teacher)."""
    resume: str | None = field(default=None, metadata=EXECUTION)
    """Run to continue with its own configuration, from its newest whole checkpoint, or RUN@STEP, or RUN@best."""
    checkpoint_every: PositiveInt = field(default=500, metadata=EXECUTION)
    """Steps between checkpoints."""
    keep_last: PositiveInt = field(default=3, metadata=EXECUTION)
    """Checkpoints kept."""
    keep_best: bool = field(default=False, metadata=EXECUTION)
    """Keep the checkpoint with the lowest held-out loss too, saved whenever an evaluation finds a lower one."""
    log_every: PositiveInt = field(default=10, metadata=EXECUTION)
    """Steps between rows of metrics.jsonl."""
    eval_every: PositiveInt = field(default=500, metadata=EXECUTION)
    """Steps between evaluations on held-out text."""
    eval_rows: PositiveInt = field(default=64, metadata=EXECUTION)
    """Held-out rows each evaluation reads."""
    prompts: str | None = field(default=None, metadata=EXECUTION)
    """Text file of prompts to sample, with a line of --- between two (default: three built-in ones)."""
    stop_after: PositiveInt | None = field(default=None, metadata=EXECUTION)
    """Save and leave after this step, as an interruption would; the schedule still runs to --steps."""
    max_skipped: NonNegativeInt = field(default=10, metadata=EXECUTION)
    """Steps in a row with a non-finite loss or gradient that are skipped before the run stops."""
    tracker: str = field(default="tensorboard", metadata=EXECUTION)
    """Trackers beside metrics.jsonl, joined by commas: tensorboard, mlflow, wandb, or none."""
    profile: bool = field(default=False, metadata=EXECUTION)
    """Record where three steps spend their time, as profile/rank-R.json.gz in the run: open it in Perfetto."""
    dry_run: bool = field(default=False, metadata=EXECUTION)
    """Print parameters, memory, tokens and the time, from a few measured steps, and touch nothing."""
    student: StudentOptions = field(default_factory=StudentOptions)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig, metadata=EXECUTION)
    packing: PackingConfig = field(default_factory=PackingConfig)
