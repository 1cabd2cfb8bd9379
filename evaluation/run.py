"""`evaluate.py`: measures the models it is asked about and writes them side by side."""

import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutelage import cli
from tutelage.errors import UserError
from tutelage.evaluation.config import EvaluateConfig
from tutelage.training.config import RunConfig
from tutelage.training.run_directory import environment, newest_run

if TYPE_CHECKING:  # torch comes after the flags are checked
    from tutelage.evaluation.measures import Bench
    from tutelage.evaluation.report import Measured

KINDS = ("humaneval", "perplexity", "fidelity", "latency")


def evaluate(config: EvaluateConfig | None = None, **fields: Any) -> "dict[str, Measured]":
    """Measures what `config` (with `fields` set otherwise) names, writes results.json and returns it by model.

    Raises UserError for a model that is not there, or a question that cannot be answered.
    """
    config = replace(config or EvaluateConfig(), **fields)
    wanted = [kind for kind in KINDS if getattr(config, kind)]
    if not wanted:
        raise UserError(f"nothing to measure: pass any of {', '.join('--' + kind for kind in KINDS)}")
    names, run = choose_models(config)

    from tutelage.evaluation.candidate import load_candidate
    from tutelage.evaluation.measures import MEASURES, Bench
    from tutelage.evaluation.report import Measured, write_results
    from tutelage.kernels.dispatch import use

    use(config.impl, config.device)
    bench = Bench(config, recorded_config(run), Path(config.output_dir or (run or Path("runs")) / "eval"))
    models: dict[str, Measured] = {}
    for name in names:
        candidate = load_candidate(name, config.device)
        measured = models[candidate.name] = Measured()
        for kind in wanted:
            MEASURES[kind](candidate, bench, measured)
    write_results(bench.output / "results.json", models, settings(config, bench))
    return models


def choose_models(config: EvaluateConfig) -> tuple[list[str], Path | None]:
    """The models by name, and the run they belong to: by default the newest run, beside its teacher."""
    if config.model is None:
        run = newest_run()
        return [str(run), f"teacher:{config.teacher or recorded_config(run).teacher}"], run
    names = [name.strip() for name in config.model.split(",")]
    paths = [Path(name) for name in names if not name.startswith("teacher:")]
    homes = [home for path in paths for home in (path, *path.parents) if (home / "config.yaml").is_file()]
    return names, homes[0] if homes else None


def recorded_config(run: Path | None) -> RunConfig:
    """The configuration a run was trained with; the defaults where there is no run."""
    if run is None:
        return RunConfig()
    return cli.parse(RunConfig, ["--config", str(run / "config.yaml")], prog="config.yaml", description="")


def settings(config: EvaluateConfig, bench: "Bench") -> dict[str, Any]:
    """Everything the numbers depend on."""
    from tutelage.evaluation.problems import STOPS
    from tutelage.evaluation.sandbox import describe

    found = {**asdict(config), "data": bench.data, "date": datetime.now(UTC).isoformat(timespec="seconds")}
    if config.humaneval:
        found |= {"stops": list(STOPS), "sandbox": describe()}
    return found | {"environment": environment()}


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    return cli.run(lambda: _command(sys.argv[1:] if argv is None else argv))


def _command(argv: Sequence[str]) -> None:
    about = "Measure students and teachers: pass@k on HumanEval, perplexity, fidelity, latency."
    models = evaluate(cli.parse(EvaluateConfig, argv, prog="evaluate.py", description=about))
    from tutelage.evaluation.report import show

    show(models)
