"""Readers of local files. Each yields `(origin, value)` rows; a bad row is a value, not an exception.

A value is a text, or `Unreadable` with the reason, so that one place (`sources.read`) counts bad rows and
decides when they are too many. Only a file that cannot be used at all raises `UserError`.
"""

import io
import json
import os
import tokenize
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tutelage.errors import UserError

DEFAULT_COLUMNS = ("content", "code", "text")
"""Where a row's text is looked for when no column is named; the first one present wins."""

ROWS = 256
"""Rows of a parquet file in memory at a time."""


@dataclass(frozen=True)
class Unreadable:
    """Stands where a text should be, and says why there is none."""

    reason: str


Row = tuple[str, object]
"""(origin, value): the value is a text, a mapping of columns, or `Unreadable`."""


def text_file(path: Path) -> Iterator[Row]:
    """The whole file as one document. Raises UserError with the byte offset if it is not UTF-8."""
    content = path.read_bytes()
    try:
        yield str(path), content.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 at byte {error.start}: convert it, e.g. with iconv") from error


def python_files(root: Path, label: str, skip: Collection[str] = ()) -> Iterator[Row]:
    """The `.py` files below `root`, ordered by relative path, with origins `label/relative/path.py`.

    Directories that are hidden or named in `skip` are left out; links to directories are not followed.
    """
    found: list[Path] = []
    for directory, below, files in os.walk(root):
        below[:] = [name for name in below if name not in skip and not name.startswith(".")]
        found += [Path(directory, name).relative_to(root) for name in files if name.endswith(".py")]
    for relative in sorted(found):
        yield f"{label}/{relative.as_posix()}", _python_text(root / relative)


def _python_text(path: Path) -> str | Unreadable:
    """The source of a Python file in the encoding it declares (PEP 263)."""
    if not path.is_file():  # a dangling link, or a pipe that would block for ever
        return Unreadable("not a regular file")
    encoding = "utf-8"
    try:
        content = path.read_bytes()
        encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        return Unreadable(f"not {encoding} at byte {error.start}")
    except (SyntaxError, LookupError, OSError) as error:  # SyntaxError: an unknown or contradictory coding
        return Unreadable(f"no usable encoding: {error}")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def jsonl_rows(path: Path) -> Iterator[Row]:
    """One parsed value per line of a JSON Lines file, with origin `file:line`; blank lines are skipped."""
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield f"{path}:{number}", _json_value(line, offset)
            offset += len(line)


def _json_value(line: bytes, offset: int) -> object:
    try:
        return json.loads(line.decode().removeprefix("\ufeff"))
    except UnicodeDecodeError as error:
        return Unreadable(f"not UTF-8 at byte {offset + error.start} of the file")
    except (ValueError, RecursionError) as error:  # RecursionError: a row of a million brackets
        return Unreadable(f"not JSON: {error}")


def parquet_rows(path: Path) -> Iterator[Row]:
    """One mapping per row of a parquet file, with origin `file:row`. Raises UserError if corrupt."""
    from pyarrow.parquet import ParquetFile

    def rows() -> Iterator[object]:
        with ParquetFile(path) as file:
            for batch in file.iter_batches(ROWS):
                yield from batch.to_pylist()

    return opened(str(path), rows)


def opened(name: str, open_rows: Callable[[], Iterable[object]]) -> Iterator[Row]:
    """Numbered rows of a table; whatever fails on the way becomes a UserError that names it."""
    number = 0
    try:
        for number, row in enumerate(open_rows(), 1):
            yield f"{name}:{number}", row
    except Exception as error:  # arrow, fsspec and HTTP errors share no base class
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{name} cannot be read after row {number}: {reason}") from error


def column_texts(rows: Iterator[Row], column: str | None, where: str) -> Iterator[Row]:
    """Takes `column` out of every row, by default the first of `DEFAULT_COLUMNS` that the first row has.

    Raises UserError, listing the columns, if none was named and none of the usual ones is there.
    """
    for origin, row in rows:
        if isinstance(row, Unreadable):
            yield origin, row
        elif not isinstance(row, Mapping):
            yield origin, Unreadable(f"a {type(row).__name__} where an object with columns was expected")
        else:
            column = column or _default_column(row, where)
            yield origin, row[column] if column in row else Unreadable(f"{_columns(row)} but no '{column}'")


def _default_column(row: Mapping[str, object], where: str) -> str:
    for name in DEFAULT_COLUMNS:
        if name in row:
            return name
    usual = ", ".join(DEFAULT_COLUMNS)
    raise UserError(f"{where} has {_columns(row)} but none of {usual}: name one, as in {where}:COLUMN")


def _columns(row: Mapping[str, object]) -> str:
    return "columns " + ", ".join(map(str, row)) if row else "no columns"
