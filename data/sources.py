"""Names of training text, and how each is read.

    NAME[=WEIGHT],…          e.g. stdlib,mbpp=3      WEIGHT: passes over that source per epoch

    stdlib                   the standard library of the running interpreter, without its tests
    site-packages            every package installed beside it
    mbpp                     the 374 training problems of MBPP, from the hub
    mbpp:FILE.jsonl          the same from a local file (the test problems in it are left out)
    hub:ORG/NAME[:COLUMN]    a dataset on the hub, streamed, e.g. hub:DaniilOr/humanized_cleaned_code
    FILE.jsonl[:COLUMN]      one document per line
    FILE.parquet[:COLUMN]    one document per row
    FILE.txt                 one document
    DIRECTORY                its .py files, recursively

Without COLUMN the first of content, code, text is taken.
Unreadable rows are skipped and logged, up to a share.
"""

import math
import site
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from tutelage.data.config import PackingConfig
from tutelage.data.documents import Document
from tutelage.data.hub import hub_sample
from tutelage.data.mbpp import mbpp_file, mbpp_hub
from tutelage.data.readers import (
    Row,
    Unreadable,
    column_texts,
    jsonl_rows,
    parquet_rows,
    python_files,
    text_file,
)
from tutelage.data.tolerance import BadRows
from tutelage.errors import UserError, unknown
from tutelage.runs import checkpoints

Reader = Callable[[PackingConfig], Iterator[Row]]


@dataclass(frozen=True)
class Source:
    """A source by name, and how many times an epoch passes over it (fractions allowed)."""

    name: str
    weight: float = 1.0


def parse_sources(text: str) -> list[Source]:
    """The sources in `NAME[=WEIGHT],…`. Raises UserError for an unknown or repeated name or a bad weight."""
    sources = [_parse_source(part.strip()) for part in text.split(",") if part.strip()]
    if not sources:
        raise UserError(f"no data source in '{text}': use stdlib, site-packages, mbpp, hub:ORG/NAME or a path")
    names = [source.name for source in sources]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"data source '{name}' is named twice: give it a weight instead, as in {name}=2")
        _reader(name)
    return sources


def read(name: str, config: PackingConfig) -> Iterator[Document]:
    """The documents of one source, in a fixed order; blank ones are left out.

    Raises UserError if the source is unknown, missing, empty, or has more than a share of
    `config.max_bad_rows` unreadable rows.
    """
    bad = BadRows(name, config.max_bad_rows)
    documents = _documents(_reader(name)(config), bad, config.max_document_mb)
    count = 0
    for document in islice(documents, config.max_documents):
        count += 1
        yield document
    bad.judge()
    if count == 0:
        raise UserError(f"no documents in '{name}': it is empty, or holds only blank texts")


def _documents(rows: Iterator[Row], bad: BadRows, max_mb: float) -> Iterator[Document]:
    for origin, value in rows:
        problem = _problem(value, max_mb)
        if problem:
            bad.reject(origin, problem)
            continue
        bad.accept()
        if str(value).strip():
            yield Document(str(value), origin)


def _problem(value: object, max_mb: float) -> str | None:
    """Why `value` cannot be a document, or None if it can."""
    if isinstance(value, Unreadable):
        return value.reason
    if not isinstance(value, str):
        return f"a {type(value).__name__} where a text was expected"
    try:
        size = len(value.encode()) / 1e6
    except UnicodeEncodeError as error:  # JSON may spell half of a surrogate pair
        return f"not Unicode text: lone surrogate at character {error.start}"
    return f"{size:.0f} MB, more than --packing.max_document_mb {max_mb:g}" if size > max_mb else None


def _parse_source(part: str) -> Source:
    name, equals, weight = part.rpartition("=")
    if not equals:
        return Source(part)
    try:
        value = float(weight)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise UserError(f"weight '{weight}' of data source '{name}' must be a positive number, as in {name}=2")
    return Source(name, value)


def _reader(name: str) -> Reader:
    """Finds the reader for a name, without reading. Raises UserError if there is none or no such file."""
    if name in _NAMED:
        return _NAMED[name]
    for prefix, prefixed in _PREFIXED.items():
        if name.startswith(prefix):
            return prefixed(name.removeprefix(prefix))
    if Path(name).is_dir():
        if checkpoints(Path(name)):
            raise UserError(
                f"'{name}' is a run, not text: go on with it (--resume {name}), or let it teach (--teacher {name})"
            )
        return lambda config: python_files(Path(name), Path(name).name or name, skip=("__pycache__",))
    return _file_reader(name)


def _file_reader(name: str) -> Reader:
    path, column = _split_column(name)
    if path.suffix in _FILES:
        _check_file(path)
        return lambda config: _FILES[path.suffix](path, column)
    if path.is_file():
        raise UserError(f"cannot read '{name}': known are {', '.join(_FILES)} and directories of .py files")
    if "/" in name or "\\" in name:
        raise UserError(f"no such file or directory: '{name}'; for a dataset on the hub write hub:{name}")
    raise unknown("data source", name, [*_NAMED, "hub:ORG/NAME", "FILE.jsonl", "FILE.parquet", "FILE.txt", "DIRECTORY"])


def _split_column(name: str) -> tuple[Path, str | None]:
    """`rows.jsonl:code` → (`rows.jsonl`, `code`); a colon elsewhere belongs to the path."""
    path, colon, column = name.rpartition(":")
    if colon and column and Path(path).suffix in _FILES:
        return Path(path), column
    return Path(name), None


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"no such file: '{path}'")
    if path.stat().st_size == 0:
        raise UserError(f"'{path}' is empty: there is nothing to train on")


def _stdlib(config: PackingConfig) -> Iterator[Row]:
    skip = ("__pycache__", "site-packages", "dist-packages", "test", "tests", "idle_test")
    return python_files(Path(sysconfig.get_path("stdlib")), "stdlib", skip)


def _site_packages(config: PackingConfig) -> Iterator[Row]:
    named = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()]
    for root in dict.fromkeys(Path(path).resolve() for path in named):  # lib64 is often a link to lib
        yield from python_files(root, "site-packages", skip=("__pycache__",))


def _hub(name: str) -> Reader:
    dataset, _, column = name.partition(":")
    return lambda config: column_texts(hub_sample(dataset, config.max_documents), column or None, f"hub:{dataset}")


def _mbpp_file(name: str) -> Reader:
    _check_file(Path(name))
    return lambda config: mbpp_file(Path(name))


_NAMED: dict[str, Reader] = {
    "stdlib": _stdlib,
    "site-packages": _site_packages,
    "mbpp": lambda config: mbpp_hub(),
}
_PREFIXED: dict[str, Callable[[str], Reader]] = {"mbpp:": _mbpp_file, "hub:": _hub}
_FILES: dict[str, Callable[[Path, str | None], Iterator[Row]]] = {
    ".jsonl": lambda path, column: column_texts(jsonl_rows(path), column, str(path)),
    ".parquet": lambda path, column: column_texts(parquet_rows(path), column, str(path)),
    ".txt": lambda path, column: text_file(path),
}
