"""Command lines from dataclasses: a field, its type and its docstring are the flag, its check and its help."""

import codecs
import dataclasses
import errno
import json
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, get_type_hints

import docstring_parser
import yaml
from dotenv import dotenv_values
from dotenv.parser import parse_stream
from jsonargparse import ActionYesNo, ArgumentParser, Namespace
from jsonargparse.typing import restricted_number_type

from tutelage.errors import UserError, unknown

log = logging.getLogger(__name__)
T = TypeVar("T")

if TYPE_CHECKING:
    Seed = int
else:  # what torch and numpy both take
    Seed = restricted_number_type("Seed", int, [(">=", 0), ("<", 2**63)])


class _Parser(ArgumentParser):
    """A parser whose errors are one line that names the flag, the value and the nearest good one."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        line = re.sub(r'^(Parser key "config": )+', "", " ".join(message.split()))
        if found := re.search(r"[Uu]nrecognized arguments: --([^\s=]+)|Option '([^']+)' is not accepted", line):
            flags = [flag for action in self._actions for flag in action.option_strings]
            raise unknown("flag", f"--{found[1] or found[2]}", flags) from ex
        if found := re.search(r'key "([^"]+)".*Literal\[([^\]]+)\].*[Vv]alue: (\S+)', line):
            raise unknown(f"--{found[1]}", found[3], re.findall(r"'([^']+)'", found[2])) from ex
        if found := re.search(r'key "([^"]+)".*restriction v(\S+(?: and v\S+)?)', line):
            value = re.search(r"[Vv]alue: (\S+)$|: (\S+) does not conform", line)
            bounds = found[2].replace(" v", " ")
            raise UserError(f"--{found[1]} {value and (value[1] or value[2])}: must be {bounds}") from ex
        if found := re.search(r'key "([^"]+)": Does not validate.*Not of type (\w+).*Given value: (.+)$', line):
            raise UserError(f"--{found[1]} {found[3]}: must be a {found[2]}") from ex
        if found := re.search(r'key "([^"]+)": .*?Expected a <class \'(\w+)\'>.*Given value: (.+)$', line):
            raise UserError(f"--{found[1]} {found[3]}: must be a {found[2]} (in YAML, text stands in quotes)") from ex
        if found := re.search(r'key "([^"]+)": Not of type (\w+): (.+)$', line):
            raise UserError(f"--{found[1]}: must be a {found[2]} ({found[3]})") from ex
        raise UserError(line) from ex


def parse(
    config: type[T],
    argv: Sequence[str] | None = None,
    *,
    prog: str,
    description: str,
    upgrade: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> T:
    """An instance of the dataclass `config` from a command line, and from YAML given by `--config`.

    Nested dataclasses are dotted flags (`--optim.lr`), booleans are bare (`--dry_run`, `--no_dry_run`), and dashes in
    the name of a flag are underscores. `upgrade` turns the tree of a YAML file into one of today's fields before it is
    read. Raises UserError naming the flag, the value and the nearest known flag.
    """
    given: list[str] = []  # --some-flag=value as --some_flag value, so that all spellings are one below
    for part in sys.argv[1:] if argv is None else argv:
        name, *rest = part.split("=", 1) if part.startswith("--") else [part]
        given += [f"--{name[2:].replace('-', '_')}" if part.startswith("--") else name, *rest]
    lines: dict[str, str] = {}  # where each key was last set
    try:
        for place, (flag, value) in enumerate(pairwise(list(given)), 1):
            if flag == "--config":
                tree, keys = _read_yaml(Path(value))
                lines |= {key: f"{value} line {line}" for key, line in keys.items()}
                given[place] = _as_json(config, upgrade(tree) if upgrade else tree)
        return _build(config, _parser(config, prog, description).parse_args(given))
    except UserError as error:
        for key, where in lines.items():
            if re.search(rf"--{re.escape(key)}(?![\w.])", str(error)) and f"--{key}" not in given:
                raise UserError(f"{where}: {error}") from error
        raise


def validate(config: T) -> T:
    """An instance that was made in Python, as the command line would have made it: each field of its type.

    Raises UserError, as `parse` does, for a value that the field's flag would refuse.
    """
    tree = json.loads(_as_json(type(config), dataclasses.asdict(config)))  # type: ignore[call-overload]
    return _build(type(config), _parser(type(config), "", "").parse_object(tree))


def _parser(config: type[Any], prog: str, description: str) -> _Parser:
    parser = _Parser(prog=prog, description=description, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="YAML file of these same fields.")
    for name, hint, default, text in _fields(config):
        if hint in (bool, bool | None):
            parser.add_argument(f"--{name}", action=ActionYesNo(no_prefix="no_"), default=default, help=text)
        else:
            parser.add_argument(f"--{name}", type=hint, default=default, help=text)
    return parser


def _read_yaml(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """The tree in a YAML file, and the line of each dotted key. Raises UserError, with the line, for anything else."""
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

    loader = None
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        if node is not None and not isinstance(node, yaml.MappingNode):
            raise UserError(f"{path} line 1: holds no fields with values; --print_config shows the form")
        if node is not None:
            note(node, "")
        return {} if node is None else loader.construct_document(node), lines
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"{path} line {line}: {error.problem}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"--config {path} cannot be read ({type(error).__name__})") from error
    finally:
        if loader is not None:
            loader.dispose()


def _as_json(config: type[Any], tree: dict[str, Any]) -> str:
    """A tree of fields as jsonargparse takes it where it could take a file; dates and paths are text."""
    for name, hint, _, _ in _fields(config):
        value: Any = tree
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if hint in (bool, bool | None) and not isinstance(value, bool | None):
            raise UserError(f"--{name} {value}: must be true or false")  # jsonargparse does not say which
    try:
        return json.dumps(tree, default=str)
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"the configuration is no tree of fields with values: {error}") from error


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

    What else stands there, or a file that cannot be read, is one warning, which never shows a value.
    """
    try:
        if not path.exists():
            return
        if not path.is_file():
            raise IsADirectoryError(errno.EISDIR, "not a file")
        content = path.read_bytes()
    except OSError as error:
        log.warning("%s is passed over: it cannot be read (%s)", path, error.strerror)
        return
    encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    logging.getLogger("dotenv").setLevel(logging.ERROR)  # what is wrong is said below
    text = content.decode(encoding, errors="replace")
    values = dotenv_values(stream=StringIO(text)).items()
    plain = {name: value for name, value in values if value is not None and _is_plain(name + value)}
    odd = any(line.error or (line.key and line.key not in plain) for line in parse_stream(StringIO(text)))
    for name, value in plain.items():
        os.environ.setdefault(name, value)
    if encoding == "utf-16":
        log.warning("%s is UTF-16, where UTF-8 is usual: %d variables were read", path, len(plain))
    elif odd:
        log.warning("%s has lines that are not NAME=VALUE: they are passed over", path)


def _is_plain(text: str) -> bool:
    """Whether the environment takes it, and it was decoded without loss."""
    return not {"\0", "\ufffd"} & set(text)


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
