"""Configurations of older versions."""

import pytest

from tutelage.errors import UserError
from tutelage.training import versions
from tutelage.training.versions import VERSION, upgrade

OLD = {"lr": 1, "optim": {"rate": 2, "beta1": 3}, "impl": "c++"}


def test_without_a_version_it_is_the_first() -> None:
    assert upgrade(OLD) == OLD
    assert upgrade({**OLD, "version": VERSION}) == OLD  # the version is no field


def test_old_names_and_values_go_through_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "RENAMED", {"optim.rate": "optim.lr", "lr": "new.place.lr", "absent": "present"})
    monkeypatch.setattr(versions, "REVALUED", {"impl": {"c++": "compile"}.get, "optim.lr": lambda x: x * 10})
    found = upgrade(OLD)
    assert found == {"optim": {"lr": 20, "beta1": 3}, "impl": "compile", "new": {"place": {"lr": 1}}}
    assert OLD == {"lr": 1, "optim": {"rate": 2, "beta1": 3}, "impl": "c++"}  # read, not changed


def test_only_what_a_run_recorded_means_what_its_version_did() -> None:
    by_hand = {"loss": {"kd_weight": 0.9}}
    assert upgrade(by_hand) == by_hand
    assert upgrade(by_hand, recorded=True) == {"loss": {"kd_weight": 0.9, "rounding": 1}}
    assert upgrade({**by_hand, "resume": None})["loss"]["rounding"] == 1  # as every recorded configuration has it
    assert upgrade({**by_hand, "resume": None, "version": VERSION}) == {**by_hand, "resume": None}


@pytest.mark.parametrize("version", [VERSION + 1, "two"])
def test_a_newer_one_is_refused(version: object) -> None:
    with pytest.raises(UserError, match=f"version {version}.*install a newer one"):
        upgrade({"version": version})
