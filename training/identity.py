"""What a run is: its settings, and the content of its teacher, text and tokens, wherever they lie.

What an older version did not record has its default, and what this version does not know is refused by name.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

from tutelage.data.corpus import Corpus
from tutelage.data.tokenizer import TOKEN_RULES, Tokenizer
from tutelage.errors import UserError
from tutelage.student.config import StudentConfig
from tutelage.teacher.signal import TeacherSpec
from tutelage.training.config import RunConfig
from tutelage.training.precision import Precision
from tutelage.training.versions import VERSION, upgrade

FORMULAS: dict[str, dict[int, Callable[[Tokenizer, Corpus], str]]] = {
    "tokenizer": {1: lambda tokenizer, corpus: tokenizer.fingerprint},
    "data.fingerprint": {1: lambda tokenizer, corpus: corpus.fingerprint},
}
"""How each fingerprint is made, by version: an older one is computed for a run that was recorded with it."""

INFORMATIVE = {"teacher.name", "teacher.revision", "data.sources"}
"""Recorded, and no part of what the run is: the same content may have moved."""
RESOLVED = {"teacher", "teacher_quantization", "student", "packing", "data"}
"""Settings of which the identity holds what came of them."""


def identity(
    config: RunConfig,
    spec: TeacherSpec,
    shape: StudentConfig,
    tokenizer: Tokenizer,
    corpus: Corpus,
    precision: Precision,
    recorded: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What must be the same when the run goes on, with fingerprints by the formulas of `recorded`, if it is given."""
    formulas = {name: max(known) for name, known in FORMULAS.items()}
    if recorded is not None:
        formulas |= {name: recorded.get("formulas", {}).get(name, 1) for name in FORMULAS}
    made = {name: _formula(name, version)(tokenizer, corpus) for name, version in formulas.items()}
    return {
        "version": VERSION,
        **{key: value for key, value in decisive(asdict(config)).items() if key not in RESOLVED},
        "teacher": {key: value for key, value in asdict(spec).items() if key != "source"},
        "student": asdict(shape),
        "packing": {"seq_len": config.packing.seq_len},
        "data": {"sources": config.data, "fingerprint": made["data.fingerprint"]},
        "tokenizer": made["tokenizer"],
        "token_rule": tokenizer.rule,
        "precision": asdict(precision),
        "formulas": formulas,
    }


def decisive(tree: Mapping[str, Any], config: type[Any] = RunConfig) -> dict[str, Any]:
    """The part of a configuration's tree that is its identity: fields not marked by `config.execution`."""
    marks = {field.name: field.metadata.get("identity", True) for field in fields(config)}
    return {name: value for name, value in tree.items() if marks.get(name, True)}


def compare(then: Mapping[str, Any], now: Mapping[str, Any], run: Path) -> None:
    """Raises UserError with every field that differs, or that this version does not know."""
    before, after = leaves(upgrade_origin(then)), leaves(json.loads(json.dumps(now)))  # in JSON tuples are lists
    if unknown := sorted(before.keys() - after.keys() - INFORMATIVE):
        raise UserError(
            f"cannot resume {run}: it records {', '.join(unknown)}, which this version does not know:"
            " resume it with the version that made it"
        )
    rules = before.pop("token_rule", 1), after.pop("token_rule", 1)
    if rules[0] != rules[1]:
        was, now_is = (f"rule {rule} ({TOKEN_RULES.get(rule, 'of another version')})" for rule in rules)
        raise UserError(
            f"cannot resume {run}: its text became tokens by {was}, and now does by {now_is}: start another run"
            " (evaluate.py still reads this one, with the tokenizer saved in it)"
        )
    defaults = leaves(asdict(RunConfig())) | {
        f"student.{field.name}": field.default for field in fields(StudentConfig) if field.default is not MISSING
    }
    differ = [
        f"{key} was {was}, is {after[key]}"
        for key in sorted(after.keys() - INFORMATIVE)
        if (was := before.get(key, defaults.get(key, after[key]))) != after[key]
    ]
    if differ:
        raise UserError(f"cannot resume {run}: {'; '.join(differ)}: restore these, or start another run")


def upgrade_origin(origin: Mapping[str, Any]) -> dict[str, Any]:
    """A recorded identity as this version writes it."""
    origin = upgrade(origin, recorded=True)
    if isinstance(origin.get("precision"), str):  # version 1: the teacher was bf16 in any case
        name = origin["precision"]
        origin["precision"] = {"student": name, "teacher": "bf16", "head": name}
    return origin


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The fields of two trees that differ, dotted, with both values."""
    before, after = leaves(then), leaves(now)
    return [
        f"{key} was {before.get(key)}, is {after.get(key)}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]


def leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A tree of dictionaries as one with dotted names."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _formula(name: str, version: int) -> Callable[[Tokenizer, Corpus], str]:
    if version not in FORMULAS[name]:
        raise UserError(
            f"{name} was recorded by formula {version}, which this version does not know: install a newer one"
        )
    return FORMULAS[name][version]
