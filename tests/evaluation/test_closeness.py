"""Closeness against plain loops over distributions small enough to write out, and classes read off by hand."""

import json
import math
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch

from tutelage.data.batch import IGNORE
from tutelage.data.packing import pack
from tutelage.errors import UserError
from tutelage.evaluation.closeness import MIN_TARGETS, closeness
from tutelage.evaluation.token_classes import CLASSES, token_classes
from tutelage.kernels.linear_divergence import DenseTeacher
from tutelage.teacher.signal import Signal
from tutelage.training.fidelity import CHUNK, fidelity

WORDS = "def f(x):\n    return x + 1  # one\nname = 'text'\n"
CODE = [f"{WORDS * n}\nif {n} in rows:\n    pass" for n in (1, 3, 2, 5, 1, 7, 4)]


def rows_of(packed, start=0, end=None):
    return packed.batch(np.arange(len(packed))[start:end])


def scorer(vocab_size, seed, padding=0):
    """A model that peeps at some targets and often agrees with other seeds; the same as a plain function in fp64."""
    shared, own = (torch.Generator().manual_seed(number) for number in (99, seed))
    head = 0.4 * torch.randn(vocab_size + padding, 24, generator=shared)
    by_token = torch.randn(vocab_size, 24, generator=shared) + 0.4 * torch.randn(vocab_size, 24, generator=own)
    by_position = 2 * torch.rand(64, 1, generator=own)
    peeps = 5 * (torch.rand(64, 1, generator=own) < 0.4)

    def hidden(tokens, positions, targets):
        return by_token[tokens] * by_position[positions] + peeps[positions] * head[targets.clamp(min=0)]

    exact = head[:vocab_size].double().numpy()

    def probabilities(token, position, target):
        powers = np.exp(exact @ hidden(token, position, target).double().numpy())
        return powers / powers.sum()

    return lambda batch: Signal(DenseTeacher(hidden(batch.tokens, batch.positions, batch.targets), head)), probabilities


def plain_targets(batches, student, teacher, tokenizer):
    """A dictionary for each target, computed one by one in fp64."""
    for number, batch in enumerate(batches):
        for row, at in (batch.targets != IGNORE).nonzero().tolist():
            token, position, target = (x[row, at] for x in (batch.tokens, batch.positions, batch.targets))
            q, p = (model(token, position, target) for model in (student, teacher))
            first = at - int(position)
            ids = [*batch.tokens[row, first : at + 1].tolist(), *batch.targets[row, at:].tolist()]
            if IGNORE in ids:
                ids = ids[: ids.index(IGNORE)]
            yield {
                "piece": (number, row, first),
                "position": int(position),
                "target": tokenizer.token_bytes(int(target)),
                "before": b"".join(map(tokenizer.token_bytes, ids[: int(position) + 1])),
                "class": token_classes(tokenizer, ids)[int(position) + 1],
                "kl": float((p * np.log(p / q)).sum()),
                "agreement": float(q.argmax() == p.argmax()),
                "acceptance": float(np.minimum(p, q).sum()),
                "student": (float(q.max()), float(q.argmax() == int(target)), int(q.argmax())),
                "teacher": (float(p.max()), float(p.argmax() == int(target)), int(p.argmax())),
            }


@pytest.fixture(scope="module")
def compared(tokenizer):
    """What is found of two random models, the same one by one, and their fidelity."""
    packed = pack([tokenizer.encode(text) for text in CODE], tokenizer.eos_id, 60)
    batches = [rows_of(packed, 0, 5), rows_of(packed, 5)]
    size = tokenizer.vocab_size
    (student, q), (teacher, p) = scorer(size, 0, padding=7), scorer(size, 1, padding=7)
    found = closeness(student, teacher, iter(batches), size, tokenizer)
    return found, list(plain_targets(batches, q, p, tokenizer)), fidelity(student, teacher, batches, size)


def mean(values):
    values = list(values)
    return sum(values) / len(values) if values else 0


def test_the_example_has_something_of_everything(compared):
    _, rows, _ = compared
    sizes = Counter(row["piece"] for row in rows).values()
    assert len(rows) > CHUNK
    assert min(sizes) < MIN_TARGETS
    assert sum(size >= MIN_TARGETS for size in sizes) > 10
    assert 0.1 < mean(row["agreement"] for row in rows) < 0.9
    assert all(0.1 < mean(row[name][1] for row in rows) < 0.9 for name in ("student", "teacher"))
    assert any(len(row["before"]) > 80 for row in rows)


def test_calibration_is_counted_bin_by_bin(compared):
    found, rows, _ = compared
    for name in ("student", "teacher"):
        calibration = getattr(found, name)
        bins = [[row[name] for row in rows if int(row[name][0] * 10) == number] for number in range(10)]
        assert [one.count for one in calibration.bins] == [len(one) for one in bins]
        gaps = []
        for shown, told in zip(calibration.bins, bins, strict=True):
            confidence, accuracy = (mean(one[column] for one in told) for column in (0, 1))
            assert shown.confidence == pytest.approx(confidence, rel=1e-4)
            assert shown.accuracy == pytest.approx(accuracy)
            gaps.append(len(told) * abs(accuracy - confidence))
        assert calibration.error == pytest.approx(sum(gaps) / len(rows), rel=1e-4)


