"""Closeness against plain loops over distributions small enough to write out, and classes read off by hand."""

import json
import math
from collections import defaultdict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tutelage.data.batch import IGNORE
from tutelage.data.packing import pack
from tutelage.data.tokenizer import Tokenizer, train
from tutelage.errors import UserError
from tutelage.evaluation.closeness import CLASSES, closeness, token_classes
from tutelage.evaluation.fidelity import fidelity
from tutelage.teacher.signal import FullSignal

WORDS = "def f(x):\n    return x + 1  # one\nname = 'text'\n"
CODE = [f"{WORDS * n}\nif {n} in rows:\n    pass" for n in (1, 3, 2, 5, 1)]


@pytest.fixture(scope="module")
def letters() -> Tokenizer:
    """Every byte is a token, and no two are one."""
    return train(["ab"], 257)


def scorer(vocab_size, seed, spread=1.0, padding=0):
    """A model whose distribution depends on token, position and seed, with its fp64 log-probabilities."""
    generator = torch.Generator().manual_seed(seed)
    head = torch.randn(vocab_size + padding, 6, generator=generator)
    embedding = spread * torch.randn(vocab_size, 6, generator=generator)
    by_position = spread * torch.randn(512, 6, generator=generator)

    def signal(batch):
        return FullSignal(embedding[batch.tokens] + by_position[batch.positions], head)

    def log_probs(token, position):
        logits = (embedding[token] + by_position[position]).double() @ head[:vocab_size].double().T
        return torch.log_softmax(logits, -1)

    return signal, log_probs


def plain_targets(batches, student, teacher, tokenizer):
    """One dictionary for each target, computed one by one in fp64."""
    for number, batch in enumerate(batches):
        for row in range(len(batch.tokens)):
            for at, target in enumerate(batch.targets[row].tolist()):
                if target == IGNORE:
                    continue
                token, position = int(batch.tokens[row, at]), int(batch.positions[row, at])
                q, p = (log_probs(token, position).exp() for log_probs in (student, teacher))
                yield {
                    "piece": (number, row, int(batch.segments[row, at])),
                    "position": position,
                    "target": tokenizer.token_bytes(target).decode(),
                    "kl": float((p * (p / q).log()).sum()),
                    "agreement": float(q.argmax() == p.argmax()),
                    "student": (float(q.max()), q.argmax() == target, int(q.argmax())),
                    "teacher": (float(p.max()), p.argmax() == target, int(p.argmax())),
                    "token": token,
                }


@pytest.fixture(scope="module")
def compared(tokenizer):
    """What is found of two random models, and the same one by one."""
    packed = pack([tokenizer.encode(text) for text in CODE], tokenizer.eos_id, 50)
    batches = [packed.batch(torch.arange(start, min(start + 6, len(packed))).numpy()) for start in range(0, len(packed), 6)]
    size = tokenizer.vocab_size
    (student, log_q), (teacher, log_p) = scorer(size, 0, padding=7), scorer(size, 1, 0.6)
    found = closeness(student, teacher, iter(batches), size, tokenizer)
    return found, list(plain_targets(batches, log_q, log_p, tokenizer)), fidelity(student, teacher, batches, size)


def mean(values):
    values = list(values)
    return sum(values) / len(values) if values else 0


def test_the_rows_are_more_than_a_chunk_and_hold_pieces_of_all_kinds(compared):
    _, rows, _ = compared
    sizes = [sum(row["piece"] == piece for row in rows) for piece in {row["piece"] for row in rows}]
    assert len(rows) > 256
    assert min(sizes) < 16 < max(sizes)
    assert len([size for size in sizes if size >= 16]) > 10


def test_calibration_is_counted_bin_by_bin(compared):
    found, rows, _ = compared
    for name in ("student", "teacher"):
        calibration = getattr(found, name)
        bins = defaultdict(list)
        for row in rows:
            bins[int(row[name][0] * 10)].append(row[name])
        assert len(calibration.bins) == 10
        for number, shown in enumerate(calibration.bins):
            assert shown.count == len(bins[number])
            assert shown.confidence == pytest.approx(mean(one[0] for one in bins[number]), rel=1e-5)
            assert shown.accuracy == pytest.approx(mean(float(one[1]) for one in bins[number]))
        gaps = [len(b) * abs(mean(c for c, _, _ in b) - mean(float(hit) for _, hit, _ in b)) for b in bins.values()]
        assert calibration.error == pytest.approx(sum(gaps) / len(rows), rel=1e-5)


