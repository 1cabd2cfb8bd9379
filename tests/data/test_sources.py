import json
import logging
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from tutelage.data.config import PackingConfig
from tutelage.data.sources import Source, parse_sources, read
from tutelage.errors import UserError

Make = Callable[[str, bytes], str]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def write(name: str, content: bytes) -> str:
        (tmp_path / name).write_bytes(content)
        return str(tmp_path / name)

    return write


def texts(name: str, **options: float) -> list[str]:
    return [document.text for document in read(name, PackingConfig(**options))]


def test_names_and_weights() -> None:
    assert parse_sources("stdlib, mbpp=3,hub:a/b:code=0.5") == [
        Source("stdlib", 1.0),
        Source("mbpp", 3.0),
        Source("hub:a/b:code", 0.5),
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("stdlb", "unknown data source 'stdlb': did you mean 'stdlib'?"),
        ("zzz", "choose one of .*stdlib"),
        ("", "no data source in ''"),
        ("stdlib,stdlib=2", "'stdlib' is named twice"),
        ("stdlib=0", "weight '0' of data source 'stdlib' must be a positive number"),
        ("stdlib=-1", "weight '-1'"),
        ("stdlib=nan", "weight 'nan'"),
        ("stdlib=inf", "weight 'inf'"),
        ("stdlib=much", "weight 'much'"),
        ("org/name", r"no such file or directory: 'org/name'.*hub:org/name"),
        ("nowhere.jsonl", "no such file: 'nowhere.jsonl'"),
        ("nowhere.parquet:code", "no such file: 'nowhere.parquet'"),
        ("mbpp:nowhere.jsonl", "no such file: 'nowhere.jsonl'"),
    ],
)
def test_bad_names_are_one_clear_line(given: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse_sources(given)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_used(make: Make, tmp_path: Path) -> None:
    for name, content, message in [
        ("x.jsonl", b"", "is empty"),
        ("x.txt", b"", "is empty"),
        ("y.txt", b" \n\n", "no documents in"),
        ("x.csv", b"a,b", r"cannot read .*known are \.jsonl, \.parquet, \.txt and directories"),
        ("z.txt", b"ok\xfe", r"z\.txt is not UTF-8 at byte 2"),
    ]:
        with pytest.raises(UserError, match=message):
            texts(make(name, content))
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="no documents in"):
        texts(str(tmp_path / "folder"))


def test_jsonl_columns(make: Make) -> None:
    path = make("x.jsonl", b'{"code": "a", "body": "A"}\n{"code": "", "body": "B"}\n')
    assert texts(path) == ["a"]  # a blank text is no document
    assert texts(f"{path}:body") == ["A", "B"]
    with pytest.raises(UserError, match=r"columns code, body but no 'nope'"):
        texts(f"{path}:nope")


def test_bad_rows_are_skipped_up_to_the_share(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    rows = [json.dumps({"code": f"x = {n}"}) for n in range(98)]
    rows[10:10] = ["{broken", '{"code": 7}']
    path = make("x.jsonl", "\n".join(rows).encode())
    with caplog.at_level(logging.WARNING):
        assert len(texts(path, max_bad_rows=0.02)) == 98
    assert f"{path}:11: not JSON" in caplog.text
    assert f"{path}:12: a int where a text was expected" in caplog.text
    with pytest.raises(UserError, match=r"2 of the first 100 rows.*x\.jsonl:11: not JSON"):
        texts(path, max_bad_rows=0.01)


def test_half_a_surrogate_pair_is_a_bad_row(make: Make) -> None:
    with pytest.raises(UserError, match="lone surrogate at character 1"):
        texts(make("x.jsonl", b'{"code": "a\\ud800"}\n'))


def test_undecodable_files_in_a_directory_are_counted(make: Make, tmp_path: Path) -> None:
    make("a.py", b"a = 1\n")
    make("b.py", b"b = '\xff'\n")
    assert texts(str(tmp_path), max_bad_rows=0.5) == ["a = 1\n"]
    with pytest.raises(UserError, match=r"1 of the first 2 rows.*b\.py"):
        texts(str(tmp_path))


def test_max_documents(make: Make) -> None:
    path = make("x.jsonl", b"".join(b'{"code": "%d"}\n' % n for n in range(9)))
    assert texts(path, max_documents=4) == list("0123")


def test_the_standard_library_without_its_tests() -> None:
    documents = list(read("stdlib", PackingConfig()))
    origins = [document.origin for document in documents]
    assert "stdlib/json/decoder.py" in origins
    assert [Path(origin) for origin in origins] == sorted(Path(origin) for origin in origins)
    left_out = {"test", "tests", "idle_test", "site-packages", "dist-packages"}
    assert not any(left_out & set(origin.split("/")) for origin in origins)
    assert [d.key for d in read("stdlib", PackingConfig(max_documents=40))] == [d.key for d in documents[:40]]


def test_site_packages_hold_what_is_installed() -> None:
    documents = read("site-packages", PackingConfig(max_documents=20))
    assert all(document.origin.startswith("site-packages/") for document in documents)


def test_a_row_of_100_mb_is_skipped_and_named_in_little_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "rows.jsonl"
    with path.open("w") as file:
        for number in range(120):
            file.write(json.dumps({"content": f"x = {number}"}) + "\n")
        file.write('{"content": "' + "y = 1\\n" * (100_000_000 // 6) + '"}\n')
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = list(read(str(path), PackingConfig()))
    assert len(found) == 120
    assert "rows.jsonl:121: 100 MB, more than --packing.max_document_mb 10" in caplog.text
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2 * 2**20  # KiB
    with pytest.raises(UserError, match="1 of the first 121 rows"):
        list(read(str(path), PackingConfig(max_bad_rows=0.001)))


def test_a_run_is_not_taken_for_text(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints" / "step-5").mkdir(parents=True)
    with pytest.raises(UserError, match=r"run' is a run, not text: .*--resume .*--teacher"):
        parse_sources(str(tmp_path / "run"))
