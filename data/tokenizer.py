"""The vocabulary that teacher and student share: text to token ids and back, where texts begin and end.

`python -m tutelage.data.tokenizer train --data stdlib --vocab_size 8192 --output_dir DIR` trains a new one.
"""

import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from hashlib import sha256
from pathlib import Path

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from tutelage.data.chat import render
from tutelage.data.token_bytes import token_bytes_table
from tutelage.data.tokenizer_files import RECORD, Source, read_folder
from tutelage.errors import UserError

EOS = "<|endoftext|>"
"""The end-of-text token of vocabularies trained here, id 0."""

SEPARATORS = (EOS, "<|end_of_text|>", "<｜end▁of▁sentence｜>", "<EOS_TOKEN>", "<eos>", "</s>")
"""What stood between texts in pre-training. Chat models name the end of a turn as their end-of-text token instead."""

TOKEN_RULES = {
    1: "each document followed by the end-of-text token",
    2: "what the model was trained with before each piece of a document, and its pre-training's separator after it",
}
"""How text becomes tokens, beyond the vocabulary: a run goes on under the rule that it began with, or not at all."""

FORMAT = 2
"""Of tokenised text in caches."""

MIN_VOCABULARY = 257
"""The 256 bytes and the end-of-text token: below that some text could not be encoded."""

CODE = "class Größe:\n\tdef f(self, x=1234):  # → 数 🙂\r\n        return {'a': [x[10:20], 0x1F]}\n\n\n    y  =  ''\n"
"""What a vocabulary must be able to spell."""


