"""Command lines from dataclasses: a field, its type and its docstring are the flag, its check and its help."""

import dataclasses
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_type_hints

import docstring_parser
import yaml
from dotenv import dotenv_values
from jsonargparse import ActionYesNo, ArgumentParser, Namespace

from tutelage.errors import UserError, unknown

T = TypeVar("T")


class _Parser(ArgumentParser):
    """A parser whose errors are one line that names the flag, the value and the nearest good one."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        line = " ".join(message.split())
        if found := re.search(r"[Uu]nrecognized arguments: --([^\s=]+)|Option '([^']+)' is not accepted", line):
            flags = [flag for action in self._actions for flag in action.option_strings]
            raise unknown("flag", f"--{found[1] or found[2]}", flags) from ex
        if found := re.search(r'key "([^"]+)".*Literal\[([^\]]+)\].*[Vv]alue: (\S+)', line):
            raise unknown(f"--{found[1]}", found[3], re.findall(r"'([^']+)'", found[2])) from ex
        if found := re.search(r'key "([^"]+)".*restriction v(\S+(?: and v\S+)?)', line):
            value = re.search(r"[Vv]alue: (\S+)$|: (\S+) does not conform", line)
            raise UserError(f"--{found[1]} {value and (value[1] or value[2])}: must be {found[2]}") from ex
        if found := re.search(r'key "([^"]+)": Does not validate.*Not of type (\w+).*Given value: (.+)$', line):
            raise UserError(f"--{found[1]} {found[3]}: must be a {found[2]}") from ex
        raise UserError(line) from ex


def parse(config: type[T], argv: Sequence[str] | None = None, *, prog: str, description: str) -> T:
    """An instance of the dataclass `config` from a command line, and from YAML given by `--config`.

    Nested dataclasses are dotted flags (`--optim.lr`), booleans are bare (`--dry_run`, `--no_dry_run`), and dashes in
    the name of a flag are underscores.
    Raises UserError naming the flag, the value and the nearest known flag.
    """
    parser = _Parser(prog=prog, description=description, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="YAML file of these same fields.")
    for name, hint, default, text in _fields(config):
        if hint in (bool, bool | None):
            parser.add_argument(f"--{name}", action=ActionYesNo(no_prefix="no_"), default=default, help=text)
        else:
            parser.add_argument(f"--{name}", type=hint, default=default, help=text)
    given: list[str] = []  # --some-flag=value as --some_flag value, so that all spellings are one below
    for part in sys.argv[1:] if argv is None else argv:
        name, *rest = part.split("=", 1) if part.startswith("--") else [part]
        given += [f"--{name[2:].replace('-', '_')}" if part.startswith("--") else name, *rest]
    lines: dict[str, str] = {}  # where each key was last set
    for flag, value in pairwise(given):
        if flag == "--config":
            lines |= {key: f"{value} line {line}" for key, line in _key_lines(Path(value)).items()}
    try:
        return _build(config, parser.parse_args(given))
    except UserError as error:
        for key, place in lines.items():
            if re.search(rf"--{re.escape(key)}(?![\w.])", str(error)) and f"--{key}" not in given:
                raise UserError(f"{place}: {error}") from error
        raise


def _key_lines(path: Path) -> dict[str, int]:
    """The line of each dotted key of a YAML file. Raises UserError, with the line, for what is not a tree of them."""
    lines: dict[str, int] = {}

    def note(node: yaml.Node, prefix: str) -> None:
        if not isinstance(node, yaml.MappingNode):
            return
        for name, value in node.value:
            key, line = f"{prefix}{name.value}", name.start_mark.line + 1
            if key in lines:
                raise UserError(f"{path} line {line}: '{key}' again, after line {lines[key]}: keep one of them")
            lines[key] = line
            note(value, f"{key}.")

    try:
        tree = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"{path} line {line}: {error.problem}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"--config {path} cannot be read ({type(error).__name__})") from error
    if tree is not None and not isinstance(tree, yaml.MappingNode):
        raise UserError(f"{path} line 1: holds no fields with values; --print_config shows the form")
    if tree is not None:
        note(tree, "")
    return lines


def run(body: Callable[[], int | None]) -> int:
    """The exit status of a script: 2 and one line on stderr where the input cannot work, 130 where it was stopped."""
    try:
        load_env()
        return body() or 0
    except UserError as error:
        if speaks():  # several processes fail alike
            print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def load_env(path: Path = Path(".env")) -> None:
    """Sets what a `.env` file names, and the environment does not, as environment variables: keys are kept there.

    Raises UserError, which never shows a value, for a file that cannot be read.
    """
    if not path.exists():
        return
    try:
        found = dotenv_values(stream=StringIO(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__}): mend it or move it away") from error
    for name, value in found.items():
        if value is None:
            raise UserError(f"{path}: a line is not NAME=VALUE: mend it or move it away")
        os.environ.setdefault(name, value)


def speaks() -> bool:
    """Whether this process is the one that prints, of those that `torchrun` or `accelerate launch` started."""
    return os.environ.get("RANK", "0") == "0"


def _fields(config: type[Any], prefix: str = "") -> Iterator[tuple[str, Any, Any, str]]:
    """Dotted name, type, default and help of every leaf field."""
    hints = get_type_hints(config, include_extras=True)
    classes = [part for part in reversed(config.__mro__) if dataclasses.is_dataclass(part)]
    documented = (docstring_parser.parse_from_object(part).params for part in classes)
    helps = {param.arg_name: param.description for params in documented for param in params}
    for field in dataclasses.fields(config):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from _fields(hints[field.name], f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, hints[field.name], field.default, helps.get(field.name) or ""


def _build(config: type[T], values: Any, prefix: str = "") -> T:
    if not isinstance(values, Namespace):
        name = prefix.rstrip(".") or "configuration"
        raise UserError(f"{name} {values!r}: needs fields with values, see --help for their names")
    hints = get_type_hints(config)
    chosen = {
        field.name: _build(hints[field.name], values[field.name], f"{prefix}{field.name}.")
        if dataclasses.is_dataclass(hints[field.name])
        else _plain(prefix + field.name, values[field.name])
        for field in dataclasses.fields(config)  # type: ignore[arg-type]
    }
    return config(**chosen)


def _plain(name: str, value: Any) -> Any:
    """A finite number without jsonargparse's range-checking type, which YAML could not write."""
    for base in (bool, int, float):
        if isinstance(value, base):
            if not math.isfinite(value):
                raise UserError(f"--{name} {value}: must be finite")
            return base(value)
    return value
