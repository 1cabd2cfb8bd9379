"""The tokenizer that a .gguf file describes: compared with tokenizers written down in full, as their makers do."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, normalizers, pre_tokenizers

from tests.teacher.write_gguf import tokenizer_metadata
from tutelage.data.tokenizer import Tokenizer
from tutelage.errors import UserError
from tutelage.teacher.gguf_file import GgufFile
from tutelage.teacher.gguf_tokenizer import COMPOSED, SPLITS, tokenizer_of

NASTY = (
    "def größe(x=1234):\n\tv2    99\r\n        return {'a': 0x1F}  # it's 数 🙂½\n\n\n"
    '  y\u0301 = "q\\t"  HTTPServer\n '
)


def a_file(metadata: dict[str, Any], **more: Any) -> GgufFile:
    named = {f"tokenizer.ggml.{key}": value for key, value in more.items()}
    return GgufFile(Path("x.gguf"), {"general.architecture": "llama", **metadata, **named}, {})


@pytest.fixture
def described(tokenizer: Tokenizer) -> dict[str, Any]:
    return tokenizer_metadata(tokenizer)


def test_digits_one_by_one_are_those_of_the_tokenizers_own_file(
    tokenizer: Tokenizer, described: dict[str, Any]
) -> None:
    found = tokenizer_of(a_file(described))
    for text in (NASTY, "x = [\n        1234,\n    5]", "v2    99", "1234567890", " 12", "<|endoftext|>"):
        assert found.encode(text) == tokenizer.encode(text)
        assert found.encode_prompt(text) == tokenizer.encode_prompt(text)
    assert found.fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize("pre", SPLITS)
def test_every_way_to_split_keeps_every_character(pre: str, described: dict[str, Any]) -> None:
    found = tokenizer_of(a_file(described, pre=pre))
    composed = normalizers.NFC().normalize_str(NASTY)
    assert found.decode(found.encode(NASTY)) == (composed if pre in COMPOSED else NASTY)


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        ("smollm", "a  12", ["a", "  ", "1", "2"]),
        ("gpt-2", "a  12 it's", ["a", " ", " 12", " it", "'s"]),
        ("llama-bpe", "a 12345 IT'S\n\n", ["a", " ", "123", "45", " IT", "'S", "\n\n"]),
        ("qwen2", "a 12 x\n\n y", ["a", " ", "1", "2", " x", "\n\n", " y"]),
        ("deepseek-coder", "a 12\n(x)", ["a", " ", "1", "2", "\n", "(", "x", ")"]),
        ("deepseek-v3", "a 12345\n(x)", ["a", " ", "123", "45", "\n", "(x", ")"]),
        ("tekken", "HTTPServer 12", ["HTTPServer", " ", "1", "2"]),
        ("gpt-4o", "myHTTP it's 1234", ["my", "HTTP", " it's", " ", "123", "4"]),
        ("falcon", "a==12345", ["a", "==", "123", "45"]),
        ("default", "a==12345 6", ["a", "==", "123", "45", " ", "6"]),
        ("seed-coder", "a(12)\n", ["a", "(", "1", "2", ")", "\n"]),
    ],
)
def test_pieces_are_those_of_llama_cpp(pre: str, text: str, pieces: list[str], described: dict[str, Any]) -> None:
    backend = tokenizer_of(a_file(described, pre=pre))._prompts
    found = backend.pre_tokenizer.pre_tokenize_str(text)
    assert [text[begin:end] for _, (begin, end) in found] == pieces


def test_a_word_that_is_a_token_is_one_where_the_makers_say_so(described: dict[str, Any]) -> None:
    tokens = [*described["tokenizer.ggml.tokens"], "zq"]
    kinds = [*described["tokenizer.ggml.token_type"], 1]
    for pre, whole in (("llama-bpe", True), ("qwen2", False)):
        found = tokenizer_of(a_file(described, pre=pre, tokens=tokens, token_type=kinds))
        assert (found.encode("zq") == [len(tokens) - 1]) == whole


@pytest.mark.parametrize("pre", ["nobody-knows", None])
def test_an_unknown_way_to_split_is_refused_by_name(pre: str | None, described: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"pre-tokenizer {pre} is not known here, but .*smollm"):
        tokenizer_of(a_file(described, pre=pre))


@pytest.mark.parametrize("kind", ["bert", "t5", None])
def test_an_unknown_kind_is_refused_by_name(kind: str | None, described: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"kind {kind}"):
        tokenizer_of(a_file(described, model=kind))


def test_what_stands_before_and_what_ends_a_text(described: dict[str, Any]) -> None:
    kinds = [3 if id < 4 else kind for id, kind in enumerate(described["tokenizer.ggml.token_type"])]
    said = {"token_type": kinds, "bos_token_id": 2, "eos_token_id": 1, "eot_token_id": 3}
    found = tokenizer_of(a_file(described, add_bos_token=True, **said))
    assert (found.prefix_ids, found.end_ids, found.document_end) == ((2,), {0, 1, 3}, 0)
    assert found.encode_prompt("x")[0] == 2
    assert tokenizer_of(a_file(described, add_bos_token=False, **said)).prefix_ids == ()
    assert tokenizer_of(a_file(described, **said)).prefix_ids == ()
    assert tokenizer_of(a_file(described, pre="llama-bpe", **said)).prefix_ids == (2,)
    with pytest.raises(UserError, match="names no end-of-text token"):
        tokenizer_of(a_file(described, eos_token_id=None))


def test_tokens_that_only_fill_up_the_matrix_are_none(described: dict[str, Any], tokenizer: Tokenizer) -> None:
    tokens = [*described["tokenizer.ggml.tokens"], "[PAD600]", "[PAD601]"]
    kinds = [*described["tokenizer.ggml.token_type"], 5, 5]
    assert tokenizer_of(a_file(described, tokens=tokens, token_type=kinds)).fingerprint == tokenizer.fingerprint


def test_a_template_of_ours_goes_before_the_files_own(described: dict[str, Any]) -> None:
    own = {**described, "tokenizer.chat_template": "theirs"}
    assert tokenizer_of(a_file(own)).chat_template == "theirs"
    assert tokenizer_of(a_file(own), "ours").chat_template == "ours"


def sentencepiece(**more: Any) -> dict[str, Any]:
    """A vocabulary like Gemma's: letters, words, runs of spaces and lines, and a byte for each that has no letter."""
    words = ["▁", *"abcdefr:\n", "▁a", "de", "def", "▁b", "ab"]
    users = ["\n\n", "  ", "   ", "    "]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words, *users]
    kinds = [2, 3, 3, *[6] * 256, *[1] * len(words), *[4] * len(users)]
    scores = [0.0] * 259 + [-float(at) for at in range(len(words) + len(users))]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        **{f"tokenizer.ggml.{key}": value for key, value in more.items()},
    }


