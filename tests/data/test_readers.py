import sys
from pathlib import Path

import pytest

from tutelage.data.readers import ROWS, Unreadable, column_texts, jsonl_rows, parquet_rows, python_files, text_file
from tutelage.errors import UserError


def test_jsonl_locates_bad_rows_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    deep = b"[" * 200_000
    path.write_bytes(b'\xef\xbb\xbf{"code": "a"}\n\n{broken\n{"code": "\xff"}\n' + deep + b'\n{"code": "b"}')
    rows = dict(jsonl_rows(path))
    assert list(rows) == [f"{path}:{line}" for line in (1, 3, 4, 5, 6)]
    assert rows[f"{path}:1"] == {"code": "a"}
    assert rows[f"{path}:6"] == {"code": "b"}
    wrong = [row.reason for row in rows.values() if isinstance(row, Unreadable)]
    assert len(wrong) == 3
    assert wrong[0].startswith("not JSON")
    offset = path.read_bytes().index(b"\xff", 3)
    assert wrong[1] == f"not UTF-8 at byte {offset} of the file"


@pytest.mark.parametrize(
    ("row", "value"),
    [({"text": "t", "code": "c"}, "c"), ({"code": "c", "content": "x"}, "x"), ({"text": "t", "id": 1}, "t")],
)
def test_default_column_is_the_first_of_content_code_text(row: dict[str, object], value: str) -> None:
    assert list(column_texts(iter([("o", row)]), None, "f")) == [("o", value)]


def test_no_usual_column_lists_those_there_are() -> None:
    with pytest.raises(
        UserError, match=r"f.jsonl has columns body, id but none of content, code, text.*f.jsonl:COLUMN"
    ):
        list(column_texts(iter([("o", {"body": "x", "id": 1})]), None, "f.jsonl"))


def test_a_row_without_the_column_is_unreadable() -> None:
    rows = column_texts(iter([("a", {"x": "t"}), ("b", {"y": "t"}), ("c", [1])]), "x", "f")
    values = [value for _, value in rows]
    assert values[0] == "t"
    assert values[1] == Unreadable("columns y but no 'x'")
    assert isinstance(values[2], Unreadable)


def test_text_file_names_the_byte_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes("\ufeffgrün".encode())
    assert [value for _, value in text_file(path)] == ["grün"]
    path.write_bytes(b"abc\xff")
    with pytest.raises(UserError, match=r"x\.txt is not UTF-8 at byte 3"):
        list(text_file(path))


def test_python_files_are_ordered_decoded_and_filtered(tmp_path: Path) -> None:
    (tmp_path / "b" / "tests").mkdir(parents=True)
    (tmp_path / ".venv").mkdir()
    (tmp_path / "b" / "z.py").write_bytes("# coding: latin-1\nx = 'ü'\n".encode("latin-1"))
    (tmp_path / "a.py").write_bytes(b"a = 1\r\n")
    (tmp_path / "bad.py").write_bytes(b"#\r\n#\r\nx = '\xff'\n")
    (tmp_path / "odd.py").write_bytes(b"# coding: no-such-codec\n")
    (tmp_path / "gone.py").symlink_to(tmp_path / "nowhere.py")
    for hidden in (".venv/v.py", "b/tests/t.py", "notes.md"):
        (tmp_path / hidden).write_text("left out")
    rows = dict(python_files(tmp_path, "root", skip=("tests",)))
    assert list(rows) == ["root/a.py", "root/b/z.py", "root/bad.py", "root/gone.py", "root/odd.py"]
    assert rows["root/a.py"] == "a = 1\n"
    assert rows["root/b/z.py"] == "# coding: latin-1\nx = 'ü'\n"
    assert isinstance(rows["root/bad.py"], Unreadable)
    assert rows["root/bad.py"].reason == "not utf-8 at byte 11"
    assert isinstance(rows["root/odd.py"], Unreadable)
    assert isinstance(rows["root/gone.py"], Unreadable)


def test_parquet_needs_no_cache_and_whatever_its_rows_are_comes_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow.parquet import ParquetWriter

    for module in ("datasets", "huggingface_hub"):
        monkeypatch.setitem(sys.modules, module, None)  # which would want somewhere to write
    texts = [f"x = {n}" for n in range(ROWS + 3)]
    columns = {
        "content": pa.array(texts).dictionary_encode(),
        "raw": [b"1"] * len(texts),
        "of": [{"a": 1}] * len(texts),
    }
    table = pa.table(columns)
    with ParquetWriter(tmp_path / "x.parquet", table.schema) as writer:
        for part in (table[:2], table[:0], table[2:]):
            writer.write_table(part)
    rows = list(parquet_rows(tmp_path / "x.parquet"))
    assert [row["content"] for _, row in rows] == texts  # type: ignore[index]
    assert rows[-1] == (f"{tmp_path}/x.parquet:{len(texts)}", {"content": texts[-1], "raw": b"1", "of": {"a": 1}})


def test_parquet_rows_and_a_corrupt_file(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    import pyarrow
    import pyarrow.parquet

    good, corrupt = tmp_path / "x.parquet", tmp_path / "bad.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"n": [1, 2], "code": ["a", "b"]}), good)
    corrupt.write_bytes(b"PAR1 this is not it")
    assert list(column_texts(parquet_rows(good), None, "x")) == [(f"{good}:1", "a"), (f"{good}:2", "b")]
    with pytest.raises(UserError, match=r"bad\.parquet cannot be read after row 0"):
        list(parquet_rows(corrupt))
