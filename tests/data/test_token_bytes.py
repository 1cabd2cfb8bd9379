from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models

from tutelage.data.token_bytes import token_bytes_table
from tutelage.data.tokenizer import Tokenizer


def test_byte_level_tokens_spell_exactly_the_text(tokenizer: Tokenizer) -> None:
    text = "def grüße(ж):\n\treturn '🎓' + \"\\x00\"  # \x00\x7f\xad"
    assert b"".join(tokenizer.token_bytes(i) for i in tokenizer.encode(text)) == text.encode()


def test_every_single_byte_has_its_token(tokenizer: Tokenizer) -> None:
    spelled = {tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)}
    assert {bytes([byte]) for byte in range(256)} <= spelled


def test_sentencepiece_spelling() -> None:
    vocabulary = {"<unk>": 0, "<0x0A>": 1, "▁def": 2, "é": 3}
    backend = Backend(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens(["</s>"])
    assert token_bytes_table(backend) == {0: b"<unk>", 1: b"\n", 2: b" def", 3: "é".encode(), 4: b"</s>"}
