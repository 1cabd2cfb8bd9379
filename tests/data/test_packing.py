"""Packing against a specification that places one token at a time."""

from hashlib import blake2b
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tutelage.data.batch import IGNORE, Batch
from tutelage.data.packing import PackedTokens, join, pack
from tutelage.data.tokenizer import Tokenizer

EOS = 0
DOCUMENTS = st.lists(st.lists(st.integers(0, 40), max_size=12), min_size=1, max_size=8)
LENGTHS = st.integers(1, 9)
BOS = 50
PREFIXES = [(), (BOS,), (51, BOS)]


def everything(packed: PackedTokens) -> Batch:
    return packed.batch(np.arange(len(packed)))


def reference(documents: list[list[int]], seq_len: int, prefix: tuple[int, ...] = ()) -> dict[str, list[list[int]]]:
    """Every position one by one, as (document, token, target): what stands in the stream, and then the rows of it."""
    stream = []
    for number, document in enumerate(documents):
        tokens = [*prefix, *document, EOS]
        for index, token in enumerate(tokens):
            last, before = index + 1 == len(tokens), index + 1 < len(prefix)
            stream.append((number, token, IGNORE if last or before else tokens[index + 1], index < len(prefix)))
    result: dict[str, list[list[int]]] = {"tokens": [], "targets": [], "segments": [], "positions": []}
    for start in range(0, len(stream), seq_len - len(prefix)):
        rest = list(stream[start:])
        while rest[0][3]:  # the document's own prefix, which the row's stands for
            rest = rest[1:]
        number, first = rest[0][:2]
        begin = [(number, token, IGNORE, True) for token in prefix]
        if begin:
            begin[-1] = (number, prefix[-1], first, True)
        row = [*begin, *rest, *[(-1, EOS, IGNORE, False)] * seq_len][:seq_len]
        segments, positions = [0], [0]
        for before_, here in pairwise(row):
            new = before_[0] != here[0]
            segments.append(segments[-1] + new)
            positions.append(0 if new else positions[-1] + 1)
        result["tokens"].append([place[1] for place in row])
        result["targets"].append([place[2] for place in row])
        result["segments"].append(segments)
        result["positions"].append(positions)
    return result


@given(DOCUMENTS, LENGTHS, st.sampled_from(PREFIXES))
def test_rows_equal_the_specification(documents: list[list[int]], seq_len: int, prefix: tuple[int, ...]) -> None:
    length = seq_len + len(prefix)
    batch, expected = everything(pack(documents, EOS, length, prefix)), reference(documents, length, prefix)
    for name, rows in expected.items():
        assert getattr(batch, name).dtype == torch.int64
        assert getattr(batch, name).tolist() == rows, name


@given(DOCUMENTS, LENGTHS, st.sampled_from(PREFIXES[1:]))
def test_every_piece_begins_with_the_prefix_which_is_no_target(
    documents: list[list[int]], seq_len: int, prefix: tuple[int, ...]
) -> None:
    batch = everything(pack(documents, EOS, seq_len + 2 * len(prefix), prefix))
    assert not set(batch.targets.flatten().tolist()) & set(prefix)
    for tokens, segments, targets in zip(
        *(x.tolist() for x in (batch.tokens, batch.segments, batch.targets)), strict=True
    ):
        for segment in set(segments):
            here = [place for place, other in enumerate(segments) if other == segment]
            piece = [tokens[place] for place in here]
            if any(targets[place] != IGNORE for place in here):  # not the padding, nor a prefix cut short
                assert piece[: len(prefix)] == list(prefix)[: len(piece)]
            for place in here[:-1]:
                assert targets[place] in (IGNORE, tokens[place + 1])


