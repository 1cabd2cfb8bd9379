"""`tutelage.cli`: flags, YAML, and errors of one line."""

import dataclasses
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse.typing import PositiveInt

from tutelage import cli
from tutelage.errors import UserError
from tutelage.training.config import OptimConfig, RunConfig


@dataclass(frozen=True)
class Inner:
    """Inner part."""

    rate: float = 0.5
    """A rate."""
    fast: bool = False
    """Be quick."""


@dataclass(frozen=True)
class Outer:
    """All of it."""

    count: PositiveInt = 3
    """How many."""
    loud: bool = True
    """Make noise."""
    name: str | None = None
    """What to call it."""
    inner: Inner = field(default_factory=Inner)


def parse(*argv: str) -> Outer:
    return cli.parse(Outer, list(argv), prog="prog", description="About.")


def parse_run(*argv: str) -> RunConfig:
    return cli.parse(RunConfig, list(argv), prog="train.py", description="About.")


def message(*argv: str) -> str:
    with pytest.raises(UserError) as caught:
        parse_run(*argv)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_no_flags_give_the_defaults() -> None:
    assert parse() == Outer()
    assert parse_run() == RunConfig()


def test_flags_set_fields_nested_ones_dotted() -> None:
    assert parse("--count", "5", "--inner.rate=2", "--name", "x") == Outer(5, name="x", inner=Inner(2.0))


def test_booleans_are_bare() -> None:
    assert parse("--no_loud", "--inner.fast") == Outer(loud=False, inner=Inner(fast=True))
    with pytest.raises(UserError):
        parse("--inner.fast", "true")


@pytest.mark.parametrize("name", ["bias", "qkv_bias", "tie_embeddings"])
def test_booleans_that_may_be_unset_are_bare_too(name: str) -> None:
    assert getattr(parse_run().student, name) is None
    assert getattr(parse_run(f"--student.{name}").student, name) is True
    assert getattr(parse_run(f"--no_student.{name}").student, name) is False


def test_yaml_gives_fields_and_later_flags_win(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("count: 7\nloud: false\ninner:\n  rate: 0.25\n  fast: true\n")
    given = ["--config", str(tmp_path / "a.yaml")]
    assert parse(*given) == Outer(7, False, inner=Inner(0.25, True))
    assert parse(*given, "--inner.rate", "1", "--loud") == Outer(7, inner=Inner(1.0, True))


def test_a_configuration_survives_yaml(tmp_path: Path) -> None:
    config = parse_run("--steps", "9", "--optim.lr", "1e-3", "--student.n_layers", "3", "--gradient_checkpointing")
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(dataclasses.asdict(config)))
    assert parse_run("--config", str(tmp_path / "c.yaml")) == config
    assert (type(config.steps), type(config.optim.lr)) == (int, float)  # a range-checking type has no YAML


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--stepz", "5"], ["--stepz", "--steps"]),
        (["--step", "5"], ["--step", "did you mean '--steps'"]),  # not taken for it, as argparse would
        (["--student.n_layerz", "5"], ["--student.n_layerz", "did you mean '--student.n_layers'"]),
        (["--student.mlp", "gelo"], ["--student.mlp", "'gelo'", "did you mean 'gelu'"]),
        (["--precision", "bf61"], ["--precision", "bf61", "bf16"]),
        (["--optim.schedule", "xyz"], ["xyz", "cosine", "wsd"]),
        (["--steps", "-5"], ["--steps", "-5", ">0"]),
        (["--optim.lr", "0"], ["--optim.lr", "0", ">0"]),
        (["--optim.lr", "inf"], ["--optim.lr inf", "finite"]),
        (["--loss.temperature", "nan"], ["--loss.temperature", "nan"]),
        (["--packing.heldout", "3"], ["--packing.heldout", "3", "0.02"]),
        (["--steps"], ["--steps", "expected one argument"]),
        (["extra"], ["extra"]),
    ],
)
def test_errors_name_flag_value_and_way_out(argv: list[str], parts: list[str]) -> None:
    text = message(*argv)
    assert all(part in text for part in parts), text


