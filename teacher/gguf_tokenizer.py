"""The tokenizer inside a `.gguf` file, which names its pre-tokenizer and leaves it to the reader.

The names are llama.cpp's, and so is what each means (src/llama-vocab.cpp); a text is split as there. Where the models
of a name normalise their text besides, which llama.cpp does not, so do we.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from tutelage.data.tokenizer import Tokenizer
from tutelage.errors import UserError
from tutelage.teacher.gguf_file import GgufFile

NORMAL, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 3, 4, 5, 6
"""Kinds of tokens."""

END_TOKENS = ("eos_token_id", "eot_token_id", "eom_token_id")
"""Names of the tokens that end a generation."""

DIGIT, NUMBER, TRIPLE = r"\p{N}", r"\p{N}+", r"\p{N}{1,3}"
_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS, _LINES = r" ?[^\s\p{L}\p{N}]+[\r\n]*", r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CAMEL = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s"
_SIGNS_OR_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
LLAMA3 = rf"{_SUFFIX}|{_WORD}|{TRIPLE}|{_SIGNS}|{_LINES}"
QWEN2 = rf"{_SUFFIX}|{_WORD}|{DIGIT}|{_SIGNS}|{_LINES}"
QWEN35 = rf"{_SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|{DIGIT}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_LINES}"
SEED_CODER = rf"{_SUFFIX}|{_WORD}|{DIGIT}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_LINES}"
TEKKEN = rf"{_CAMEL % ('', '')}|{DIGIT}|{_SIGNS_OR_SLASH}|{_LINES}"
GPT4O = rf"{_CAMEL % (f'{_SUFFIX}?', f'{_SUFFIX}?')}|{TRIPLE}|{_SIGNS_OR_SLASH}|{_LINES}"
DEEPSEEK3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_LINES}"
)
GPT2 = None
"""The splitting that byte-level vocabularies bring along."""

SPLITS: dict[str, tuple[str | None, ...]] = {
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "mellum"), (GPT2,)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "mellum2"), (DIGIT, GPT2)),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "lfm2"), (LLAMA3,)),
    **dict.fromkeys(("dbrx", "smaug-bpe"), (LLAMA3,)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2"), (QWEN2,)),
    "qwen35": (QWEN35,),
    "seed-coder": (SEED_CODER,),
    "tekken": (TEKKEN,),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2"), (GPT4O,)),
    "deepseek-coder": (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", DIGIT),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense"), (TRIPLE, "[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK3)),
    "falcon": (r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"),
    "default": (r"[\p{P}\$\+<=>\^~\|]+", GPT2, NUMBER, "[0-9][0-9][0-9]"),
}
"""What a text is split by, one after another, and each piece by what follows; between the matches too."""

WHOLE_WORDS = {"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "lfm2", "tekken"}
"""A word that is a token is not put together from others."""
BEGIN_WITH_BOS = WHOLE_WORDS
"""Where nothing is said of it."""
COMPOSED = {"qwen2", "qwen35", "stablelm2", "command-r", "olmo"}
"""Text is put into Unicode's composed form first."""