def check_slice(shown, rows, whole):
    assert shown.count == len(rows), shown.name
    assert shown.share == pytest.approx(len(rows) / whole)
    assert shown.agreement == pytest.approx(mean(row["agreement"] for row in rows))
    assert shown.kl == pytest.approx(mean(row["kl"] for row in rows), rel=1e-5)


def test_buckets_of_positions_double(compared):
    found, rows, _ = compared
    ranges = {"0-7": range(8), "8-15": range(8, 16), "16-31": range(16, 32), "32-63": range(32, 64)}
    assert [shown.name for shown in found.by_position] == list(ranges)
    for shown in found.by_position:
        check_slice(shown, [row for row in rows if row["position"] in ranges[shown.name]], len(rows))


def test_classes_are_averaged_over_their_targets(compared):
    found, rows, _ = compared
    assert tuple(shown.name for shown in found.token_classes) == CLASSES
    assert sum(shown.count for shown in found.token_classes) == len(rows)
    by_name = {shown.name: shown for shown in found.token_classes}
    # The text is simple enough to tell these classes by the token alone.
    blank = [row for row in rows if not row["target"].strip()]
    check_slice(by_name["whitespace"], blank, len(rows))
    operators = [row for row in rows if row["target"].strip()[:1] in set("():+=")]
    assert operators
    check_slice(by_name["operator"], [row for row in operators if row["target"].strip()], len(rows))
    check_slice(by_name["other"], [row for row in rows if row["target"] == "<|endoftext|>"], len(rows))


def test_the_furthest_pieces_with_the_token_where_they_part(compared, tokenizer):
    found, rows, _ = compared
    pieces = defaultdict(list)
    for row in rows:
        pieces[row["piece"]].append(row)
    long = [piece for piece in pieces.values() if len(piece) >= 16]
    long.sort(key=lambda piece: -mean(row["kl"] for row in piece))
    assert len(found.furthest) == 10
    for shown, piece in zip(found.furthest, long, strict=False):
        worst = max(piece, key=lambda row: row["kl"])
        assert shown.kl == pytest.approx(mean(row["kl"] for row in piece), rel=1e-5)
        assert shown.count == len(piece)
        assert shown.peak_kl == pytest.approx(worst["kl"], rel=1e-5)
        assert shown.target == worst["target"]
        before = b"".join(tokenizer.token_bytes(row["token"]) for row in piece[: piece.index(worst) + 1])
        assert shown.context == before.decode()[-80:]
        for name in ("student", "teacher"):
            guess = getattr(shown, name)
            assert guess.text == tokenizer.token_bytes(worst[name][2]).decode(errors="replace")
            assert guess.probability == pytest.approx(worst[name][0], rel=1e-5)


def test_the_slices_add_up_to_fidelity_and_all_of_it_is_plain(compared):
    found, _, whole = compared
    for slices in (found.by_position, found.token_classes):
        assert sum(shown.share * shown.kl for shown in slices) == pytest.approx(whole.kl, rel=1e-6)
        assert sum(shown.share * shown.agreement for shown in slices) == pytest.approx(whole.agreement)
    told = json.loads(json.dumps(found.plain(), allow_nan=False))
    assert told["by_position"][0]["name"] == "0-7"
    assert told["furthest"][0]["student"]["probability"] == found.furthest[0].student.probability


def test_a_certain_model_fills_the_last_bin_and_agrees_with_itself(letters):
    packed = pack([letters.encode("abcdefghi")], letters.eos_id, 16)
    sure, _ = scorer(letters.vocab_size, 0, spread=1e4)
    found = closeness(sure, sure, [packed.batch(torch.arange(1).numpy())], letters.vocab_size, letters)
    assert [b.count for b in found.student.bins] == [0] * 9 + [9]
    assert found.student.error == pytest.approx(1 - found.student.bins[9].accuracy)
    assert [(one.name, one.count) for one in found.by_position] == [("0-7", 8), ("8-15", 1)]
    assert all(one.agreement == 1 and one.kl == 0 for one in found.by_position)
    assert found.furthest == ()  # the piece is too short


def test_a_guess_at_a_gap_in_the_vocabulary_has_no_text(letters):
    packed = pack([letters.encode("x = 1  # " * 4)], letters.eos_id, 64)
    size = letters.vocab_size + 1
    head = torch.zeros(size, 1)
    head[-1] = 1
    found = closeness(
        lambda batch: FullSignal(torch.ones(*batch.tokens.shape, 1), head),
        lambda batch: FullSignal(torch.zeros(*batch.tokens.shape, 1), head),
        [packed.batch(torch.arange(1).numpy())],
        size,
        letters,
    )
    assert found.furthest[0].student.text == ""
    assert found.furthest[0].student.probability == pytest.approx(math.e / (math.e + size - 1))


