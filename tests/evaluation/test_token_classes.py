"""Classes of bytes, as somebody who reads the text would give them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.data.tokenizer import train
from tutelage.evaluation.token_classes import CLASSES, token_classes


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
        "if match:",
        "kk nnnnno",
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
        "n o .... .",
        "if e",
        ".. .",
    ],
    "begins in a string": [
        "the text goes on",
        "lll llll llll ll",
        '"""',
        "lll",
        'f(((x))) + """and here"""',
        "nooonooo o llllll lllllll",
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
