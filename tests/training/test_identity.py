"""What a run is, and that it may not go on as another."""

import json
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from tutelage.data import tokenizer as tokens
from tutelage.errors import UserError
from tutelage.training import identity as module
from tutelage.training import versions
from tutelage.training.config import RunConfig
from tutelage.training.identity import compare, decisive, leaves
from tutelage.training.parts import build

Make = Callable[..., RunConfig]
RUN = Path("runs/x")
SAME = {"output_dir": "elsewhere", "log_every": 7, "impl": "eager", "accumulate": 2, "keep_best": True, "steps": 99}


def origin(config: RunConfig, recorded: Any = None) -> dict[str, Any]:
    """As it comes back from a file."""
    found: dict[str, Any] = json.loads(json.dumps(build(config, None, recorded=recorded).origin))
    return found


def test_what_only_says_how_a_run_is_carried_out_is_no_part_of_it(make_config: Make) -> None:
    marked = {field.name for field in fields(RunConfig) if not field.metadata.get("identity", True)}
    assert marked >= {*SAME, "optim", "device", "precision", "minutes", "compile", "profile"}
    assert set(decisive(dict.fromkeys((*SAME, "seed", "loss"), 0))) == {"seed", "loss"}
    compare(origin(make_config()), origin(make_config(**SAME)), RUN)


def test_a_teacher_and_text_that_moved_are_the_same(make_config: Make, tmp_path: Path) -> None:
    config = make_config()
    moved = {
        "teacher": str(shutil.copytree(config.teacher, tmp_path / "another name")),
        "data": str(shutil.copytree(str(config.data), tmp_path / "texts")),
    }
    then, now = origin(config), origin(make_config(**moved))
    assert then["teacher"]["name"] != now["teacher"]["name"]
    compare(then, now, RUN)


def test_a_teacher_of_other_weights_is_another_one(make_config: Make, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    other = shutil.copytree(make_config().teacher, tmp_path / "teacher")
    weights = load_file(other / "model.safetensors")
    weights["norm.weight"] *= 1.5
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"cannot resume runs/x: teacher\.weights was \w+, is \w+: restore these"):
        compare(origin(make_config()), origin(make_config(teacher=str(other))), RUN)


def test_a_field_that_an_older_version_did_not_have_has_its_default(make_config: Make) -> None:
    now = origin(make_config())
    then = {key: value for key, value in now.items() if key not in ("token_rule", "formulas", "max_rows")}
    then["student"] = {key: value for key, value in then["student"].items() if key != "dropout"}
    then["loss"] = {key: value for key, value in then["loss"].items() if key != "temperature"}
    then["teacher"] = {key: value for key, value in then["teacher"].items() if key != "weights"}
    compare(then, now, RUN)
    with pytest.raises(UserError, match=r"loss\.temperature was 1\.0, is 2\.0; student\.dropout was 0\.0, is 0\.5"):
        compare(
            then,
            {**now, "loss": {**now["loss"], "temperature": 2.0}, "student": {**now["student"], "dropout": 0.5}},
            RUN,
        )


def test_a_field_that_this_version_does_not_have_is_refused_by_name(
    make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = origin(make_config())
    then = {**now, "loss": {**now["loss"], "old_temperature": 1.0}}
    with pytest.raises(UserError, match=r"it records loss\.old_temperature, which this version does not know"):
        compare(then, now, RUN)
    then["loss"].pop("temperature")
    monkeypatch.setattr(versions, "RENAMED", {"loss.old_temperature": "loss.temperature"})
    compare(then, now, RUN)


def test_an_old_formula_is_computed_for_an_old_run_alone(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    then = origin(make_config())
    formulas = {name: {**known, 2: lambda tokenizer, corpus: "of version 2"} for name, known in module.FORMULAS.items()}
    monkeypatch.setattr(module, "FORMULAS", formulas)
    new = origin(make_config())
    assert new["data"]["fingerprint"] == new["tokenizer"] == "of version 2"
    assert new["formulas"] == {"tokenizer": 2, "data.fingerprint": 2}
    compare(then, origin(make_config(), recorded=then), RUN)
    first = {key: value for key, value in then.items() if key != "formulas"}
    compare(first, origin(make_config(), recorded=first), RUN)
    with pytest.raises(UserError, match="tokenizer was recorded by formula 9, which this version does not know"):
        origin(make_config(), recorded={**then, "formulas": {"tokenizer": 9}})


def test_a_run_under_a_wrong_rule_of_tokens_does_not_go_on_and_says_why(
    make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    then = origin(make_config())
    monkeypatch.setattr(tokens.Tokenizer, "rule", 2)
    monkeypatch.setitem(tokens.TOKEN_RULES, 2, "digits one by one")
    now = origin(make_config())
    line = r"became tokens by rule 1 \(.*\), and now does by rule 2 \(digits one by one\): start another run"
    for old in (then, {key: value for key, value in then.items() if key != "token_rule"}):
        with pytest.raises(UserError, match=line):
            compare(old, now, RUN)


def test_leaves_are_dotted() -> None:
    assert leaves({"a": {"b": 1, "c": {"d": 2}}, "e": []}) == {"a.b": 1, "a.c.d": 2, "e": []}


def test_another_seed_is_another_run(make_config: Make) -> None:
    config = make_config()
    with pytest.raises(UserError, match="seed was 0, is 1: restore these, or start another run"):
        compare(origin(config), origin(replace(config, seed=1)), RUN)
