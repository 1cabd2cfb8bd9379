"""HumanEval for one model: generate in batches, execute in the sandbox, count."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.progress import track

from tutelage.errors import UserError
from tutelage.evaluation.candidate import Candidate
from tutelage.evaluation.config import EvaluateConfig
from tutelage.evaluation.passk import Scores, score
from tutelage.evaluation.problems import PROMPT_STYLES, STOPS, Problem, humaneval, oracle, program, truncate
from tutelage.evaluation.sandbox import Case, Verdict, layers, run_many
from tutelage.student.generate import generate


@dataclass(frozen=True)
class Attempt:
    """One completion and what became of it."""

    task_id: str
    prompt_style: str
    completion: str
    verdict: Verdict
    detail: str
    seconds: float


def run_humaneval(candidate: Candidate, config: EvaluateConfig, keep_at: Path) -> Scores:
    """pass@k of the model; every attempt is kept as a line of `keep_at`.

    Raises UserError for k that cannot be estimated, or where the sandbox is not strong and nobody agreed to that.
    """
    ks = parse_ks(config.k, config.samples)
    if layers().grade != "strong" and not config.allow_weak_sandbox:
        raise UserError(
            f"the sandbox here is only {layers().grade} ({layers().missing}): completions are code that a model wrote;"
            " pass --allow_weak_sandbox to execute them all the same"
        )
    attempts = attempt(candidate, humaneval(config.limit), config)
    keep_at.parent.mkdir(parents=True, exist_ok=True)
    keep_at.write_text("".join(json.dumps(asdict(attempt)) + "\n" for attempt in attempts))
    verdicts: dict[str, list[Verdict]] = {}
    for one in attempts:
        verdicts.setdefault(one.task_id, []).append(one.verdict)
    return score(verdicts, ks)


def attempt(candidate: Candidate, problems: Sequence[Problem], config: EvaluateConfig) -> list[Attempt]:
    """`config.samples` completions of each problem, executed; in the order of the problems."""
    style = candidate.prompt_style if config.prompt_style == "auto" else config.prompt_style
    asked = [problem for problem in problems for _ in range(config.samples)]
    completions = complete(candidate, [PROMPT_STYLES[style](problem) for problem in asked], config)
    cases = [
        Case(program(problem, text, style), oracle(problem), problem.entry_point)
        for problem, text in zip(asked, completions, strict=True)
    ]
    return [
        Attempt(problem.task_id, style, text, result.verdict, result.detail, result.seconds)
        for problem, text, result in zip(asked, completions, run_many(cases), strict=True)
    ]


def complete(candidate: Candidate, prompts: Sequence[str], config: EvaluateConfig) -> list[str]:
    """The text that follows each prompt, up to a stop; prompts of like length share a batch."""
    tokenizer = candidate.tokenizer
    ids = [tokenizer.encode_prompt(prompt) for prompt in prompts]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    starts = range(0, len(order), config.batch_size)
    texts: dict[int, str] = {}
    for start in track(starts, f"generating with {candidate.name}", transient=True):
        batch = order[start : start + config.batch_size]
        done = generate(
            candidate.generator,
            [ids[i] for i in batch],
            max_new_tokens=config.max_new_tokens,
            eos_id=tokenizer.eos_id,
            temperature=config.temperature,
            seed=config.seed + start,
            stop=stop_at(tokenizer.decode),
            device=config.device,
        )
        texts |= {i: truncate(tokenizer.decode(new)) for i, new in zip(batch, done, strict=True)}
    return [texts[i] for i in range(len(ids))]


def stop_at(decode: Callable[[list[int]], str], tail: int = 12) -> Callable[[list[int]], bool]:
    """Whether the newest tokens complete a stop; the last `tail` tokens hold the longest of them."""

    def stops(new: list[int]) -> bool:
        text = decode(new[-tail:])
        return any(stop in text for stop in STOPS)

    return stops


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
