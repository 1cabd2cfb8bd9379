"""What a teacher is held to before it teaches: whole weights, a head that we know, documents that stay apart.

Shapes: B rows, T tokens, L tokens of a document, V vocabulary.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.data.batch import IGNORE, Batch
from tutelage.data.tokenizer import Tokenizer
from tutelage.errors import UserError
from tutelage.student.decoder import Decoder
from tutelage.teacher import text_config
from tutelage.teacher.load_errors import out_of_memory
from tutelage.teacher.rowwise import RowwiseLM
from tutelage.teacher.text_model import TextModel

log = logging.getLogger(__name__)

SHORT = (12, 20)
"""Tokens of two short documents."""
COMPARED = 16
"""The last so many positions of a document are compared, and a long one goes on for so many after a window."""
AFFORDABLE = {"cpu": 1e11}
"""Parameters times tokens of one pass beyond a sliding window, by kind of device."""
ELSEWHERE = 3e13
"""The same on all others."""


@dataclass(frozen=True)
class Probe:
    """The trials of one teacher, with a few short documents."""

    name: str
    model: Any
    text: TextModel
    tokenizer: Tokenizer

    def settle_head(self) -> None:
        """Finds the scale and cap with which `hidden @ head.T` gives the model's own logits: those that its
        configuration names, or none. Raises UserError where neither does."""
        text, document = self.text, self.document(0, SHORT[0])
        theirs, hidden = self._own_logits(document), text.run(document[None])[0][0]
        named = text.scale, text.cap
        gaps = {}
        for form in (named, (1.0, None)):
            text.scale, text.cap = form
            gaps[form] = gap(text.logits(hidden), theirs)
        text.scale, text.cap = min(gaps, key=lambda form: gaps[form])
        if not min(gaps.values()) < self._same:
            raise UserError(
                f"teacher {self.name}: hidden @ head.T differs from its logits by {gaps[named]:.1%} of their range,"
                " so its head does something unknown: wrap it in a teacher of your own"
                ' (CONTRIBUTING.md, "Adding a part")'
            )

    def settle_documents(self) -> None:
        """Lets documents share a row where they do not see each other, and runs each by itself where they would.

        Raises UserError where even that is not what the model says of each.
        """
        fault = "it takes no positions"
        if self.text.packs_up_to != 0 and (fault := self._fault_side_by_side()):
            self.text.packs_up_to = 0
        if fault:
            log.warning("teacher %s runs document by document, which takes longer: %s", self.name, fault)
        if self.text.packs_up_to == 0 or (self.text.packs_up_to and not self.text.sharded):
            self._check_one_by_one()
            self._check_causal()

    def agrees(self, decoder: Decoder) -> bool:
        """Whether our arithmetic gives the model's logits with its weights."""
        document = self.document(0, min(SHORT[0], decoder.context))
        off = gap(decoder.logits(decoder(document[None]).hidden[0]), self._logits(document))
        if off < self._same:
            return True
        log.info("teacher %s: our arithmetic is off by %.1f %%, so transformers generates", self.name, 100 * off)
        return False

    def remembers(self) -> bool:
        """Whether two texts in turn, with what transformers remembers of each, score as each whole text does."""
        texts = [self.document(seed, length + 1) for seed, length in enumerate(SHORT)]
        sizes = [max(1, len(text) - 1) for text in texts]
        padded = nn.utils.rnn.pad_sequence([text[:size] for text, size in zip(texts, sizes, strict=True)], True)
        model, off = RowwiseLM(self.text), float("inf")
        try:
            if self.text.cache_name is None:
                raise TypeError("it takes none")
            cache = model.new_cache(len(texts), max(sizes) + 1)
            model.step(padded, cache, torch.tensor(sizes, device=padded.device))
            last = model.step(torch.stack([text[-1:] for text in texts]), cache)[:, 0]
            off = gap(last, torch.stack([self._logits(text)[-1] for text in texts]))
        except Exception as error:  # each kind without such a cache says so in its own way
            if out_of_memory(error):
                raise
            log.debug("teacher %s takes no cache: %r", self.name, error)
        if off < self._same:
            return True
        log.info("teacher %s generates without a cache, which takes longer", self.name)
        return False

    def document(self, seed: int, length: int) -> Tensor:
        """Tokens `(≤length,)` as a text has them, no more than the context holds: a prefix, and nothing special."""
        length = min(length, self.text.context or length)
        random = torch.Generator().manual_seed(seed)
        drawn = torch.randint(self.tokenizer.vocab_size, (4 * length,), generator=random).tolist()
        plain = [token for token in drawn if token not in self.tokenizer.special_ids] or drawn
        ids = [*self.tokenizer.prefix_ids, *plain, *plain * length][:length]
        return torch.tensor(ids, device=self.text.head.device)

    @property
    def _same(self) -> float:
        """What another order of sums may change, as a share of the logits' range."""
        return 0.005 if self.text.head.dtype == torch.float32 else 0.02

    @property
    def _still(self) -> float:
        """What one document may change of another where the order stays: bits of a router, say."""
        return 1e-4 if self.text.head.dtype == torch.float32 else 1e-3

    def _logits(self, document: Tensor, last: int = 0) -> Tensor:
        """Of one document `(L,)`, or of its last tokens: `(L, V)`."""
        return self.text.logits(self.text.run(document[None])[0][0, -last:])

    def _own_logits(self, document: Tensor) -> Tensor:
        """What the model itself says `(L, V)`."""
        self.text.forget_lengths()
        with torch.no_grad():
            logits: Tensor = self.model(input_ids=document[None], use_cache=False).logits
        return logits[0, :, : self.text.vocab_size]

    def _fault_side_by_side(self) -> str:
        """What is wrong with documents in one row; "" for nothing."""
        a, b = (self.document(seed, length) for seed, length in enumerate(SHORT))
        if limit := self.text.packs_up_to:
            a, b = a[: max(1, limit // 3)], b[: max(1, limit // 2)]
        try:
            fault = self._fault_of_rows((a, b), (b, a)) or self._fault_of_change(a, b)
            long = 0 if fault else self._beyond_window()
            return fault or (self._fault_of_rows((a, self.document(2, long))) if long else "")
        except Exception as error:  # there is another way, whatever it is
            if out_of_memory(error):
                raise
            return f"side by side they raise {type(error).__name__}"

    def _fault_of_rows(self, *pairs: tuple[Tensor, Tensor]) -> str:
        """Whether documents of these rows are what each is alone, at their last positions."""
        documents = {id(document): document for pair in pairs for document in pair}
        alone = {key: self._logits(document, COMPARED) for key, document in documents.items()}
        for row, pair in zip(self.text.packed(rows_of(pairs))[0], pairs, strict=True):
            for document, ours in zip(pair, torch.split(row, [len(one) for one in pair]), strict=True):
                off = gap(self.text.logits(ours[-COMPARED:]), alone[id(document)])
                if not off < self._same:
                    return f"in a row with others its logits are off by {off:.1%} of their range"
        return ""

    def _fault_of_change(self, first: Tensor, second: Tensor) -> str:
        """Whether the second moves with the first, of which every token is changed, or with its own last one."""
        changed = self.document(3, len(first)), torch.cat((second[:-1], first[-1:]))
        states = self.text.packed(rows_of([(first, second), changed]))[0]
        before, after = (self.text.logits(row[len(first) : -1]) for row in states)
        return "" if gap(after, before) < self._still else "in a row with others a document sees its neighbour"

    def _beyond_window(self) -> int:
        """Length of a document that no sliding window holds whole; 0 where there is none, or to try is too dear."""
        window = text_config.window(self.text.config)
        if window is None:
            return 0
        length = window + COMPARED
        room = min(self.text.context or length, (self.text.packs_up_to or length + SHORT[0]) - SHORT[0])
        cost = sum(map(count, self.text.layers)) * (length + SHORT[0])
        return length if length <= room and cost <= AFFORDABLE.get(self.text.head.device.type, ELSEWHERE) else 0

    def _check_one_by_one(self) -> None:
        """Raises UserError where documents that are run by themselves, in one batch, are not as the model has them."""
        a, b, c, d = (self.document(seed, length) for seed, length in enumerate((*SHORT, *SHORT)))
        states = self.text.by_document(rows_of([(a, b), (d, c)]))[0]
        for row, pair in zip(states, ((a, b), (d, c)), strict=True):
            for document, ours in zip(pair, torch.split(row, [len(one) for one in pair]), strict=True):
                off = gap(self.text.logits(ours), self._own_logits(document))
                if not off < self._same:
                    raise UserError(
                        f"teacher {self.name}: what it says of a document depends on others in the batch, by {off:.1%}"
                        " of its logits' range: choose another --teacher"
                    )

    def _check_causal(self) -> None:
        """Raises UserError where a token's scores depend on what comes after it."""
        document = self.document(0, SHORT[1])
        other = torch.cat((document[:-1], self.document(1, 2)[-1:]))
        off = gap(self._logits(other)[:-1], self._logits(document)[:-1])
        if not off < self._same:
            raise UserError(
                f"teacher {self.name}: what it says of a token depends on those after it, by {off:.1%} of its logits'"
                " range: it is no causal model, choose another --teacher"
            )


def check_head(name: str, head: Any, skeleton: bool) -> None:
    """Raises UserError unless the output layer `head` has a matrix that losses can multiply by."""
    weight = getattr(head, "weight", None)
    if weight is None:
        raise UserError(f"teacher {name} has no head that scores tokens: choose a causal language model")
    if weight.is_meta and not skeleton:
        raise UserError(f"teacher {name}: its head was offloaded; use a smaller teacher or a device that holds it")
    if not weight.is_floating_point():
        raise UserError(
            f"teacher {name}: its head is packed ({weight.dtype}), which no loss can use: choose a checkpoint that"
            " keeps its head in bf16"
        )


def check_weights(name: str, model: nn.Module) -> None:
    """Raises UserError that names the first parameter which holds something that is no finite number."""
    for where, parameter in model.named_parameters():
        if parameter.is_meta or not parameter.is_floating_point():
            continue
        # a sum is quick, and finite where all of its numbers are, unless they are huge
        if parameter.sum(dtype=torch.float32).isfinite() or parameter.isfinite().all():
            continue
        kind = "NaN" if parameter.isnan().any() else "infinity"
        raise UserError(f"teacher {name}: its weight {where} holds {kind}: get its files again, or another --teacher")


def count(module: nn.Module) -> int:
    """Parameters of a module, those in 4 bits as well, of which two share a byte."""
    return sum(
        p.numel() * (2 * p.element_size() if type(p).__name__ == "Params4bit" else 1) for p in module.parameters()
    )


def rows_of(documents: Sequence[Sequence[Tensor]]) -> Batch:
    """A batch without targets whose rows hold these documents side by side, each row as long as the others."""

    def rows(values: Callable[[int, Tensor], Tensor]) -> Tensor:
        return torch.stack([torch.cat([values(*numbered) for numbered in enumerate(row)]) for row in documents])

    tokens = rows(lambda _, document: document)
    return Batch(
        tokens=tokens,
        targets=torch.full_like(tokens, IGNORE),
        segments=rows(lambda number, document: torch.full_like(document, number)),
        positions=rows(lambda _, document: torch.arange(len(document), device=document.device)),
        keys=torch.zeros(len(tokens), dtype=torch.long),
    )


def gap(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference of logits `(…, V)`, as a share of the range of `theirs`."""
    if not theirs.numel():
        return 0.0
    ours, theirs = ours.float(), theirs.float()
    return ((ours - theirs).abs().max() / (theirs.max() - theirs.min()).clamp(min=1e-6)).item()
