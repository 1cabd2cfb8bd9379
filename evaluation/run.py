"""`evaluate.py`: measures the models it is asked about and writes them side by side."""

import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutelage import cli
from tutelage.environment import environment
from tutelage.errors import UserError
from tutelage.evaluation.config import TEACHER, EvaluateConfig, parse_ks
from tutelage.runs import home, named, newest_run
from tutelage.teacher.entry import is_foreign
from tutelage.teacher.registry import entry
from tutelage.training.config import RunConfig
from tutelage.training.versions import upgrade

if TYPE_CHECKING:  # torch comes after the flags are checked
    from tutelage.evaluation.measures import Bench
    from tutelage.evaluation.report import Measured

KINDS = ("humaneval", "mbpp", "problems", "perplexity", "fidelity", "latency")
REPORTED = ("humaneval", "perplexity", "fidelity", "latency")


def evaluate(config: EvaluateConfig | None = None, **fields: Any) -> "dict[str, Measured]":
    """Measures what `config` (with `fields` set otherwise) names, writes results.json and returns it by model.

    Raises UserError for a model that is not there, or a question that cannot be answered.
    """
    config = cli.validate(replace(config or EvaluateConfig(), **fields))
    config = replace(config, mbpp=config.mbpp or config.mbpp_file is not None)
    wanted = [kind for kind in KINDS if getattr(config, kind) or (config.report and kind in REPORTED)]
    if not wanted:
        raise UserError(f"nothing to measure: pass any of {', '.join('--' + kind for kind in KINDS)}, --report")
    parse_ks(config.k, config.samples)
    names, run = choose_models(config)
    if "fidelity" in wanted:
        entry(config.teacher or recorded_config(run).teacher, config.teacher_quantization)

    from tutelage.evaluation.measures import MEASURES, Bench
    from tutelage.evaluation.precision import choose_precision
    from tutelage.evaluation.problem_sets import PROBLEM_SETS
    from tutelage.evaluation.report import Measured, comparisons, write_results
    from tutelage.kernels.dispatch import use
    from tutelage.training.devices import find_device

    device = find_device(config.device)
    use(config.impl, device.type)
    config = replace(config, device=str(device), precision=choose_precision(config.precision, device))
    bench = Bench(config, recorded_config(run), output_directory(config, run))
    for kind in filter(PROBLEM_SETS.get, wanted):  # what is wrong with a file is said before a model is loaded
        bench.problems(kind)
    models: dict[str, Measured] = {}
    dtypes: dict[str, str] = {}
    for name in names:
        candidate = bench.load(name)
        if candidate.name in models:  # two runs may each have a directory `student`
            candidate = replace(candidate, name=name)
        measured = models[candidate.name] = Measured()
        dtypes[candidate.name] = candidate.dtype
        for kind in wanted:
            MEASURES[kind](candidate, bench, measured)
    told, compared = {**settings(config, bench, wanted), "dtypes": dtypes}, comparisons(models, config.samples)
    write_results(bench.output / "results.json", models, told, compared)
    if config.report:
        from tutelage.evaluation.page import write_page

        write_page(bench.output, models, told, compared)
    return models


def choose_models(config: EvaluateConfig) -> tuple[list[str], Path | None]:
    """The models by name, and the run they belong to: by default the newest run, beside its teacher."""
    if config.model is None:
        run = newest_run()
        teacher = config.teacher or recorded_config(run).teacher
        entry(teacher)
        return [str(run), f"{TEACHER}{teacher}"], run
    names = list(dict.fromkeys(name.strip() for name in config.model.split(",")))
    paths = [named(name)[0] for name in names if not name.startswith(TEACHER)]
    for name in names:  # all of them, before the first is measured for minutes
        if name.startswith(TEACHER) or Path(name).is_file() or is_foreign(Path(name)):
            entry(name.removeprefix(TEACHER))
        elif not named(name)[0].exists():
            raise UserError(
                f"--model {name}: no such directory (one of the hub or of our teachers is written {TEACHER}NAME)"
            )
    return names, next(filter(None, map(home, paths)), None)


def output_directory(config: EvaluateConfig, run: Path | None) -> Path:
    """Where everything is written."""
    return Path(config.output_dir or (run or Path("runs")) / "eval")


def recorded_config(run: Path | None) -> RunConfig:
    """The configuration a run was trained with; the defaults where there is no run."""
    if run is None:
        return RunConfig()
    return cli.parse(
        RunConfig, ["--config", str(run / "config.yaml")], prog="config.yaml", description="", upgrade=upgrade
    )


def settings(config: EvaluateConfig, bench: "Bench", wanted: Sequence[str]) -> dict[str, Any]:
    """Everything the numbers depend on."""
    from tutelage.evaluation.problem_sets import PROBLEM_SETS
    from tutelage.evaluation.sandbox.pool import Limits, describe

    found = {**asdict(config), "data": bench.data, "date": datetime.now(UTC).isoformat(timespec="seconds")}
    for problems in (bench.problems(kind) for kind in PROBLEM_SETS if kind in wanted):
        found["sandbox"] = describe(problems.packages)
        found[problems.name] = {
            "problems": len(problems.problems),
            "stops": {name: style.stops for name, style in problems.styles.items()},
            "limits": asdict(problems.limits or Limits()),
        }
    return found | {"environment": environment()}


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("tutelage").setLevel(logging.INFO)
    return cli.run(lambda: _command(sys.argv[1:] if argv is None else argv))


def _command(argv: Sequence[str]) -> None:
    about = "Measure models side by side: pass@k in a sandbox, perplexity, fidelity, size and latency."
    config = cli.parse(EvaluateConfig, argv, prog="evaluate.py", description=about)
    models = evaluate(config)
    from tutelage.evaluation.report import comparisons, show

    show(models, comparisons(models, config.samples))
    if config.report:
        print(f"report.md, its pictures and results.json: {output_directory(config, choose_models(config)[1])}")
