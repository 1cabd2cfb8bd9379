#!/usr/bin/env python3
"""Distil a teacher into a student: `python train.py --teacher smollm2-135m --data stdlib --steps 500`.

This is the command line; `training/loop.py` is the loop, in reading order.
"""

import logging
import sys
from collections.abc import Sequence

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
    """The configuration that a command line asks for; that of a run which goes on lies under what is said here."""
    config = cli.parse(RunConfig, argv, prog="train.py", description=ABOUT, upgrade=upgrade)
    if not config.resume:
        return config
    recorded = runs.recorded_config(config.resume)
    # who says here when to end means that, and not what was said before
    ends = any(getattr(config, name) for name in ENDS)
    forgotten = [part for name in ENDS for part in (f"--{name}", "null")] if ends else []
    argv = ["--config", str(recorded), *forgotten, *argv]
    return cli.parse(RunConfig, argv, prog="train.py", description=ABOUT, upgrade=upgrade)


if __name__ == "__main__":
    sys.exit(main())
