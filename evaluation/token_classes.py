"""What a token is in Python: keyword, name, literal, operator, whitespace, comment, or nothing that can be read."""

import tokenize
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from itertools import accumulate
from keyword import iskeyword, issoftkeyword
from token import tok_name

from tutelage.data.tokenizer import Tokenizer

CLASSES = ("keyword", "name", "literal", "operator", "whitespace", "comment", "other")
# Beyond ASCII is a letter, whatever it is: then characters are bytes, and one that is cut in two does no harm.
_ASCII = bytes(byte if byte < 128 else ord("_") for byte in range(256))


def token_classes(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """The class in CLASSES of each token of a piece of Python, by its first character that is not blank.

    What `tokenize` cannot read is "other", and so are special tokens; nothing raises.
    """
    tokens = [b"" if token in tokenizer.special_ids else bytes_of(tokenizer, token) for token in ids]
    text = b"".join(tokens)
    # A piece may begin within a long string, and all its quotes would then be taken the wrong way round.
    openings = [b"", *(quotes for quotes in (b'"""', b"'''") if quotes in text)]
    _, by_byte = min((_read(text, opening) for opening in openings), key=lambda reading: reading[0])
    found = []
    for token, end in zip(tokens, accumulate(map(len, tokens)), strict=True):
        if solid := token.lstrip():
            found.append(by_byte[end - len(solid)])
        else:
            found.append("whitespace" if token else "other")
    return found


def _read(text: bytes, opening: bytes) -> tuple[int, list[str]]:
    """Reads `opening + text`: how often two names stand side by side, and the class of each byte of `text`.

    Names do so in prose, but not in Python: where they do, quotes are taken the wrong way round.
    """
    lines = (opening + text).translate(_ASCII).splitlines(keepends=True)
    # Indentation says nothing about a class, and the one of a piece that begins midway would be refused.
    bare = [line.lstrip(b" \t\f").decode() for line in lines]
    origins = [end - len(line) for end, line in zip(accumulate(map(len, lines)), bare, strict=True)]
    classes = ["other"] * (len(opening) + len(text))
    pairs, last = 0, ""
    with suppress(tokenize.TokenError, SyntaxError):  # what was read so far stands, the rest is "other"
        for token in tokenize.generate_tokens(partial(next, iter(bare), "")):
            kind = _token_class(token)
            pairs += kind == last == "name"
            last = kind
            if kind != "other":
                (first_row, first), (last_row, end) = token.start, token.end
                span = slice(origins[first_row - 1] + first, origins[last_row - 1] + end)
                classes[span] = [kind] * (span.stop - span.start)
    return pairs, classes[len(opening) :]


def _token_class(token: tokenize.TokenInfo) -> str:
    kind = tok_name[token.type]
    if kind == "NAME":
        opens = token.start[1] == 0 and token.line.rstrip().endswith(":")  # `match x:`, but not `match = x`
        return "keyword" if iskeyword(token.string) or (opens and issoftkeyword(token.string)) else "name"
    if "STRING" in kind or kind == "NUMBER":  # newer Pythons give an f-string as FSTRING_START, FSTRING_MIDDLE …
        return "literal"
    return {"OP": "operator", "COMMENT": "comment"}.get(kind, "other")


def bytes_of(tokenizer: Tokenizer, token: int) -> bytes:
    """What a token stands for; nothing where there is no such token."""
    try:
        return tokenizer.token_bytes(token)
    except KeyError:  # a gap in the vocabulary, at which a model may point all the same
        return b""
