"""The run's configuration."""

from dataclasses import asdict

import pytest
import yaml

from tutelage import cli
from tutelage.errors import UserError
from tutelage.training.config import OptimConfig, RunConfig


def test_the_default_needs_no_network() -> None:
    config = RunConfig()
    assert config.teacher == "smollm2-135m"
    assert config.data is None
    assert config.tracker == "tensorboard"


def test_it_is_plain_yaml() -> None:
    assert yaml.safe_load(yaml.safe_dump(asdict(RunConfig())))["optim"]["lr"] == OptimConfig().lr


@pytest.mark.parametrize(
    "argv",
    [("--steps", "-1"), ("--batch_size", "0"), ("--seed", "-1"), ("--epochs", "0"), ("--keep_last", "0"),
     ("--optim.clip", "0"), ("--optim.beta1", "1.5"), ("--optim.lr", "nan")],
)  # fmt: skip
def test_impossible_numbers_are_refused_by_name(argv: tuple[str, str]) -> None:
    with pytest.raises(UserError, match=f"{argv[0]} {argv[1]}"):
        cli.parse(RunConfig, argv, prog="train.py", description="d")