@pytest.mark.parametrize(
    ("text", "spaced", "pieces"),
    [
        ("def a", False, ["def", "▁a"]),
        ("def a", True, ["▁", "def", "▁a"]),
        (" def", True, ["▁", "▁", "def"]),
        ("      b", False, ["    ", "  ", "b"]),  # the longest run first, as SentencePiece matches what users define
        ("     b", False, ["    ", "▁b"]),
        ("a:\n\n\n   b", False, ["a", ":", "\n\n", "\n", "   ", "b"]),
        ("é", False, ["<0xC3>", "<0xA9>"]),
        ("<s>", False, ["<0x3C>", "<0x73>", "<0x3E>"]),
    ],
)
def test_sentencepiece_puts_together_what_scores_highest(text: str, spaced: bool, pieces: list[str]) -> None:
    found = tokenizer_of(a_file(sentencepiece(add_space_prefix=spaced)))
    ids = found.encode(text)
    assert [found._prompts.id_to_token(id) for id in ids] == pieces
    assert found.decode(ids, skip_special=False) == " " * spaced + text
    assert found.prefix_ids == (1,)  # nothing is said, and SentencePiece's have one


def test_sentencepiece_is_that_of_a_file_written_in_full() -> None:
    described = sentencepiece(add_space_prefix=True)
    tokens = described["tokenizer.ggml.tokens"]
    full = Backend(
        models.BPE(
            vocab={text: id for id, text in enumerate(tokens)},
            merges=[("▁", "a"), ("d", "e"), ("de", "f"), ("▁", "b"), ("a", "b")],
            unk_token="<unk>", fuse_unk=True, byte_fallback=True,
        )
    )  # fmt: skip
    full.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    found = tokenizer_of(a_file(described))
    for text in ("def abab: a b", "badef", "x y"):
        assert found.encode(text) == full.encode(text).ids


def test_scores_are_needed() -> None:
    with pytest.raises(UserError, match="no scores"):
        tokenizer_of(a_file(sentencepiece(scores=None)))


def test_it_is_saved_and_read_whole(tmp_path: Path) -> None:
    found = tokenizer_of(a_file(sentencepiece()))
    found.save(tmp_path)
    again = Tokenizer.from_directory(tmp_path)
    assert json.loads(again._prompts.to_str())["model"] == json.loads(found._prompts.to_str())["model"]
    assert (again.prefix_ids, again.document_end, again.end_ids) == (found.prefix_ids, 2, {2})
    assert again.encode("def    a\n\nb") == found.encode("def    a\n\nb")
