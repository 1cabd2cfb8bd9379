from hashlib import blake2b

from hypothesis import given
from hypothesis import strategies as st

from tutelage.data.documents import Document, is_heldout, unique


@given(st.text(), st.floats(0.01, 0.99))
def test_split_depends_on_the_text_alone(text: str, fraction: float) -> None:
    key = int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")
    here, there = Document(text, "a.py"), Document(text, "b.jsonl:7")
    assert here.key == there.key == key
    assert is_heldout(here, fraction) == is_heldout(there, fraction) == (key < fraction * 2**64)


def test_split_holds_out_about_the_fraction_and_grows_with_it() -> None:
    documents = [Document(f"x = {n}", "") for n in range(5000)]
    small = {d.key for d in documents if is_heldout(d, 0.02)}
    large = {d.key for d in documents if is_heldout(d, 0.2)}
    assert 60 < len(small) < 140  # mean 100, four standard deviations
    assert 887 < len(large) < 1113
    assert small < large  # raising the fraction never trains on a document held out before


def test_duplicates_are_dropped_across_calls() -> None:
    seen: set[int] = set()
    first = list(unique([Document("a", "1"), Document("b", "2"), Document("a", "3")], seen))
    second = list(unique([Document("b", "4"), Document("c", "5")], seen))
    assert [document.origin for document in first + second] == ["1", "2", "5"]