def tokenizer_of(file: GgufFile, chat_template: str | None = None) -> Tokenizer:
    """The tokenizer, with `chat_template` for its own where one is given.

    Raises UserError where its kind or its pre-tokenizer is not known here.
    """
    kind, tokens = file.of_tokenizer("model"), file.of_tokenizer("tokens")
    if kind not in _BUILDERS or not tokens:
        raise UserError(f"{file.path}: tokenizers of kind {kind} are not read, but {' and '.join(_BUILDERS)}")
    backend = _BUILDERS[kind](file)
    kinds = file.of_tokenizer("token_type") or [NORMAL] * len(tokens)
    for sort, special in ((CONTROL, True), (USER_DEFINED, False)):
        texts = [text for text, this in zip(tokens, kinds, strict=True) if this == sort and text]
        backend.add_tokens([AddedToken(text, special=special, normalized=False) for text in texts])
    names = {"eos": "eos", "bos": "bos", "pad": "padding", "unk": "unknown"}
    ids = {name: file.of_tokenizer(f"{key}_token_id") for name, key in names.items()}
    specials = {f"{name}_token": tokens[id] for name, id in ids.items() if id is not None and id < len(tokens)}
    if "eos_token" not in specials:
        raise UserError(f"{file.path} names no end-of-text token")
    pre = file.of_tokenizer("pre")
    adds = file.of_tokenizer("add_bos_token")
    begins = adds if adds is not None else kind == "llama" or pre in BEGIN_WITH_BOS
    prefix = (ids["bos"],) if begins and ids["bos"] is not None else ()
    template = chat_template or file.metadata.get("tokenizer.chat_template")
    ends = [id for name in END_TOKENS if (id := file.of_tokenizer(name)) is not None]
    return Tokenizer(backend, specials, template, prefix_ids=prefix, end_ids=ends)


def _byte_level(file: GgufFile) -> Backend:
    """Byte-level BPE, whose merges the file lists."""
    pre = file.of_tokenizer("pre")
    if pre not in SPLITS:
        raise UserError(f"{file.path}: its pre-tokenizer {pre} is not known here, but {', '.join(sorted(SPLITS))}")
    merges = [tuple(merge.split(" ")) for merge in file.of_tokenizer("merges") or ()]
    backend = Backend(models.BPE(vocab=_vocabulary(file), merges=merges, ignore_merges=pre in WHOLE_WORDS))
    if pre in COMPOSED:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence([*_steps(SPLITS[pre])])
    backend.decoder = decoders.ByteLevel()
    return backend


def _steps(splits: Iterable[str | None]) -> Iterator[pre_tokenizers.PreTokenizer]:
    """GPT-2's splitting is a regular expression too: bytes are spelled last, when everything is split."""
    gpt2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    for split in splits:
        yield pre_tokenizers.Split(Regex(gpt2 if split is GPT2 else split), behavior="isolated")
    yield pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def _sentencepiece(file: GgufFile) -> Backend:
    """SentencePiece's BPE: two neighbours become one where that is a token, the one with the highest score first."""
    space = file.of_tokenizer("add_space_prefix")
    begins = space is None or space
    vocabulary = _vocabulary(file)
    unknown = file.of_tokenizer("unknown_token_id")
    backend = Backend(
        models.BPE(
            vocab=vocabulary,
            merges=_merges(file, vocabulary),
            unk_token=None if unknown is None else file.of_tokenizer("tokens")[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    spaces: list[Any] = [normalizers.Replace(" ", "▁")]
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), *spaces] if begins else spaces)
    strip = [decoders.Strip(" ", 1, 0)] if begins else []
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    return backend


def _merges(file: GgufFile, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """All ways to put a token together from two, in the order of the tokens' scores, the longest first part first."""
    kinds, scores = file.of_tokenizer("token_type"), file.of_tokenizer("scores")
    if scores is None:
        raise UserError(f"{file.path} gives its tokens no scores, by which a text is put together")
    normal = {text for text, id in vocabulary.items() if kinds is None or kinds[id] == NORMAL}
    found = [
        (-scores[vocabulary[text]], -at, text)
        for text in normal
        for at in range(1, len(text))
        if text[:at] in normal and text[at:] in normal
    ]
    return [(text[:-at], text[-at:]) for _, at, text in sorted(found)]


def _vocabulary(file: GgufFile) -> dict[str, int]:
    """Tokens with their ids, without those that only fill up the matrix."""
    tokens = file.of_tokenizer("tokens")
    kinds = file.of_tokenizer("token_type") or [NORMAL] * len(tokens)
    return {text: id for id, (text, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind != UNUSED}


_BUILDERS = {"gpt2": _byte_level, "llama": _sentencepiece}
