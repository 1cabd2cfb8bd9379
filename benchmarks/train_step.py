"""The quickstart's step beside the sum of its unavoidable parts: `python -m benchmarks.train_step`.

The parts, in the same process and on the same rows: the teacher's forward pass, the student trunk's forward and
backward pass, the four matmuls of the heads (each in the layout the loss uses), and the optimizer. Their sum divided
by the time of a whole step is the share of the step that nobody could leave out.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.timing import Output, device_line, interleaved, peak_resident, publish
from tutelage import cli
from tutelage.data.batch import IGNORE
from tutelage.train import train_step
from tutelage.training.checkpoint import TrainingState
from tutelage.training.config import RunConfig
from tutelage.training.parts import Parts, build


@dataclass(frozen=True)
class Options(Output):
    """What to run."""

    run: str = "configs/quickstart.yaml"
    """Run configuration."""
    repeats: int = 5
    """Timed rounds."""


def unavoidable(parts: Parts, config: RunConfig) -> dict[str, Callable[[], object]]:
    """The parts of a step by name."""
    batch = parts.loader.batch(0)
    student, teacher = parts.student, parts.teacher
    rows = batch.targets.flatten() != IGNORE
    weight = student.head.detach().bfloat16()
    t_signal = teacher.signal(batch)
    x, x_t = (torch.randn(int(rows.sum()), width).bfloat16() for width in (weight.shape[1], t_signal.head.shape[1]))
    logits = torch.empty(len(x), len(weight), dtype=torch.bfloat16)

    def trunk() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            hidden = student(batch.tokens, positions=batch.positions, segments=batch.segments).hidden
        hidden.float().sum().backward()

    def matmuls() -> Tensor:
        torch.mm(x_t, t_signal.head.t(), out=logits)
        torch.mm(x, weight.t(), out=logits)
        return torch.mm(logits, weight).sum() + torch.mm(logits.t(), x).sum()

    return {
        "teacher forward": lambda: teacher.signal(batch),
        "student trunk forward + backward": trunk,
        "head matmuls": matmuls,
        "optimizer": lambda: (parts.optimizer.step(), student.zero_grad()),
    }


def main(argv: list[str]) -> int:
    """Prints the parts, their sum and the ratio."""
    options = cli.parse(Options, argv, prog="benchmarks.train_step", description=__doc__ or "")
    config = cli.parse(RunConfig, ["--config", options.run], prog="benchmarks.train_step", description="")
    parts, state = build(replace(config, teacher_memory=0.0), None), TrainingState()  # the teacher is always asked
    step = lambda: train_step(parts, config, state)  # noqa: E731
    step()  # so that the optimizer has its state
    times = interleaved({"step": step, **unavoidable(parts, config)}, options.repeats)
    seconds = {name: values[1] for name, values in times.items()}
    whole = seconds.pop("step")
    tokens = config.batch_size * config.packing.seq_len
    parts_sum = sum(seconds.values())
    result = {
        "seconds": {**seconds, "sum": parts_sum, "step": whole},
        "ratio": parts_sum / whole,
        "tokens_per_s": tokens / whole,
        "peak_resident_bytes": peak_resident(),
    }
    if publish("train_step", result, options):
        print(device_line())
        for name, value in {**seconds, "sum": parts_sum, "step": whole}.items():
            print(f"{name:<34}{value:8.3f} s")
        peak = f"peak {peak_resident() / 2**30:.2f} GiB"
        print(f"sum / step {parts_sum / whole:.2f}   {tokens / whole:,.0f} tokens/s   {peak}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(lambda: main(sys.argv[1:])))
