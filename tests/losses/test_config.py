"""The objective's settings."""

import pytest

from tutelage import cli
from tutelage.errors import UserError
from tutelage.losses.config import LossConfig


def parse(*argv: str) -> LossConfig:
    return cli.parse(LossConfig, list(argv), prog="p", description="d")


def test_the_default_weights_share_one() -> None:
    assert parse() == LossConfig()
    assert LossConfig().ce_weight + LossConfig().kd_weight == 1


@pytest.mark.parametrize(
    "argv", [("--ce_weight", "-1"), ("--kd_weight", "-0.1"), ("--temperature", "0"), ("--temperature", "-2")]
)
def test_impossible_values_are_refused(argv: tuple[str, str]) -> None:
    with pytest.raises(UserError, match=f"{argv[0]} {argv[1]}"):
        parse(*argv)


def test_zero_weights_are_possible_one_at_a_time() -> None:
    assert parse("--kd_weight", "0").kd_weight == 0
    assert parse("--ce_weight", "0").ce_weight == 0
