"""The run's configuration: one tree that yields the command line, the YAML and the checkpoint's record."""

from dataclasses import dataclass, field
from typing import Any, Literal

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


def execution(default: Any) -> Any:
    """The default of a field that says only how a run is carried out, or how far: it may change when the run goes on.

    All other fields decide which weights come out, but for rounding: they are the run's identity (`identity.py`).
    """
    how = {"default_factory": default} if isinstance(default, type) else {"default": default}
    return field(**how, metadata={"identity": False})


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
    """Teacher: smollm2-135m (embedded), starcoder2-3b, codellama-7b (4-bit), a hub id or a local directory."""
    data: str | None = None
    """Text: stdlib, site-packages, mbpp, hub:ORG/NAME[:column], or local files and directories, joined by commas,
    each with an optional =WEIGHT (default: what suits the teacher)."""
    max_rows: PositiveInt | None = None
    """Train on so many packed rows of the text, drawn once by the seed (default: all of them)."""
    batch_size: PositiveInt = 8
    """Rows of packed text per optimizer step."""
    accumulate: PositiveInt = execution(1)
    """Micro-batches that a step's rows are split into."""
    steps: PositiveInt | None = execution(None)
    """Optimizer steps; the schedule ends here."""
    epochs: PositiveFloat | None = execution(None)
    """Passes over the data, instead of steps (default: 1)."""
    minutes: PositiveFloat | None = execution(None)
    """Wall-clock minutes of the whole run, instead of steps: a few steps are timed, and how many fit is written down."""
    teacher_memory: NonNegativeFloat = execution(1.0)
    """GiB for the teacher's hidden states of rows that come again in later epochs, so that it runs once per row."""
    seed: NonNegativeInt = 0
    """Seed of the initial weights, the order of rows and dropout."""
    device: str = execution("auto")
    """Where to train: auto (the best there is), cpu, cuda, cuda:1, mps."""
    precision: Literal["auto", "bf16", "fp32"] = execution("auto")
    """Arithmetic of the matmuls: bf16, fp32, or for student, teacher and head each what is faster here; the choice is
    recorded and kept when the run goes on. Weights, statistics and optimizer stay fp32."""
    impl: Literal["auto", "triton", "eager", "compile"] = execution("auto")
    """Kernels: triton (a GPU), eager, compile (our C++, torch.compile), or auto, the fastest that starts at once."""
    compile: bool | None = execution(None)
    """torch.compile the student's blocks (default: on CUDA)."""
    fsdp: bool = execution(False)
    """Cut weights, gradients and optimizer state up over the processes (FSDP2), for models that do not fit."""
    gradient_checkpointing: bool = execution(False)
    """Recompute activations in the backward pass: less memory, about a third more work in the trunk."""
    output_dir: str | None = execution(None)
    """Run directory (default: runs/ and a name made of time and teacher)."""
    resume: str | None = execution(None)
    """Run to continue with its own configuration, from its newest whole checkpoint, or RUN@STEP, or RUN@best."""
    checkpoint_every: PositiveInt = execution(500)
    """Steps between checkpoints."""
    keep_last: PositiveInt = execution(3)
    """Checkpoints kept."""
    keep_best: bool = execution(False)
    """Keep the checkpoint with the lowest held-out loss too, saved whenever an evaluation finds a lower one."""
    log_every: PositiveInt = execution(10)
    """Steps between rows of metrics.jsonl."""
    eval_every: PositiveInt = execution(500)
    """Steps between evaluations on held-out text."""
    eval_rows: PositiveInt = execution(64)
    """Held-out rows each evaluation reads."""
    prompts: str | None = execution(None)
    """Text file of prompts to sample, with a line of --- between two (default: three built-in ones)."""
    stop_after: PositiveInt | None = execution(None)
    """Save and leave after this step, as an interruption would; the schedule still runs to --steps."""
    max_skipped: NonNegativeInt = execution(10)
    """Steps in a row with a non-finite loss or gradient that are skipped before the run stops."""
    tracker: str = execution("tensorboard")
    """Trackers beside metrics.jsonl, joined by commas: tensorboard, mlflow, wandb, or none."""
    profile: bool = execution(False)
    """Record where three steps spend their time, as profile/*.json.gz in the run: open it in Perfetto."""
    dry_run: bool = execution(False)
    """Print parameters, memory, tokens and the time of three measured steps, and touch nothing."""
    student: StudentOptions = field(default_factory=StudentOptions)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = execution(OptimConfig)
    packing: PackingConfig = field(default_factory=PackingConfig)
