"""Which bytes a token stands for: vocabularies spell them in different alphabets."""

import json
import re
from collections.abc import Callable

from tokenizers import Tokenizer as Backend

BytesOf = Callable[[str], bytes]


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's spelling of bytes: printable Latin-1 as itself, the other 68 as characters from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_ALPHABET = _byte_alphabet()
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_level(token: str) -> bytes:
    if all(character in _ALPHABET for character in token):
        return bytes(_ALPHABET[character] for character in token)
    return token.encode()


def _sentencepiece(token: str) -> bytes:
    byte = _BYTE_TOKEN.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace("▁", " ").encode()


# By the decoder step that gives the alphabet away; the first that occurs wins.
_ALPHABETS: dict[str, BytesOf] = {
    "ByteLevel": _byte_level,
    "ByteFallback": _sentencepiece,
    "Metaspace": _sentencepiece,
}


def token_bytes_table(backend: Backend) -> dict[int, bytes]:
    """The bytes of every token, by id. Added tokens, special or not, stand for their own text in UTF-8."""
    decoder = json.dumps(json.loads(backend.to_str())["decoder"])
    spell = next((spell for step, spell in _ALPHABETS.items() if f'"{step}"' in decoder), str.encode)
    table = {id: spell(token) for token, id in backend.get_vocab(with_added_tokens=False).items()}
    added = {id: token.content.encode() for id, token in backend.get_added_tokens_decoder().items()}
    return table | added
