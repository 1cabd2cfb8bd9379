"""The vocabulary that teacher and student share: text to token ids and back, and its fingerprint.

`python -m tutelage.data.tokenizer train --data stdlib --vocab_size 8192 --output_dir DIR` trains a new one.
"""

import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from tutelage.data.token_bytes import token_bytes_table
from tutelage.errors import UserError

EOS = "<|endoftext|>"
"""The end-of-text token of vocabularies trained here, id 0."""

TOKEN_RULES = {1: "as the tokenizer's own file says"}
"""How text becomes tokens, beyond the vocabulary: a run goes on under the rule that it began with, or not at all."""

SPECIALS = ("eos_token", "bos_token", "pad_token", "unk_token")

MIN_VOCABULARY = 257
"""The 256 bytes and the end-of-text token: below that some text could not be encoded."""


class Tokenizer:
    """A vocabulary with a known end-of-text token, its other special tokens and its chat template."""

    rule = 1
    """Of `TOKEN_RULES`."""

    def __init__(self, backend: Backend, specials: dict[str, str], chat_template: str | None = None) -> None:
        self.specials = specials
        self.chat_template = chat_template
        # Two copies, because how special tokens in a text are read is a switch on the backend itself.
        self._prompts = _copy(backend)
        self._documents = _copy(backend)
        self._documents.encode_special_tokens = True
        self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values()) + 1
        self.eos_id = self._eos_id()

    @classmethod
    def from_directory(cls, directory: Path | str) -> "Tokenizer":
        """Reads `tokenizer.json` and `tokenizer_config.json`, or any older format transformers knows.

        Raises UserError if there is neither, a file is broken, or no end-of-text token is named.
        """
        directory = Path(directory)
        if not (directory / "tokenizer.json").is_file():
            return cls.from_huggingface(_load_other_format(directory))
        try:
            backend = Backend.from_file(str(directory / "tokenizer.json"))
        except Exception as error:  # the Rust side raises bare Exception
            raise UserError(f"{directory / 'tokenizer.json'} is not a tokenizer: {error}") from error
        config = _read_json(directory / "tokenizer_config.json")
        template_file = directory / "chat_template.jinja"  # where newer transformers puts it
        template = template_file.read_text() if template_file.is_file() else config.get("chat_template")
        return cls(backend, _special_texts(config, str(directory)), template if isinstance(template, str) else None)

    @classmethod
    def from_huggingface(cls, tokenizer: Any) -> "Tokenizer":  # typed Any: transformers is not imported here
        """Takes over a transformers tokenizer. Raises UserError if it is slow or has no end-of-text token."""
        backend = getattr(tokenizer, "backend_tokenizer", None)
        name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
        if backend is None:
            raise UserError(f"tokenizer '{name}' has no fast version: convert it to tokenizer.json with transformers")
        known = {special: getattr(tokenizer, special, None) for special in SPECIALS}
        template = getattr(tokenizer, "chat_template", None)
        return cls(backend, _special_texts(known, name), template if isinstance(template, str) else None)

    def save(self, directory: Path | str) -> None:
        """Writes `tokenizer.json` and a `tokenizer_config.json` that transformers' AutoTokenizer reads."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            **self.specials,
        }
        if self.chat_template:
            config["chat_template"] = self.chat_template
        (directory / "tokenizer.json").write_text(self._prompts.to_str(pretty=True), encoding="utf-8")
        (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")

    def encode(self, text: str) -> list[int]:
        """Token ids of a document: nothing is added, and `<|endoftext|>` in it is text like any other."""
        return list(self._documents.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` for many documents, in parallel."""
        return [e.ids for e in self._documents.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode_prompt(self, text: str) -> list[int]:
        """Token ids of a prompt we wrote ourselves: special tokens in it are special; nothing is added."""
        return list(self._prompts.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """The text of token ids; bytes that are not UTF-8 become U+FFFD."""
        return str(self._prompts.decode(list(ids), skip_special_tokens=skip_special))

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one token stands for. Raises KeyError for an id without a token."""
        return self._bytes[token_id]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over every id with its bytes and the special ids: equal if ids mean the same text."""
        added = self._prompts.get_added_tokens_decoder()
        special = sorted(token_id for token_id, token in added.items() if token.special)
        digest = sha256(json.dumps({"eos": self.eos_id, "special": special}).encode())
        for token_id, content in sorted(self._bytes.items()):
            digest.update(f"\n{token_id} {len(content)} ".encode() + content)  # lengths keep it unambiguous
        return digest.hexdigest()

    @cached_property
    def _bytes(self) -> dict[int, bytes]:
        return token_bytes_table(self._prompts)

    def _eos_id(self) -> int:
        token_id = self._prompts.token_to_id(self.specials["eos_token"])
        if token_id is None:
            raise UserError(f"end-of-text token '{self.specials['eos_token']}' is not in the vocabulary")
        return int(token_id)


def check_fingerprint(expected: str, actual: str, where: str) -> None:
    """Raises UserError unless both vocabularies are the same; `where` names the thing that has `actual`."""
    if expected != actual:
        raise UserError(
            f"{where} uses another tokenizer (fingerprint {actual[:12]}, expected {expected[:12]}): "
            "token ids would mean different text; use the tokenizer that it was made with"
        )


def train(documents: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE with `vocab_size` tokens, of which id 0 ends a text.

    Raises UserError if the size is below `MIN_VOCABULARY` or more than the documents can fill.
    """
    if vocab_size < MIN_VOCABULARY:
        raise UserError(
            f"--vocab_size {vocab_size} cannot hold the 256 bytes and '{EOS}': use {MIN_VOCABULARY} or more"
        )
    backend = Backend(models.BPE())
    # Digits one by one, as the code models do: numbers are then spelled, not memorised.
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(documents, trainer)
    tokenizer = Tokenizer(backend, {"eos_token": EOS})
    if tokenizer.vocab_size < vocab_size:
        raise UserError(
            f"the documents have only {tokenizer.vocab_size} different tokens to learn: "
            f"use more data, or --vocab_size {tokenizer.vocab_size}"
        )
    return tokenizer


def _copy(backend: Backend) -> Backend:
    """A copy that neither truncates nor pads, whatever the file said."""
    copy = Backend.from_str(backend.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy


def _special_texts(config: dict[str, Any], where: str) -> dict[str, str]:
    """The special tokens that are known, as text; files give a string or an object with `content`."""
    values = {name: config.get(name) for name in SPECIALS}
    texts = {name: v.get("content") if isinstance(v, dict) else v for name, v in values.items() if v is not None}
    if not texts.get("eos_token"):
        raise UserError(f"{where} names no end-of-text token: set eos_token in its tokenizer_config.json")
    return {name: str(text) for name, text in texts.items() if text}


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"no '{path}': it must name the eos_token")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"'{path}' is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"'{path}' holds a {type(content).__name__}, not an object")
    return content


def _load_other_format(directory: Path) -> Any:
    """A tokenizer in `vocab.json` or `tokenizer.model`, converted by transformers."""
    older = ("tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tokenizer_config.json")
    if not any((directory / name).is_file() for name in older):
        raise UserError(f"no tokenizer in '{directory}': expected tokenizer.json")
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
    except Exception as error:  # every format fails in its own way
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"the tokenizer in '{directory}' cannot be read: {reason}") from error


if __name__ == "__main__":
    from tutelage.data.train_tokenizer import main

    raise SystemExit(main())
