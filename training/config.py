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

from tutelage.data.config import PackingConfig
from tutelage.losses.config import LossConfig
from tutelage.student.config import StudentOptions


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedule."""

    lr: PositiveFloat = 6e-4
    """Peak learning rate."""
    schedule: Literal["cosine", "wsd"] = "cosine"
    """After the warm-up: a cosine to the floor, or stable and then a linear decay (warm-up–stable–decay)."""
    warmup_steps: NonNegativeInt = 20
    """Steps of linear warm-up."""
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
    """Teacher: smollm2-135m (embedded), starcoder2-3b, codellama-7b (4-bit), a hub id or a local directory."""
    data: str | None = None
    """Text: stdlib, site-packages, mbpp, hub:ORG/NAME[:column], or local files and directories, joined by commas,
    each with an optional =WEIGHT (default: what suits the teacher)."""
    max_rows: PositiveInt | None = None
    """Train on so many packed rows of the text, drawn once by the seed (default: all of them)."""
    batch_size: PositiveInt = 8
    """Rows of packed text per optimizer step."""
    accumulate: PositiveInt = 1
    """Micro-batches that a step's rows are split into."""
    steps: PositiveInt | None = None
    """Optimizer steps; the schedule ends here."""
    epochs: PositiveFloat | None = None
    """Passes over the data, instead of steps (default: 1)."""
    teacher_memory: NonNegativeFloat = 1.0
    """GiB for the teacher's hidden states of rows that come again in later epochs, so that it runs once per row."""
    seed: NonNegativeInt = 0
    """Seed of the initial weights, the order of rows and dropout."""
    device: str = "auto"
    """Where to train: auto, cpu, cuda, mps."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Arithmetic of the matmuls; weights, statistics and optimizer stay fp32."""
    impl: Literal["auto", "triton", "eager", "compile"] = "auto"
    """Kernels: triton (a GPU), eager, compile (our C++, torch.compile), or auto, the fastest that starts at once."""
    fsdp: bool = False
    """Cut weights, gradients and optimizer state up over the processes (FSDP2), for models that do not fit."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more work in the trunk."""
    output_dir: str | None = None
    """Run directory (default: runs/ and a name made of time and teacher)."""
    resume: str | None = None
    """Run directory to continue, from its newest whole checkpoint and with its own configuration."""
    checkpoint_every: PositiveInt = 500
    """Steps between checkpoints."""
    keep_last: PositiveInt = 3
    """Checkpoints kept."""
    log_every: PositiveInt = 10
    """Steps between rows of metrics.jsonl."""
    eval_every: PositiveInt = 500
    """Steps between evaluations on held-out text."""
    eval_rows: PositiveInt = 64
    """Held-out rows each evaluation reads."""
    prompts: str | None = None
    """Text file of prompts to sample, with a line of --- between two (default: three built-in ones)."""
    stop_after: PositiveInt | None = None
    """Save and leave after this step, as an interruption would; the schedule still runs to --steps."""
    max_skipped: NonNegativeInt = 10
    """Steps with a non-finite loss or gradient that are skipped before the run stops."""
    tracker: str = "tensorboard"
    """Trackers beside metrics.jsonl, joined by commas: tensorboard, mlflow, wandb, or none."""
    dry_run: bool = False
    """Print parameters, memory, tokens and time, and touch nothing."""
    student: StudentOptions = field(default_factory=StudentOptions)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    packing: PackingConfig = field(default_factory=PackingConfig)