def check_slice(shown, rows, whole):
    assert shown.count == len(rows), shown.name
    assert shown.share == pytest.approx(len(rows) / whole)
    assert shown.agreement == pytest.approx(mean(row["agreement"] for row in rows))
    assert shown.kl == pytest.approx(mean(row["kl"] for row in rows), rel=1e-4)


def test_buckets_of_positions_double(compared):
    found, rows, _ = compared
    ranges = {"0-7": range(8), "8-15": range(8, 16), "16-31": range(16, 32), "32-63": range(32, 64)}
    assert [shown.name for shown in found.by_position] == list(ranges)
    for shown in found.by_position:
        check_slice(shown, [row for row in rows if row["position"] in ranges[shown.name]], len(rows))


def test_classes_are_those_of_the_targets(compared):
    found, rows, _ = compared
    assert tuple(shown.name for shown in found.token_classes) == CLASSES
    for shown in found.token_classes:
        assert shown.count
        check_slice(shown, [row for row in rows if row["class"] == shown.name], len(rows))
    blank = [row for row in rows if not row["target"].strip()]
    check_slice(found.token_classes[CLASSES.index("whitespace")], blank, len(rows))


def test_the_furthest_pieces_with_the_token_where_they_part(compared, tokenizer):
    found, rows, _ = compared
    pieces = defaultdict(list)
    for row in rows:
        pieces[row["piece"]].append(row)
    long = sorted((p for p in pieces.values() if len(p) >= 16), key=lambda p: -mean(row["kl"] for row in p))
    assert len(found.furthest) == 10
    for shown, piece in zip(found.furthest, long, strict=False):
        peak = max(piece, key=lambda row: row["kl"])
        assert shown.kl == pytest.approx(mean(row["kl"] for row in piece), rel=1e-4)
        assert shown.count == len(piece)
        assert shown.peak_kl == pytest.approx(peak["kl"], rel=1e-4)
        assert shown.target == peak["target"].decode()
        assert shown.context == peak["before"].decode()[-80:]
        for name in ("student", "teacher"):
            probability, _, token = peak[name]
            assert getattr(shown, name).text == tokenizer.token_bytes(token).decode(errors="replace")
            assert getattr(shown, name).probability == pytest.approx(probability, rel=1e-4)


def test_means_and_slices_are_fidelity_and_all_of_it_is_plain(compared):
    found, rows, whole = compared
    for name in ("kl", "agreement", "acceptance"):
        assert getattr(found, name) == pytest.approx(mean(row[name] for row in rows), rel=1e-4)
        assert getattr(found, name) == pytest.approx(getattr(whole, name), rel=1e-6)
    for slices in (found.by_position, found.token_classes):
        assert sum(shown.share * shown.kl for shown in slices) == pytest.approx(whole.kl, rel=1e-6)
        assert sum(shown.share * shown.agreement for shown in slices) == pytest.approx(whole.agreement)
    told = json.loads(json.dumps(found.plain(), allow_nan=False))
    assert told["by_position"][0]["name"] == "0-7"
    assert told["furthest"][0]["student"]["probability"] == found.furthest[0].student.probability


def constant(vocab_size, token, logit):
    """A model that says `token` whatever comes before it."""
    head = torch.zeros(vocab_size, 1)
    head[token] = logit
    return lambda batch: Signal(DenseTeacher(torch.ones(*batch.tokens.shape, 1), head))


def test_a_certain_model_fills_the_last_bin_and_agrees_with_itself(letters):
    packed = pack([letters.encode("xabaabaab")], letters.eos_id, 16)
    model = constant(letters.vocab_size, letters.encode("a")[0], 1e3)
    found = closeness(model, model, [rows_of(packed)], letters.vocab_size, letters)
    assert [one.count for one in found.student.bins] == [0] * 9 + [9]
    assert found.student.bins[9].confidence == 1
    assert found.student.bins[9].accuracy == pytest.approx(5 / 9)
    assert found.student.error == pytest.approx(4 / 9)
    assert [(one.name, one.count, one.agreement, one.kl) for one in found.by_position] == [
        ("0-7", 8, 1, 0),
        ("8-15", 1, 1, 0),
    ]
    assert found.furthest == ()  # the piece is too short


def test_a_guess_may_be_a_gap_in_the_vocabulary_or_a_part_of_a_character(letters):
    packed = pack([letters.encode("x = 1  # " * 4)], letters.eos_id, 64)
    size = letters.vocab_size + 1
    student, teacher = constant(size, -1, 1.0), constant(size, letters.encode("é")[0], 9.0)
    found = closeness(student, teacher, [rows_of(packed)], size, letters)
    (piece,) = found.furthest
    assert (piece.student.text, piece.teacher.text) == ("", "\ufffd")
    assert piece.student.probability == pytest.approx(math.e / (math.e + size - 1))
    assert piece.count == 36


def test_nothing_to_compare_at_is_refused(letters):
    empty = rows_of(pack([[]], letters.eos_id, 4))
    model = constant(letters.vocab_size, 0, 1.0)
    for batches in ([], [empty]):
        with pytest.raises(UserError, match="no held-out target"):
            closeness(model, model, batches, letters.vocab_size, letters)