class Tokenizer:
    """A vocabulary that knows where texts begin and end, its special tokens and its chat template.

    `prefix_ids` stand before every piece of a text, `document_end` after every text; generation ends at any of
    `end_ids`, which are those given, the end-of-text token `eos_id` and `document_end`. Raises UserError where the
    specials name no end-of-text token, or one that is not in the vocabulary.
    """

    def __init__(
        self,
        backend: Backend,
        specials: dict[str, str],
        chat_template: str | None = None,
        prefix_ids: Sequence[int] = (),
        end_ids: Iterable[int] = (),
        document_end: int | None = None,
    ) -> None:
        self.specials = specials
        self.chat_template = chat_template
        # Two copies, because how special tokens in a text are read is a switch on the backend itself.
        self._prompts = _copy(backend)
        self._documents = _copy(backend)
        self._documents.encode_special_tokens = True
        self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values()) + 1
        self.eos_id = self._eos_id()
        self.prefix_ids = tuple(prefix_ids)
        self.document_end = self._separator() if document_end is None else document_end
        self.end_ids = frozenset({self.eos_id, self.document_end, *(i for i in end_ids if i < self.vocab_size)})
        added = self._prompts.get_added_tokens_decoder()
        self.special_ids = frozenset(
            {id for id, token in added.items() if token.special} | {self.eos_id, self.document_end, *self.prefix_ids}
        )

    @classmethod
    def from_directory(cls, directory: Path | str) -> "Tokenizer":
        """The tokenizer of a folder that somebody published, or that `save` wrote; see `read_folder`."""
        return cls(*_named(read_folder(Path(directory)), str(directory)))

    @classmethod
    def saved(cls, directory: Path | str) -> "Tokenizer":
        """What `save` wrote, in whatever version: an older one knew no prefix and one end. Raises UserError."""
        source = read_folder(Path(directory), ours=True)
        tokenizer = cls(*_named(source, str(directory)))
        if source.document_end is None:
            tokenizer.document_end = tokenizer.eos_id
            tokenizer.end_ids = frozenset({tokenizer.eos_id})
        return tokenizer

    def save(self, directory: Path | str) -> None:
        """Writes `tokenizer.json` and a `tokenizer_config.json` that transformers' AutoTokenizer reads, and does
        by default what was done here: the prefix before a text, nothing after it."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        bos = self._prompts.token_to_id(self.specials.get("bos_token", ""))
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            **self.specials,
            RECORD: {
                "prefix_ids": self.prefix_ids,
                "document_end": self.document_end,
                "end_ids": sorted(self.end_ids),
            },
        }
        if self.prefix_ids in ((), (bos,)):
            config["add_bos_token"] = bool(self.prefix_ids)
        if self.chat_template:
            config["chat_template"] = self.chat_template
        backend = _copy(self._prompts)
        backend.post_processor = self._post_processor()
        (directory / "tokenizer.json").write_text(backend.to_str(pretty=True), encoding="utf-8")
        (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")

    def encode(self, text: str) -> list[int]:
        """Token ids of a document: nothing is added, and `<|endoftext|>` in it is text like any other."""
        return list(self._documents.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` for many documents, in parallel."""
        return [e.ids for e in self._documents.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode_prompt(self, text: str) -> list[int]:
        """Token ids of a prompt: special tokens in it are special, and the prefix stands before it once."""
        ids = self._prompts.encode(text, add_special_tokens=False).ids
        begun = tuple(ids[: len(self.prefix_ids)]) == self.prefix_ids
        return [*(() if begun else self.prefix_ids), *ids]

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """The text that tokens spell wherever they stand; bytes that are not UTF-8 become U+FFFD.

        A word of SentencePiece keeps its space, which other decoders take from the first one: what follows a prompt
        would lose an indent.
        """
        spelled = (self._bytes.get(id, b"") for id in ids if not (skip_special and id in self.special_ids))
        return b"".join(spelled).decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one token stands for. Raises KeyError for an id without a token."""
        return self._bytes[token_id]

    def chat_prompt(self, question: str) -> str:
        """A question as the first turn of a chat, up to the answer. Raises UserError where no template can say it."""
        if self.chat_template is None:
            raise UserError(
                "the tokenizer has no chat template (or several, none called default): ask in another style"
            )
        return render(self.chat_template, [{"role": "user", "content": question}], self.specials)

    @cached_property
    def ends_turns(self) -> bool:
        """Whether generation ends where its template ends an answer, as it does for chat models.

        Some base models carry the template of the chat models that were made of them.
        """
        if self.chat_template is None:
            return False
        turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Goodbye"}]
        try:
            text = render(self.chat_template, turns, self.specials, answer=False)
        except UserError:
            return False
        after = self._prompts.encode(text.rpartition("Goodbye")[2].lstrip(), add_special_tokens=False).ids
        return bool(after) and after[0] in self.end_ids

    def within(self, rows: int, name: str) -> "Tokenizer":
        """The same for a head of so many rows: added tokens beyond it, which no text needs, are no tokens any more.

        Raises UserError, which names the model, where texts need others, or one of them ends or begins texts.
        """
        if self.vocab_size <= rows:
            return self
        vocabulary = self._prompts.get_vocab(with_added_tokens=True)
        beyond = {id for id in vocabulary.values() if id >= rows}
        needed = beyond - self._prompts.get_added_tokens_decoder().keys()
        if needed or beyond & {self.eos_id, self.document_end, *self.prefix_ids}:
            raise UserError(
                f"teacher {name}: its head scores {rows} tokens, its tokenizer knows {self.vocab_size}, of which"
                f" {len(needed) or 'the end-of-text'} beyond the head occur in text: the two do not belong together"
            )
        spec = json.loads(self._prompts.to_str())
        spec["added_tokens"] = [token for token in spec["added_tokens"] if token["id"] < rows]
        words = spec["model"]["vocab"]
        spec["model"]["vocab"] = (
            words[:rows] if isinstance(words, list) else {w: i for w, i in words.items() if i < rows}
        )
        ends = [id for id in self.end_ids if id < rows]
        backend = Backend.from_str(json.dumps(spec))
        return Tokenizer(backend, self.specials, self.chat_template, self.prefix_ids, ends, self.document_end)

    def check_spelling(self, name: str) -> None:
        """Raises UserError, with a sample of what is lost, where the vocabulary cannot spell code."""
        for line in CODE.splitlines(keepends=True):
            again = self.decode(self.encode(line), skip_special=False)
            if again not in (line, f" {line}"):  # some put a space before a text
                raise UserError(
                    f"teacher {name}: its vocabulary cannot spell code: {line!r} becomes {again!r}: choose a teacher"
                    " whose tokenizer keeps spaces, lines and every character"
                )

    @property
    def rule(self) -> int:
        """Of `TOKEN_RULES`."""
        return 2 if self.prefix_ids or self.document_end != self.eos_id else 1

    @cached_property
    def segmentation(self) -> str:
        """A hash of everything that decides which ids a text becomes, the backend's own format included."""
        content = [FORMAT, self._documents.to_str(), self.prefix_ids, self.document_end]
        return sha256(json.dumps(content).encode()).hexdigest()

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

    def _separator(self) -> int:
        """The first separator that is an added token, unless the end-of-text token is one itself."""
        if self.specials["eos_token"] in SEPARATORS:
            return self.eos_id
        added = {token.content: id for id, token in self._prompts.get_added_tokens_decoder().items()}
        return next((added[text] for text in SEPARATORS if text in added), self.eos_id)

    def _post_processor(self) -> processors.PostProcessor:
        """What puts the prefix before a text."""
        prefix = [(self._prompts.id_to_token(id), id) for id in self.prefix_ids]
        single = [*(text for text, _ in prefix), "$A"]
        return processors.TemplateProcessing(single=single, pair=[*single, "$B:1"], special_tokens=prefix)


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


def _named(source: Source, where: str) -> Source:
    """The same, if it names an end-of-text token."""
    if "eos_token" not in source.specials:
        raise UserError(f"{where} names no end-of-text token: set eos_token in its tokenizer_config.json")
    return source


if __name__ == "__main__":
    from tutelage.data.train_tokenizer import main

    raise SystemExit(main())
