"""From the names of sources to packed rows: read, split by hash, tokenise, pack, and remember."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from tutelage.data.array_cache import Arrays, cached, digest
from tutelage.data.config import PackingConfig
from tutelage.data.documents import Document, heldout_rank, is_heldout, unique
from tutelage.data.packing import PackedTokens, join, pack
from tutelage.data.sources import parse_sources, read
from tutelage.data.tokenizer import Tokenizer
from tutelage.errors import UserError

logger = logging.getLogger(__name__)

CHUNK = 256
"""Documents tokenised at a time: enough to keep all threads busy, few enough to hold in memory."""
COUNTED = 1 << 22
"""Tokens counted at a time."""


@dataclass(frozen=True)
class Corpus:
    """Everything a run reads: one packed stream per source to train on, and one of held-out documents."""

    train: tuple[PackedTokens, ...]
    """Per source, in the order they were named; one may be empty."""

    weights: tuple[float, ...]
    """Per source: passes over it per epoch."""

    heldout: PackedTokens
    """Documents of all sources that are never trained on."""

    fingerprint: str
    """Hash of the rows and weights: a resumed run must find the same one."""

    documents: int
    """How many different documents there are, held-out ones included."""


def build_corpus(sources: str, tokenizer: Tokenizer, config: PackingConfig, cache_dir: Path | None) -> Corpus:
    """Reads, splits, tokenises and packs `sources` (see `tutelage.data.sources`).

    A text that occurs twice counts once, for the source named first. Tokenised sources are kept under
    `cache_dir` by content, so an unchanged source is only read again. Raises UserError for bad sources, and
    if no document is left to train on or to hold out.
    """
    if config.seq_len <= len(tokenizer.prefix_ids):
        raise UserError(
            f"--packing.seq_len {config.seq_len} has no room beside the {len(tokenizer.prefix_ids)} tokens that begin"
            " every row in this vocabulary: raise it"
        )
    parsed = parse_sources(sources)
    seen: set[int] = set()
    contents = [list(unique(read(source.name, config), seen)) for source in parsed]
    _check_split([document for documents in contents for document in documents], config.heldout)
    train: list[PackedTokens] = []
    heldout: list[PackedTokens] = []
    for source, documents in zip(parsed, contents, strict=True):
        key = _cache_key(source.name, documents, tokenizer, config.heldout)
        arrays = cached(cache_dir, key, partial(_tokenise, documents, tokenizer, config))
        for side, name in ((train, "train"), (heldout, "heldout")):
            side.append(PackedTokens(arrays[name], arrays[f"{name}_starts"], config.seq_len, tokenizer.prefix_ids))
        logger.info("%s: %d documents, %d training tokens", source.name, len(documents), len(train[-1].stream))
    weights = tuple(source.weight for source in parsed)
    together = join(heldout, config.seq_len)
    return Corpus(tuple(train), weights, together, _fingerprint([*train, together], weights), len(seen))


def unigram_counts(corpus: Corpus, vocab_size: int) -> Tensor:
    """How often each token is to be predicted in the training text, and once more, `(V,)` fp64."""
    counts = torch.ones(vocab_size, dtype=torch.float64)
    for packed in corpus.train:
        prefix = torch.tensor(packed.prefix, dtype=torch.long)  # which is never predicted
        counts -= torch.bincount(prefix, minlength=vocab_size) * len(packed.starts)
        for start in range(0, len(packed.stream), COUNTED):
            part = torch.from_numpy(packed.stream[start : start + COUNTED].astype("int64"))
            counts += torch.bincount(part, minlength=vocab_size)
    return counts


def _tokenise(documents: Sequence[Document], tokenizer: Tokenizer, config: PackingConfig) -> Arrays:
    """Streams and document starts of both sides of the split."""
    arrays: dict[str, NDArray[Any]] = {}
    for name, kept_out in (("train", False), ("heldout", True)):
        side = [document for document in documents if is_heldout(document, config.heldout) == kept_out]
        packed = pack(_token_lists(side, tokenizer), tokenizer.document_end, config.seq_len, tokenizer.prefix_ids)
        arrays |= {name: packed.stream, f"{name}_starts": packed.starts}
    return arrays


def _token_lists(documents: Sequence[Document], tokenizer: Tokenizer) -> Iterator[list[int]]:
    for start in range(0, len(documents), CHUNK):
        yield from tokenizer.encode_batch([document.text for document in documents[start : start + CHUNK]])


def _check_split(documents: Sequence[Document], fraction: float) -> None:
    """Raises UserError, with a fraction that would do, if either side of the split is empty."""
    ranks = sorted(map(heldout_rank, documents))
    held = sum(rank < fraction for rank in ranks)
    if 0 < held < len(ranks):
        return
    if len(ranks) == 1:
        raise UserError("1 document cannot be both trained on and held out: add another to --data")
    raise UserError(
        f"{held} of {len(ranks)} documents held out at --packing.heldout {fraction}, both sides need one: "
        f"--packing.heldout {(ranks[0] + ranks[1]) / 2:.6g} holds out exactly one, or add documents"
    )


def _cache_key(name: str, documents: Sequence[Document], tokenizer: Tokenizer, fraction: float) -> str:
    """Names what the arrays depend on: the texts in order, how they become tokens, the split. Not the row length."""
    content = blake2b(f"{name} {tokenizer.segmentation} {fraction!r}".encode(), digest_size=16)
    for document in documents:
        content.update(document.key.to_bytes(8, "big"))
    return content.hexdigest()


def _fingerprint(packed: Sequence[PackedTokens], weights: Sequence[float]) -> str:
    """A hash of what was packed and how often it is shown; where it came from plays no part."""
    content = blake2b(f"{packed[0].seq_len} {list(weights)}".encode(), digest_size=16)
    for part in packed:
        content.update((digest(part.stream) + digest(part.starts)).encode())
    return content.hexdigest()