@given(DOCUMENTS, LENGTHS)
def test_every_token_is_an_input_once_and_a_target_once(documents: list[list[int]], seq_len: int) -> None:
    packed = pack(documents, EOS, seq_len)
    batch = everything(packed)
    flat = [token for document in documents for token in [*document, EOS]]
    assert batch.tokens.flatten()[: len(flat)].tolist() == flat
    # The first token of a document has nothing before it; every other one is predicted exactly once.
    predicted = [token for document in documents for token in [*document, EOS][1:]]
    assert batch.targets[batch.targets != IGNORE].tolist() == predicted


@given(DOCUMENTS, LENGTHS)
def test_with_a_prefix_every_token_is_a_target(documents: list[list[int]], seq_len: int) -> None:
    """And one at which a row begins is it twice, after the row before and after the prefix."""
    batch = everything(pack(documents, EOS, seq_len + 1, (BOS,)))
    predicted = batch.targets[batch.targets != IGNORE].tolist()
    flat = [token for document in documents for token in [*document, EOS]]
    assert len(flat) <= len(predicted) <= len(flat) + 2 * len(batch.tokens)
    places = iter(predicted)
    assert all(token in places for token in flat)  # in this order, others between them


@given(DOCUMENTS, LENGTHS, st.data())
def test_a_row_does_not_depend_on_the_rows_beside_it(
    documents: list[list[int]], seq_len: int, data: st.DataObject
) -> None:
    packed = pack(documents, EOS, seq_len + 1, data.draw(st.sampled_from([(), (BOS,)])))
    chosen = data.draw(st.lists(st.integers(0, len(packed) - 1), min_size=1, max_size=5))
    batch, whole = packed.batch(np.array(chosen)), everything(packed)
    for name in ("tokens", "targets", "segments", "positions", "keys"):
        assert torch.equal(getattr(batch, name), getattr(whole, name)[chosen])


def test_keys_follow_tokens_and_segments() -> None:
    one = everything(pack([[1, 2, 3], [1, 2, 3]], EOS, 4))
    assert one.keys[0] == one.keys[1]
    assert one.keys.shape == (2,)
    # The same tokens with another boundary: [1 0] [2] and [1 0 2].
    split, whole = everything(pack([[1], [2]], EOS, 4)), everything(pack([[1, EOS, 2]], EOS, 4))
    assert split.tokens.tolist() == whole.tokens.tolist()
    assert split.keys[0] != whole.keys[0]


def test_keys_are_the_same_on_every_machine() -> None:
    row = [1, 2, 3, EOS, 0, 0, 0, 0]  # tokens, then segments, as little-endian int64
    digest = blake2b(b"".join(n.to_bytes(8, "little") for n in row), digest_size=8).digest()
    expected = int.from_bytes(digest, "little", signed=True)
    assert everything(pack([[1, 2, 3]], EOS, 4)).keys.tolist() == [expected]


def test_little_is_wasted_on_real_documents(tokenizer: Tokenizer, library_texts: list[str]) -> None:
    batch = everything(pack(tokenizer.encode_batch(library_texts), tokenizer.document_end, 128))
    assert batch.count > 0.98 * batch.tokens.numel()


@given(st.lists(DOCUMENTS, min_size=1, max_size=3), LENGTHS)
def test_join_is_packing_all_documents_at_once(parts: list[list[list[int]]], seq_len: int) -> None:
    joined = join([pack(part, EOS, seq_len + 1, (BOS,)) for part in parts], seq_len + 1)
    together = pack([document for part in parts for document in part], EOS, seq_len + 1, (BOS,))
    assert joined.prefix == together.prefix
    assert np.array_equal(joined.stream, together.stream)
    assert np.array_equal(joined.starts, together.starts)
    assert joined.stream.dtype == np.int32
    assert joined.starts.dtype == np.int64


def test_nothing_packs_to_no_rows_and_rows_are_checked() -> None:
    empty = pack([], EOS, 4)
    assert len(empty) == 0
    with pytest.raises(AssertionError, match="out of range"):
        pack([[1]], EOS, 4).batch(np.array([1]))
