import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tutelage.data import corpus as module
from tutelage.data.array_cache import Arrays
from tutelage.data.config import PackingConfig
from tutelage.data.corpus import build_corpus
from tutelage.data.documents import Document, is_heldout
from tutelage.data.packing import PackedTokens
from tutelage.data.tokenizer import Tokenizer, train
from tutelage.errors import UserError

CONFIG = PackingConfig(seq_len=16, heldout=0.2)


def write(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"code": text}) + "\n" for text in texts))
    return str(path)


@pytest.fixture
def texts() -> list[str]:
    return [f"def f_{n}(x):\n    return x + {n}\n" for n in range(600)]  # more than one chunk


def decoded(packed: PackedTokens, tokenizer: Tokenizer) -> list[str]:
    pieces = np.split(packed.stream, packed.starts[1:])
    return [tokenizer.decode(piece[:-1].tolist()) for piece in pieces]


def test_every_document_is_on_its_side_once_in_order(tmp_path: Path, tokenizer: Tokenizer, texts: list[str]) -> None:
    path = write(tmp_path / "x.jsonl", [*texts, texts[0]])
    corpus = build_corpus(path, tokenizer, CONFIG, None)
    assert corpus.documents == len(texts)  # the duplicate is gone
    held = [text for text in texts if is_heldout(Document(text, ""), 0.2)]
    assert decoded(corpus.heldout, tokenizer) == held
    assert decoded(corpus.train[0], tokenizer) == [text for text in texts if text not in held]


def test_sources_keep_their_weights_and_share_one_heldout(
    tmp_path: Path, tokenizer: Tokenizer, texts: list[str]
) -> None:
    one, two = write(tmp_path / "1.jsonl", texts[:200]), write(tmp_path / "2.jsonl", texts[150:])
    corpus = build_corpus(f"{one}=2,{two}=0.5", tokenizer, CONFIG, None)
    assert corpus.weights == (2.0, 0.5)
    trained = [decoded(packed, tokenizer) for packed in corpus.train]
    held = decoded(corpus.heldout, tokenizer)
    assert sorted(sum(trained, held)) == sorted(texts)  # what both files hold belongs to the first


def test_the_cache_is_found_again_and_follows_content(
    tmp_path: Path, tokenizer: Tokenizer, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[Arrays] = []
    tokenise = module._tokenise

    def counted(*arguments: Any) -> Arrays:
        built.append(tokenise(*arguments))
        return built[-1]

    monkeypatch.setattr(module, "_tokenise", counted)
    path, cache = write(tmp_path / "x.jsonl", texts), tmp_path / "cache"
    first = build_corpus(path, tokenizer, CONFIG, cache)
    second = build_corpus(path, tokenizer, CONFIG, cache)
    assert len(built) == 1
    assert first.fingerprint == second.fingerprint
    assert np.array_equal(first.train[0].stream, second.train[0].stream)
    longer = build_corpus(path, tokenizer, PackingConfig(seq_len=32, heldout=0.2), cache)
    assert len(built) == 1  # row length is a view of the same stream
    assert longer.fingerprint != first.fingerprint
    write(tmp_path / "x.jsonl", [*texts[:-1], "changed = 1\n"])
    assert build_corpus(path, tokenizer, CONFIG, cache).fingerprint != first.fingerprint
    build_corpus(path, tokenizer, PackingConfig(seq_len=16, heldout=0.3), cache)
    assert len(built) == 3


def test_another_vocabulary_does_not_find_the_cache(tmp_path: Path, tokenizer: Tokenizer, texts: list[str]) -> None:
    path, cache = write(tmp_path / "x.jsonl", texts), tmp_path / "cache"
    build_corpus(path, tokenizer, CONFIG, cache)
    other = train(texts, 264)
    corpus = build_corpus(path, other, CONFIG, cache)
    assert decoded(corpus.heldout, other) == [t for t in texts if is_heldout(Document(t, ""), 0.2)]


def test_fingerprint_follows_weights_but_not_paths(tmp_path: Path, tokenizer: Tokenizer, texts: list[str]) -> None:
    here, there = write(tmp_path / "a.jsonl", texts), write(tmp_path / "b.jsonl", texts)
    prints = [build_corpus(s, tokenizer, CONFIG, None).fingerprint for s in (here, there, f"{here}=2")]
    assert prints[0] == prints[1] != prints[2]


def test_an_empty_side_names_a_fraction_that_works(tmp_path: Path, tokenizer: Tokenizer) -> None:
    texts = [text for n in range(99) if not is_heldout(Document(text := f"x = {n}", ""), 0.02)][:20]
    path = write(tmp_path / "x.jsonl", texts)
    with pytest.raises(UserError, match=r"0 of 20 documents held out.*--packing\.heldout") as caught:
        build_corpus(path, tokenizer, PackingConfig(seq_len=8), None)
    advice = float(str(caught.value).rsplit("--packing.heldout ", 1)[1].split()[0])
    corpus = build_corpus(path, tokenizer, PackingConfig(seq_len=8, heldout=advice), None)
    assert len(corpus.heldout.starts) == 1
    with pytest.raises(UserError, match=r"2 of 2 documents held out"):
        build_corpus(write(tmp_path / "y.jsonl", texts[:2]), tokenizer, PackingConfig(heldout=0.9999999), None)


def test_one_document_is_not_enough(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "x.txt").write_text("x = 1")
    with pytest.raises(UserError, match="1 document cannot be both trained on and held out"):
        build_corpus(str(tmp_path / "x.txt"), tokenizer, CONFIG, None)
