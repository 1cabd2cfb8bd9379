"""The flags of evaluate.py."""

import pytest

from tutelage import cli
from tutelage.errors import UserError
from tutelage.evaluation.config import EvaluateConfig


def parse(*flags):
    return cli.parse(EvaluateConfig, flags, prog="evaluate.py", description="")


def test_flags_are_bare_and_counts_positive():
    config = parse("--humaneval", "--samples", "10", "--temperature", "0.2", "--k", "1,10", "--limit", "40")
    assert (config.humaneval, config.samples, config.temperature, config.k, config.limit) == (True, 10, 0.2, "1,10", 40)
    assert not config.fidelity
    for flag in ("--samples", "--limit", "--eval_rows"):
        with pytest.raises(UserError, match=flag):
            parse(flag, "0")
