"""pass@k of one model on a set of problems: generate, execute in the sandbox, count."""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tutelage.errors import unknown
from tutelage.evaluation.candidate import Candidate
from tutelage.evaluation.completions import complete
from tutelage.evaluation.config import EvaluateConfig, parse_ks
from tutelage.evaluation.ledger import Key, Ledger
from tutelage.evaluation.passk import Scores, score
from tutelage.evaluation.problem_sets import execute, scored_by
from tutelage.evaluation.problems import Problem, ProblemSet, Style, chosen, program
from tutelage.evaluation.progress import bar
from tutelage.evaluation.sandbox.pool import Limits, Verdict

log = logging.getLogger(__name__)
# What completions and verdicts depend on, beside model and problems.
SETTINGS = ("samples", "temperature", "seed", "max_new_tokens", "batch_size", "device", "precision", "impl")


def pass_at_k(candidate: Candidate, problems: ProblemSet, config: EvaluateConfig, directory: Path) -> Scores:
    """pass@k of the model, its samples kept in a file of `directory`, from which a run that was cut short goes on.

    Raises UserError for k that cannot be estimated, or a prompt style that these problems are not put in.
    """
    ks = parse_ks(config.k, config.samples)
    name = candidate.prompt_style if config.prompt_style == "auto" else config.prompt_style
    if name not in problems.styles:
        raise unknown(f"prompt style of {problems.name}", name, problems.styles)
    log.info("%s: %s is asked in the style %s", problems.name, candidate.name, name)
    style, oracle = problems.styles[name], scored_by(config)
    asked = {(problem.task_id, n): problem for problem in problems.problems for n in range(config.samples)}
    prompts = {key: style.prompt(problem, candidate.tokenizer) for key, problem in asked.items()}
    ledger = Ledger(directory / f"{file_name(candidate, problems, config, prompts)}.jsonl")
    complete(candidate, prompts, style.stops, config, ledger)
    for one in ("split", "upstream") if config.oracle == "both" else (oracle,):
        judge(problems, asked, style, one, ledger)
    ledger.close(asked)
    if config.oracle == "both":
        tell_disagreements(asked, ledger)
    verdicts = {key: ledger.rows[key][oracle] for key in asked}
    return replace(score(verdicts, ks, ledger.path.name), prompt_style=name)


def judge(problems: ProblemSet, asked: dict[Key, Problem], style: Style, oracle: str, ledger: Ledger) -> None:
    """Adds to the ledger, under the name of the oracle, how each completion ended."""
    keys = ledger.lacking(asked, oracle)
    programs = [(asked[key], program(asked[key], style, ledger.rows[key]["completion"])) for key in keys]
    results = bar(execute(problems, programs, oracle), f"executing {problems.name}", len(keys))
    for key, result in zip(keys, results, strict=True):
        told = {**asdict(result), "oracle": chosen(asked[key], oracle)}
        if ledger.rows[key]["truncated"] and result.verdict in (Verdict.FAIL, Verdict.SYNTAX):
            told["verdict"] = Verdict.TRUNCATED
        ledger.add({key: {oracle: told}})


def tell_disagreements(asked: dict[Key, Problem], ledger: Ledger) -> None:
    """Says where the two oracles disagree on whether a completion passes."""
    for key in asked:
        split, upstream = ledger.rows[key]["split"], ledger.rows[key]["upstream"]
        if (split["verdict"] == Verdict.PASS) != (upstream["verdict"] == Verdict.PASS):
            log.warning(
                "%s, sample %d: %s by the split oracle (%s), %s upstream (%s)",
                *key, split["verdict"], split["detail"], upstream["verdict"], upstream["detail"],
            )  # fmt: skip


def file_name(candidate: Candidate, problems: ProblemSet, config: EvaluateConfig, prompts: Mapping[Key, str]) -> str:
    """A name that is another wherever completions or verdicts could be."""
    stated: dict[str, Any] = {name: getattr(config, name) for name in SETTINGS}
    stated |= {"model": candidate.identity, "prompts": sorted(set(prompts.values()))}
    stated |= {"tokens": candidate.tokenizer.segmentation, "ends": sorted(candidate.tokenizer.end_ids)}
    stated |= {"stops": {name: style.stops for name, style in problems.styles.items()}}
    stated |= {"problems": [asdict(problem) for problem in problems.problems], "packages": problems.packages}
    stated |= {"limits": asdict(problems.limits or Limits()), "versions": [version("tutelage"), version("torch")]}
    digest = hashlib.sha256(json.dumps(stated, sort_keys=True).encode()).hexdigest()[:8]
    return f"{problems.name}-{candidate.name.replace('/', '_').replace(':', '-')}-{digest}"
