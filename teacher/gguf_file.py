"""The head of a `.gguf` file: what it says of its model and tokenizer, and the shapes of its tensors.

Read here in half a second, where the `gguf` package takes twenty for a vocabulary of 262,144 tokens.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import mmap
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.errors import UserError

VERSIONS = (2, 3)
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Kinds of values by their number in the file, as `struct` names them."""
STRING, ARRAY = 8, 9


@dataclass(frozen=True)
class GgufFile:
    """Metadata by name, and the shape of every tensor, outermost dimension first."""

    path: Path
    metadata: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]

    @property
    def architecture(self) -> str:
        """Such as "llama"."""
        return str(self.metadata["general.architecture"])

    def of_model(self, name: str) -> Any:
        """What is written of the architecture, such as "context_length"; None where nothing is."""
        return self.metadata.get(f"{self.architecture}.{name}")

    def of_tokenizer(self, name: str) -> Any:
        """What is written of the tokenizer, such as "bos_token_id"; None where nothing is."""
        return self.metadata.get(f"tokenizer.ggml.{name}")


def read(path: Path) -> GgufFile:
    """Raises UserError where the file is not GGUF, or cut short, or only a part of one."""
    with _bytes(path) as cursor:
        magic, version, n_tensors, n_values = cursor.take("4sIQQ")
        if magic != b"GGUF" or version not in VERSIONS:
            raise UserError(f"{path} is not a GGUF file of version {' or '.join(map(str, VERSIONS))}")
        metadata = {cursor.text(): cursor.value(*cursor.take("I")) for _ in range(n_values)}
        shapes = dict(cursor.tensor() for _ in range(n_tensors))
    if "general.architecture" not in metadata:
        raise UserError(f"{path} does not say its architecture")
    if (parts := metadata.get("split.count", 1)) > 1:
        raise UserError(f"{path} is one of {parts} parts: join them first (llama-gguf-split --merge)")
    return GgufFile(path, metadata, shapes)


class _Cursor:
    """A place in a file, from which values are taken one after another."""

    def __init__(self, content: Any) -> None:
        self.content, self.at = content, 0

    def take(self, form: str) -> tuple[Any, ...]:
        """Numbers as `struct` describes them."""
        found = struct.unpack_from(f"<{form}", self.content, self.at)
        self.at += struct.calcsize(f"<{form}")
        return found

    def text(self) -> str:
        """A string behind its length."""
        (length,) = self.take("Q")
        begin, self.at = self.at, self.at + length
        if self.at > len(self.content):
            raise struct.error("a text goes on behind the end")
        return bytes(self.content[begin : self.at]).decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        """A number, a string, or a list of either."""
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            return self.take(NUMBERS[kind])[0]
        kind, length = self.take("IQ")
        if kind in NUMBERS:
            return list(self.take(f"{length}{NUMBERS[kind]}"))
        return [self.value(kind) for _ in range(length)]

    def tensor(self) -> tuple[str, tuple[int, ...]]:
        """Name and shape."""
        name, (dimensions,) = self.text(), self.take("I")
        shape = self.take(f"{dimensions}Q")[::-1]  # the file has the innermost first
        self.take("IQ")  # how it is packed, and where it lies
        return name, shape


@contextmanager
def _bytes(path: Path) -> Iterator[_Cursor]:
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            yield _Cursor(content)
    except (struct.error, KeyError, OverflowError, MemoryError, ValueError, OSError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is no whole GGUF file ({error}): fetch it again") from error
