"""What `evaluate.py` may be asked."""

from dataclasses import dataclass
from typing import Literal

from jsonargparse.typing import NonNegativeFloat, PositiveInt

from tutelage.cli import Seed
from tutelage.errors import UserError

TEACHER = "teacher:"
"""What stands before the name of a teacher among models."""


@dataclass(frozen=True)
class EvaluateConfig:
    """What to measure, of which models."""

    model: str | None = None
    """Run, RUN@STEP, RUN@best, checkpoint or student directory, a directory of transformers, a .gguf file, or
    teacher:NAME_OR_HUB_ID; several joined by commas (default: the newest run beside its teacher)."""
    humaneval: bool = False
    """pass@k on HumanEval, completions executed in a sandbox."""
    mbpp: bool = False
    """pass@k on the 500 test problems of MBPP (hub, or --mbpp_file)."""
    mbpp_file: str | None = None
    """The same, from a local JSONL file of Google's format, or MBPP+ as it is on the hub."""
    problems: str | None = None
    """pass@k on problems of your own: a JSONL file of the shape of HumanEval's, or EvalPlus'."""
    oracle: Literal["split", "upstream", "both"] = "split"
    """Where tests run: apart from the completion; with it, as public harnesses do; or both, scored by the first."""
    perplexity: bool = False
    """Loss and perplexity on held-out text."""
    fidelity: bool = False
    """KL from the teacher, top-1 agreement and acceptance on held-out text."""
    latency: bool = False
    """Time of the prompt and of each token, tokens/s, parameters and bytes."""
    report: bool = False
    """HumanEval, perplexity, fidelity and latency, also as a page with pictures (report.md) and in TensorBoard."""
    samples: PositiveInt = 1
    """Completions per problem."""
    temperature: NonNegativeFloat = 0.0
    """Sampling temperature; 0 is greedy."""
    k: str = "1"
    """Values of k for pass@k, separated by commas."""
    limit: PositiveInt | None = None
    """Only the first problems."""
    prompt_style: Literal["auto", "completion", "chat", "few-shot"] = "auto"
    """How problems are put (auto: as the model was trained to be asked; few-shot: behind MBPP's three examples)."""
    max_new_tokens: PositiveInt = 160
    """Longest completion, in tokens."""
    batch_size: PositiveInt = 32
    """Completions generated, or held-out rows scored, together."""
    sandbox_packages: str | None = None
    """Installed packages that completions and tests may import, separated by commas (default: none)."""
    allow_weak_sandbox: bool = False
    """Execute completions even where the machine offers no strong sandbox."""
    teacher: str | None = None
    """Teacher to compare with (default: the run's own)."""
    teacher_quantization: Literal["none", "int8", "nf4"] | None = None
    """Pack the weights of teachers in 8 or 4 bits, or not at all (default: as in the run, or as suits them)."""
    data: str | None = None
    """Text whose held-out part is scored (default: the run's own)."""
    eval_rows: PositiveInt = 128
    """Held-out rows that are scored."""
    seed: Seed = 0
    """Seed of the sampled completions."""
    device: str = "auto"
    """Where to run the models: cpu, cuda, cuda:1, mps, or auto, the best there is."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Arithmetic of the models (auto: bf16, on every machine)."""
    impl: Literal["auto", "triton", "eager", "compile"] = "auto"
    """Kernels, see train.py --help."""
    output_dir: str | None = None
    """Where results.json and completions go (default: eval/ in the run)."""


def parse_ks(text: str, samples: int) -> list[int]:
    """`"1,10"` → [1, 10]. Raises UserError for anything that is no number from 1 to `samples`."""
    try:
        ks = [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--k {text}: numbers separated by commas, e.g. --k 1,10") from None
    for k in ks:
        if not 1 <= k <= samples:
            raise UserError(f"--k {k} needs at least as many samples, got --samples {samples}: raise --samples")
    return ks
