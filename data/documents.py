"""A document, its identity, and the split that follows from it: all pure functions of its text."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b


@dataclass(frozen=True)
class Document:
    """One text and where it came from (`stdlib/json/decoder.py`, `rows.jsonl:17`)."""

    text: str
    origin: str

    @cached_property
    def key(self) -> int:
        """An unsigned 64-bit BLAKE2b hash of the text; the origin plays no part."""
        return int.from_bytes(blake2b(self.text.encode(), digest_size=8).digest(), "big")


def heldout_rank(document: Document) -> float:
    """Where the document's hash falls in [0, 1): it is held out by every fraction above its rank."""
    return document.key / 2**64


def is_heldout(document: Document, fraction: float) -> bool:
    """Whether the document is kept out of training when this `fraction` of documents is."""
    return heldout_rank(document) < fraction


def unique(documents: Iterable[Document], seen: set[int]) -> Iterator[Document]:
    """The documents whose text is not yet in `seen` (a set of keys, extended as we go)."""
    for document in documents:
        if document.key not in seen:
            seen.add(document.key)
            yield document