def test_nothing_to_compare_at_is_refused(letters):
    empty = pack([[]], letters.eos_id, 4).batch(torch.arange(1).numpy())
    model, _ = scorer(letters.vocab_size, 0)
    for batches in ([], [empty]):
        with pytest.raises(UserError, match="no held-out target"):
            closeness(model, model, batches, letters.vocab_size, letters)


@pytest.fixture(scope="module")
def classes_of(letters):
    """Bytes → the first letter of each one's class; "." is other, and a blank stays what it is."""
    ids = {letters.token_bytes(token): token for token in range(letters.vocab_size)}

    def classes_of(data):
        names = token_classes(letters, [ids[bytes([byte])] for byte in data])
        assert set(names) <= set(CLASSES)
        return "".join({"whitespace": chr(b), "other": "."}.get(n, n[0]) for b, n in zip(data, names, strict=True))

    return classes_of


# Lines of text, each above what its bytes are.
READINGS = {
    "code": [
        "def f(x, *y):  # go",
        "kkk nono onoo  c cc",
        "    return x[1] + 'a b' if x else None",
        "    kkkkkk nolo o ll ll kk n kkkk kkkk",
    ],
    "soft keywords where they act": [
        "match x:",
        "kkkkk no",
        "  case 1:",
        "  kkkk lo",
        "match = case(_)",
        "nnnnn o nnnnono",
    ],
    "more bytes than characters": [
        "é = 'ü→'  # ñ",
        "nn o lllllll  c cc",
        "b",
        "n",
    ],
    "begins deeper than it goes on": [
        "        a",
        "        n",
        "    b",
        "    n",
        "  c = 1",
        "  n o l",
    ],
    "ends in a string": [
        "a = 1",
        "n o l",
        "b = '''c d",
        "n o ... .",
        "if e",
        ".. .",
    ],
    "begins in a string": [
        "the text goes on",
        "lll llll llll ll",
        '"""',
        "lll",
        'x = """and here"""',
        "n o llllll lllllll",
    ],
    "begins and ends in a string": [
        "the text goes on '''",
        "lll llll llll ll lll",
        "x = '''and here it stops",
        "n o ...... .... .. .....",
    ],
    "a statement that never ends": [
        "f(a, [b,",
        "nono ono",
    ],
    "closes more than it opens": [
        ")]} + a",
        "ooo o n",
        "  b",
        "  n",
    ],
    "not Python": [
        "What? $5 isn't \0 so",
        "nnnn. .l nnn.n . nn",
    ],
}


@pytest.mark.parametrize("name", READINGS)
def test_each_byte_has_the_class_that_a_reader_gives_it(classes_of, name):
    text, expected = ("\n".join(READINGS[name][start::2]) for start in (0, 1))
    assert classes_of(text.encode()) == expected


def test_a_piece_may_begin_or_end_within_a_character(classes_of):
    whole = "x + '→'".encode()
    assert classes_of("ü + 1".encode()[1:]) == "n o l"
    assert [classes_of(whole[:end])[:3] for end in range(3, len(whole))] == ["n o"] * (len(whole) - 3)


def test_a_token_is_classed_by_its_first_character_that_is_not_blank():
    text = "  return value + 10  # two\n"
    merged = train([text], 273)
    ids = merged.encode(text)
    found = dict(zip((merged.token_bytes(token).decode() for token in ids), token_classes(merged, ids), strict=True))
    assert found == {
        " ": "whitespace",
        " return": "keyword",
        " value": "name",
        " +": "operator",
        "1": "literal",
        "0": "literal",
        " #": "comment",
        " two": "comment",
        "\n": "whitespace",
    }


def test_end_of_text_is_no_part_of_the_code(letters):
    ids = letters.encode("a = 1")
    assert token_classes(letters, [*ids, letters.eos_id]) == [*token_classes(letters, ids), "other"]


@given(data=st.one_of(st.binary(), st.text().map(str.encode), st.text("\"'#\\\n\t (]{:f0_é").map(str.encode)))
def test_whatever_the_bytes_each_has_a_class(classes_of, data):
    assert len(classes_of(data)) == len(data)
