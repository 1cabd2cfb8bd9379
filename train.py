#!/usr/bin/env python3
"""Distil a teacher into a student: `python train.py --teacher smollm2-135m --data stdlib --steps 500`.

This is the command line; `training/loop.py` is the loop, in reading order.
"""

import logging
import sys
from collections.abc import Sequence
from dataclasses import replace

from tutelage import cli, runs
from tutelage.training.config import RunConfig
from tutelage.training.versions import upgrade

ABOUT = "Distil a code model's next-token distribution into a small decoder of your own."
ENDS = ("steps", "epochs", "minutes")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    logging.basicConfig(level=logging.INFO if cli.speaks() else logging.ERROR, format="%(message)s")
    return cli.run(lambda: _command(list(sys.argv[1:] if argv is None else argv)))


def _command(argv: list[str]) -> None:
    config = parse(argv)  # torch comes after the flags are checked, so that --help and typing errors are quick
    if config.dry_run:
        from tutelage.training.plan import show

        return show(config)
    from tutelage.training.display import summary
    from tutelage.training.loop import distill

    run = distill(config)
    if cli.speaks():
        summary(run.path, run.step, run.metrics)


def parse(argv: list[str]) -> RunConfig:
    """The configuration that a command line asks for; that of a run which goes on lies under what is said here.

    Who says on the command line when to end means that, and not what a file said.
    """
    config = cli.parse(RunConfig, argv, prog="train.py", description=ABOUT, upgrade=upgrade)
    if config.resume:
        recorded = str(runs.recorded_config(config.resume))
        config = cli.parse(
            RunConfig, ["--config", recorded, *argv], prog="train.py", description=ABOUT, upgrade=upgrade
        )
    said = {name for name in ENDS if any(part.split("=")[0] == f"--{name}" for part in argv)}
    if config.resume and not said:  # nor is it what a recipe says that comes with --config
        then = cli.parse(RunConfig, ["--config", recorded], prog="train.py", description=ABOUT, upgrade=upgrade)
        return replace(config, **{name: getattr(then, name) for name in ENDS})
    return replace(config, **{name: None for name in ENDS if said and name not in said})  # type: ignore[arg-type]


if __name__ == "__main__":
    sys.exit(main())
