"""Tokenizers as people publish them: what the file says, and where texts begin and end."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from tutelage.data.tokenizer import EOS, Tokenizer
from tutelage.errors import UserError

NASTY = (
    "x = [\n        1234,\n    5]", "v2    99", "\tif a:\r\n\t\tb  =  'ü → 🙂'\n",
    "<s></s><|endoftext|> [PAD] <|im_end|>",
    "", " ", "\n\n\n", "1234567890 2024-01-01", "\x00\x0c\ufeff", "def f(self):\n    return self.x[10:20]  # 1,000\n",
)  # fmt: skip
CLASSES = ("GPT2Tokenizer", "Qwen2Tokenizer", "LlamaTokenizer", "LlamaTokenizerFast", "CodeLlamaTokenizer",
           "GemmaTokenizer", "CohereTokenizer", "GPTNeoXTokenizer", "CodeGenTokenizer", "BloomTokenizer",
           "PreTrainedTokenizerFast", "TokenizersBackend", "NobodysTokenizer")  # fmt: skip


def edit(path: Path, **changes: object) -> None:
    config = (json.loads(path.read_text()) if path.is_file() else {}) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


@pytest.fixture
def byte_level(tokenizer: Tokenizer, tmp_path: Path) -> Path:
    """Digits one by one, byte level: a folder as others would publish it."""
    tokenizer._prompts.save(str(tmp_path / "tokenizer.json"))
    edit(tmp_path / "tokenizer_config.json", tokenizer_class="GPT2Tokenizer", eos_token=EOS)
    return tmp_path


@pytest.fixture(scope="session")
def words(library_texts: list[str]) -> Backend:
    """A vocabulary of SentencePiece's kind: ▁ for a space, one more before a text, bytes where nothing else is."""
    backend = Backend(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    backend.train_from_iterator([text[:3000] for text in library_texts], trainer)
    spec = json.loads(backend.to_str())
    vocabulary = spec["model"]["vocab"]
    for byte in range(256):
        vocabulary.setdefault(f"<0x{byte:02X}>", len(vocabulary))
    backend = Backend.from_str(json.dumps(spec))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    return backend


@pytest.fixture
def sentencepiece(words: Backend, tmp_path: Path) -> Callable[..., Path]:
    """A folder with that vocabulary; `template` is whether its file puts <s> before a text."""

    def write(template: bool = True, **config: Any) -> Path:
        backend = Backend.from_str(words.to_str())
        if template:
            backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
        backend.save(str(tmp_path / "tokenizer.json"))
        known = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        edit(tmp_path / "tokenizer_config.json", **known, **config)
        return tmp_path

    return write


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
def test_ids_are_those_of_the_file_whatever_class_is_named(
    name: str, kind: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(kind)
    folder = folder() if callable(folder) else folder
    edit(folder / "tokenizer_config.json", tokenizer_class=name)
    ours = Tokenizer.from_directory(folder)
    documents, prompts = (Backend.from_file(str(folder / "tokenizer.json")) for _ in range(2))
    documents.encode_special_tokens = True
    for text in NASTY:
        assert ours.encode(text) == documents.encode(text, add_special_tokens=False).ids
        expected = prompts.encode(text, add_special_tokens=False).ids
        begun = expected[: len(ours.prefix_ids)] == list(ours.prefix_ids)
        assert ours.encode_prompt(text) == [*(() if begun else ours.prefix_ids), *expected]
    assert ours.encode_batch(NASTY) == [ours.encode(text) for text in NASTY]


@pytest.mark.parametrize(
    ("template", "add_bos", "bos", "prefix"),
    [
        (True, None, "<s>", (1,)),
        (False, None, "<s>", ()),  # named and not used
        (True, False, "<s>", ()),  # where they disagree, the configuration is right
        (False, True, "<s>", (1,)),
        (False, True, None, ()),
    ],
)
def test_what_stands_before_a_text(
    template: bool, add_bos: bool | None, bos: str | None, prefix: tuple[int, ...], sentencepiece: Callable[..., Path]
) -> None:
    folder = sentencepiece(template, add_bos_token=add_bos)
    edit(folder / "tokenizer_config.json", bos_token=bos)
    tokenizer = Tokenizer.from_directory(folder)
    assert tokenizer.prefix_ids == prefix
    assert tokenizer.rule == (2 if prefix else 1)
    for prompt in ("def f", "<s>def f"):
        assert tokenizer.encode_prompt(prompt).count(1) == max(len(prefix), prompt.count("<s>"))
    assert 1 not in tokenizer.encode("<s>def f")


def test_a_saved_one_does_in_transformers_what_it_does_here(sentencepiece: Callable[..., Path], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    for add_bos in (True, False):
        tokenizer = Tokenizer.from_directory(sentencepiece(add_bos_token=add_bos))
        tokenizer.save(tmp_path / f"saved {add_bos}")
        theirs = AutoTokenizer.from_pretrained(str(tmp_path / f"saved {add_bos}"))
        assert theirs("def f(x):\n    return x").input_ids == tokenizer.encode_prompt("def f(x):\n    return x")
        for back in (Tokenizer.saved, Tokenizer.from_directory):
            again = back(tmp_path / f"saved {add_bos}")
            for name in ("prefix_ids", "document_end", "end_ids", "rule", "fingerprint"):
                assert getattr(again, name) == getattr(tokenizer, name), name


def test_one_saved_before_texts_had_a_beginning_has_none(sentencepiece: Callable[..., Path]) -> None:
    old = Tokenizer.saved(sentencepiece())
    assert (old.prefix_ids, old.document_end, old.end_ids, old.rule) == ((), 2, {2}, 1)


@pytest.mark.parametrize(
    ("eos", "added", "expected"),
    [
        ("<|im_end|>", [EOS, "<|im_end|>"], EOS),  # an instruct model that has both
        (EOS, [EOS, "<|im_end|>"], EOS),
        ("<|eot_id|>", ["<|end_of_text|>", "<|eot_id|>"], "<|end_of_text|>"),
        ("</s>", ["</s>", EOS], "</s>"),  # a separator itself
        ("<|end|>", ["<|end|>"], "</s>"),
        ("!", [], "</s>"),
    ],
)
def test_documents_end_with_the_separator_of_pre_training(
    eos: str, added: list[str], expected: str, words: Backend, tmp_path: Path
) -> None:
    backend = Backend.from_str(words.to_str())
    backend.add_special_tokens(added)
    backend.save(str(tmp_path / "tokenizer.json"))
    edit(tmp_path / "tokenizer_config.json", eos_token=eos)
    tokenizer = Tokenizer.from_directory(tmp_path)
    assert tokenizer.document_end == backend.token_to_id(expected)
    assert tokenizer.end_ids == {backend.token_to_id(eos), backend.token_to_id(expected)}


def test_without_any_separator_documents_end_with_the_end_of_text(words: Backend) -> None:
    spec = json.loads(words.to_str()) | {"added_tokens": []}
    tokenizer = Tokenizer(Backend.from_str(json.dumps(spec)), {"eos_token": "!"})
    assert tokenizer.document_end == tokenizer.eos_id == words.token_to_id("!")


def test_generation_ends_where_the_generation_configuration_says(byte_level: Path) -> None:
    edit(byte_level / "config.json", eos_token_id=9)
    assert Tokenizer.from_directory(byte_level).end_ids == {0, 9}  # as transformers has it, without the other file
    edit(byte_level / "generation_config.json", eos_token_id=[0, 7, 10_000])
    assert Tokenizer.from_directory(byte_level).end_ids == {0, 7}


def test_what_stands_beside_a_tokenizer_of_ours_is_read_too(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    edit(tmp_path / "generation_config.json", eos_token_id=[0, 7])
    edit(tmp_path / "tokenizer_config.json", bos_token="!", add_bos_token=True)
    read = Tokenizer.from_directory(tmp_path)
    assert (read.end_ids, read.prefix_ids) == ({0, 7}, (read.encode("!")[0],))


def test_special_tokens_that_only_other_files_name(byte_level: Path) -> None:
    (byte_level / "tokenizer_config.json").unlink()  # as GPT-2's, whose class knows them
    with pytest.raises(UserError, match="names no end-of-text token"):
        Tokenizer.from_directory(byte_level)
    edit(byte_level / "config.json", eos_token_id=0)
    assert Tokenizer.from_directory(byte_level).specials == {"eos_token": EOS}
    edit(byte_level / "special_tokens_map.json", eos_token={"content": "!"})
    assert Tokenizer.from_directory(byte_level).eos_id == Tokenizer.from_directory(byte_level).encode("!")[0]


def test_the_first_space_of_a_continuation_is_kept(sentencepiece: Callable[..., Path]) -> None:
    tokenizer = Tokenizer.from_directory(sentencepiece())
    head, whole = (tokenizer.encode_prompt(text) for text in ("def f():\n", "def f():\n    return 1\n"))
    assert whole[: len(head)] == head
    assert tokenizer.decode(whole[len(head) :]) == "    return 1\n"


def test_added_tokens_beyond_the_head_are_no_tokens(byte_level: Path) -> None:
    backend = Backend.from_file(str(byte_level / "tokenizer.json"))
    backend.add_special_tokens(["<FILL_ME>"])
    backend.add_tokens(["[PAD]"])
    backend.save(str(byte_level / "tokenizer.json"))
    edit(byte_level / "generation_config.json", eos_token_id=[0, 601])
    tokenizer = Tokenizer.from_directory(byte_level)
    assert tokenizer.vocab_size == 602
    assert max(tokenizer.encode("[PAD]")) == 601
    cut = tokenizer.within(600, "mine")
    assert (cut.vocab_size, cut.end_ids) == (600, {0})
    for text in (*NASTY, "[PAD]<FILL_ME>"):
        assert max([*cut.encode(text), *cut.encode_prompt(text), 0]) < 600
        assert cut.decode(cut.encode(text)) == text
    assert tokenizer.within(640, "mine") is tokenizer


@pytest.mark.parametrize("rows", [500, 599])
def test_a_head_without_ids_that_occur_in_text_is_refused(rows: int, byte_level: Path) -> None:
    with pytest.raises(UserError, match=rf"^teacher mine: its head scores {rows} tokens, its tokenizer knows 600.*"):
        Tokenizer.from_directory(byte_level).within(rows, "mine")


def test_a_head_without_the_end_of_text_is_refused(byte_level: Path) -> None:
    backend = Backend.from_file(str(byte_level / "tokenizer.json"))
    backend.add_special_tokens(["<end>"])
    backend.save(str(byte_level / "tokenizer.json"))
    edit(byte_level / "tokenizer_config.json", eos_token="<end>")
    with pytest.raises(UserError, match="the end-of-text beyond the head"):
        Tokenizer.from_directory(byte_level).within(600, "mine")


def by_words(backend: Backend) -> None:
    backend.pre_tokenizer = pre_tokenizers.Whitespace()


def lower(backend: Backend) -> None:
    backend.normalizer = normalizers.Lowercase()


def without_bytes(backend: Backend) -> None:
    spec = json.loads(backend.to_str())
    spec["model"]["byte_fallback"] = False
    backend.model = Backend.from_str(json.dumps(spec)).model


@pytest.mark.parametrize("change", [by_words, lower, without_bytes])
def test_a_vocabulary_that_cannot_spell_code_is_refused_with_what_is_lost(
    change: Callable[[Backend], None], words: Backend
) -> None:
    backend = Backend.from_str(words.to_str())
    Tokenizer(backend, {"eos_token": "</s>"}).check_spelling("mine")
    change(backend)
    with pytest.raises(UserError, match=r"^teacher mine: its vocabulary cannot spell code: '.*' becomes '"):
        Tokenizer(backend, {"eos_token": "</s>"}).check_spelling("mine")


def test_a_file_of_a_newer_library_is_named(byte_level: Path) -> None:
    path = byte_level / "tokenizer.json"
    whole = path.read_text()
    changes = [("model", "SuperBPE"), ("pre_tokenizer", "Nope")]
    for part, kind in changes:
        spec = json.loads(whole)
        spec[part]["type"] = kind
        path.write_text(json.dumps(spec))
        with pytest.raises(UserError, match=r"tokenizer\.json is not a tokenizer .*newer version"):
            Tokenizer.from_directory(byte_level)
    path.write_text(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"tokenizer\.json is not a tokenizer .*damaged"):
        Tokenizer.from_directory(byte_level)


@pytest.mark.parametrize("change", ["merges", "normalizer", "pre_tokenizer", "prefix", "document_end"])
def test_whatever_segments_is_part_of_the_caches_name(change: str, tokenizer: Tokenizer) -> None:
    spec = json.loads(tokenizer._prompts.to_str())
    more: dict[str, Any] = {}
    if change == "merges":
        spec["model"]["merges"] = spec["model"]["merges"][:-1]
    elif change == "normalizer":
        spec["normalizer"] = {"type": "NFC"}
    elif change == "pre_tokenizer":
        spec["pre_tokenizer"]["pretokenizers"].pop(0)
    else:
        more = {"prefix": {"prefix_ids": (5,)}, "document_end": {"document_end": 5}}[change]
    other = Tokenizer(Backend.from_str(json.dumps(spec)), tokenizer.specials, None, **more)
    assert other.segmentation != tokenizer.segmentation
    assert other.fingerprint == tokenizer.fingerprint  # ids mean the same text