@pytest.mark.parametrize("value", ["abc", "5.5"])
def test_a_count_that_is_no_number_is_named_briefly(value: str) -> None:
    text = message("--steps", value)
    assert "--steps" in text
    assert value in text
    assert "Subtypes" not in text
    assert len(text) < 120


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("seed: 1\nstepz: 3", "bad.yaml line 2: unknown flag '--stepz': did you mean '--steps'?"),
        ("student:\n  n_layerz: 3", "bad.yaml line 2: unknown flag '--student.n_layerz'"),
        ("seed: 1\noptim: {lr: 1e-3}\nsteps: -1", "bad.yaml line 3: --steps -1"),
        ("steps: [1", "bad.yaml line 2: "),
        ("seed: 1\n\tsteps: 1", "bad.yaml line 2: "),
        ("seed: 1\nsteps: 1\nseed: 2", "bad.yaml line 3: 'seed' again, after line 1"),
        ("- a", "bad.yaml line 1"),
        ("seed: \x01", "bad.yaml"),
        ("student: 3", "student"),
        ("optim: [1, 2]", "optim"),
    ],
)
def test_errors_in_yaml_are_user_errors(content: str, part: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(content + "\n")
    (tmp_path / "good.yaml").write_text("log_every: 3\n")
    assert part in message("--config", str(path))
    assert part in message(f"--config={path}")
    assert part in message("--config", str(tmp_path / "good.yaml"), "--config", str(path))


def test_a_text_that_yaml_takes_for_a_number_is_told_from_one(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("data: 2024\n")
    assert message("--config", str(tmp_path / "a.yaml")).endswith(
        "a.yaml line 1: --data 2024: must be a str (in YAML, text stands in quotes)"
    )
    (tmp_path / "a.yaml").write_text("data: 2024-01-01\noptim: {lr: 1e-3}\n")
    config = parse_run("--config", str(tmp_path / "a.yaml"))
    assert (config.data, config.optim.lr) == ("2024-01-01", 1e-3)


def test_an_old_file_is_upgraded_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "old.yaml"
    path.write_text("version: 1\nnumber: 7\ninner:\n  rate: 1e-3\nloud: false\n")

    def upgrade(tree: dict[str, Any]) -> dict[str, Any]:
        assert tree.pop("version") == 1
        return {"count" if key == "number" else key: value for key, value in tree.items()}

    def read(*more: str) -> Outer:
        argv = ["--config", str(path), *more]
        return cli.parse(Outer, argv, prog="prog", description="", upgrade=upgrade)

    assert read() == Outer(7, loud=False, inner=Inner(1e-3))
    assert read("--loud") == Outer(7, inner=Inner(1e-3))
    path.write_text("version: 1\n\nloud: 3\n")
    with pytest.raises(UserError, match=r"old.yaml line 3: --loud 3: must be true or false"):
        read()
    path.write_text("version: 1\n")
    with pytest.raises(UserError, match=r"line 1: unknown flag '--version'"):
        parse("--config", str(path))


def test_a_full_configuration_is_read_from_yaml_in_one_piece(tmp_path: Path) -> None:
    tree = dataclasses.asdict(RunConfig(data=",".join(f"/some/long/path/to/{n}.jsonl" for n in range(500))))
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(tree))
    assert dataclasses.asdict(parse_run("--config", str(tmp_path / "c.yaml"))) == tree


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ({"precision": "fp61"}, ["--precision", "fp61"]),
        ({"batch_size": 0}, ["--batch_size 0: must be >0"]),
        ({"steps": 2.5}, ["--steps", "2.5"]),
        ({"steps": "many"}, ["--steps", "many"]),
        ({"optim": OptimConfig(lr=-1.0)}, ["--optim.lr -1.0: must be >0"]),
        ({"optim": OptimConfig(lr=float("nan"))}, ["--optim.lr", "nan"]),
        ({"optim": None}, ["optim None"]),
        ({"data": 3}, ["--data 3", "str"]),
        ({"seed": object()}, ["--seed"]),
    ],
)
def test_what_python_gives_is_checked_as_flags_are(fields: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        cli.validate(RunConfig(**fields))
    text = str(caught.value)
    assert "\n" not in text
    assert all(part in text for part in parts), text


def test_a_valid_configuration_comes_back_equal(tmp_path: Path) -> None:
    config = RunConfig(steps=3, data="2024", optim=OptimConfig(lr=1, warmup_steps=0))
    assert cli.validate(config) == config
    assert cli.validate(RunConfig(output_dir=tmp_path)).output_dir == str(tmp_path)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Seeded:
    """Draws."""

    seed: cli.Seed = 0
    """A seed."""


def test_a_seed_is_what_torch_and_numpy_both_take() -> None:
    for good in (0, 2**63 - 1):
        assert cli.parse(Seeded, ["--seed", str(good)], prog="", description="").seed == good
    for bad in (-1, 2**63, 2**64):
        with pytest.raises(UserError, match=rf"^--seed {bad}: must be >=0 and <{2**63}$"):
            cli.parse(Seeded, ["--seed", str(bad)], prog="", description="")
        with pytest.raises(UserError, match=f"--seed {bad}"):
            cli.validate(Seeded(bad))


def test_what_the_command_line_got_wrong_is_not_blamed_on_the_yaml(tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text("steps: 3\n")
    assert "good.yaml" not in message("--config", str(tmp_path / "good.yaml"), "--steps", "-1")
    assert "good.yaml" not in message("--config", str(tmp_path / "good.yaml"), "--steps=-1")


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("os.environ", {**os.environ, "TUTELAGE_HAS": "before"})
        yield tmp_path


def test_env_is_read_and_the_environment_goes_before_it(in_tmp: Path) -> None:
    (in_tmp / ".env").write_text("# keys\nTUTELAGE_KEY='a b'\nTUTELAGE_HAS=after\n")
    assert cli.run(lambda: None) == 0
    assert os.environ["TUTELAGE_KEY"] == "a b"
    assert os.environ["TUTELAGE_HAS"] == "before"


@pytest.mark.parametrize("content", [b"\xef\xbb\xbfKEY=1\r\n", b"export KEY=1\n", b"# KEY\n\nKEY = '1' # one\n"])
def test_spellings_of_env_files_are_read_without_a_word(
    in_tmp: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (in_tmp / ".env").write_bytes(content)
    assert cli.run(lambda: None) == 0
    assert os.environ["KEY"] == "1"
    assert caplog.records == []


@pytest.mark.parametrize(
    ("content", "read"),
    [
        ("KEY=1\nhidden".encode("utf-16"), True),
        ("KEY=1\nhidden=2".encode("utf-16-le"), False),
        (b"\xff\xfeKEY=hidden", False),
        (b"A=hidden\xff\nKEY=1", True),
        (b"KEY=1\nhidden", True),
        (b"KEY=1\n'hidden", True),
        (b"KEY=1\nNUL=hid\0den", True),
        (b"[section]\nhidden line\nKEY=1", True),
        (b"\x7fELF\x02\x01\x01\0\0hidden\xf0\x90", False),
        (None, False),
    ],
)
def test_an_odd_env_file_is_one_warning_without_its_values_and_stops_nothing(
    in_tmp: Path, content: bytes | None, read: bool, caplog: pytest.LogCaptureFixture
) -> None:
    if content is None:
        (in_tmp / ".env").mkdir()
    else:
        (in_tmp / ".env").write_bytes(content)
    assert cli.run(lambda: 3) == 3
    [line] = caplog.messages
    assert line.startswith(".env ")
    assert "hidden" not in line
    assert os.environ.get("KEY") == ("1" if read else None)


def test_an_env_file_that_may_not_be_read_stops_nothing(
    in_tmp: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (in_tmp / ".env").write_text("KEY=hidden")

    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert cli.run(lambda: 3) == 3
    assert caplog.messages == [".env is passed over: it cannot be read (Permission denied)"]


def test_a_missing_yaml_is_named() -> None:
    assert "nowhere.yaml" in message("--config", "nowhere.yaml")


def test_help_holds_every_field_and_its_docstring(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse("--help")
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    for part in ("About.", "--count", "How many.", "--inner.rate", "A rate.", "--no_loud"):
        assert part in shown
    with pytest.raises(SystemExit):
        parse_run("--help")
    assert "None" not in [line.strip() for line in capsys.readouterr().out.splitlines()]


def test_every_field_of_a_run_has_a_help() -> None:
    missing = [name for name, _, _, text in cli._fields(RunConfig) if not text.strip()]
    assert missing == []


def test_run_turns_a_user_error_into_one_line_and_2(capsys: pytest.CaptureFixture[str]) -> None:
    def body() -> None:
        raise UserError("no such thing: choose another")

    assert cli.run(body) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "error: no such thing: choose another\n")


def test_run_passes_status_and_bugs_on() -> None:
    assert cli.run(lambda: None) == 0
    assert cli.run(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        cli.run(lambda: 1 // 0)
