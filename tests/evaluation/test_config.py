"""The flags of evaluate.py."""

import pytest

from tutelage import cli
from tutelage.errors import UserError
from tutelage.evaluation.config import EvaluateConfig, parse_ks


def parse(*flags):
    return cli.parse(EvaluateConfig, flags, prog="evaluate.py", description="")


def test_dashes_are_underscores():
    assert parse("--sandbox-packages", "numpy", "--allow-weak-sandbox", "--max-new-tokens=7") == parse(
        "--sandbox_packages=numpy", "--allow_weak_sandbox", "--max_new_tokens", "7"
    )


def test_flags_are_bare_and_counts_positive():
    config = parse("--humaneval", "--samples", "10", "--temperature", "0.2", "--k", "1,10", "--limit", "40")
    assert (config.humaneval, config.samples, config.temperature, config.k, config.limit) == (True, 10, 0.2, "1,10", 40)
    assert not config.fidelity
    for flag in ("--samples", "--limit", "--eval_rows"):
        with pytest.raises(UserError, match=flag):
            parse(flag, "0")


@pytest.mark.parametrize(("k", "samples"), [("2", 1), ("0", 1), ("1,x", 5), ("", 1)])
def test_k_that_cannot_be_estimated_is_refused(k, samples):
    with pytest.raises(UserError, match="--k"):
        parse_ks(k, samples)
