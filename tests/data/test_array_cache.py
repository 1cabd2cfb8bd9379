import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tutelage.data.array_cache import Arrays, cached, digest


def build() -> Arrays:
    return {"a": np.arange(5, dtype=np.int32), "empty": np.empty(0, np.int64)}


def fail() -> Arrays:
    raise AssertionError("built again")


def store(directory: Path) -> None:
    cached(directory, "k", build)


def test_built_once_then_mapped(tmp_path: Path) -> None:
    store(tmp_path)
    again = cached(tmp_path, "k", fail)
    assert isinstance(again["a"], np.memmap)
    assert again["a"].tolist() == [0, 1, 2, 3, 4]
    assert again["empty"].shape == (0,)
    assert [path.name for path in tmp_path.iterdir()] == ["k"]  # nothing is left aside


@pytest.mark.parametrize("damage", ["flip", "truncate", "missing", "manifest"])
def test_a_damaged_entry_is_built_again(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    store(tmp_path)
    file = tmp_path / "k" / ("manifest.json" if damage == "manifest" else "a.npy")
    content = file.read_bytes()
    flipped = content[:-1] + bytes([content[-1] ^ 1])
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(flipped if damage == "flip" else content[:-3])
    with caplog.at_level(logging.WARNING):
        assert cached(tmp_path, "k", build)["a"].tolist() == [0, 1, 2, 3, 4]
    assert "damaged" in caplog.text
    assert cached(tmp_path, "k", fail)["a"].tolist() == [0, 1, 2, 3, 4]


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="built again"):
        cached(tmp_path, "k", fail)
    assert list(tmp_path.iterdir()) == []


def test_without_a_directory_nothing_is_stored() -> None:
    assert cached(None, "k", build)["a"].tolist() == [0, 1, 2, 3, 4]


def test_two_writers_at_once(tmp_path: Path) -> None:
    def build_while_another_stores() -> Arrays:
        store(tmp_path)
        return build()

    assert cached(tmp_path, "k", build_while_another_stores)["a"].tolist() == [0, 1, 2, 3, 4]
    assert [path.name for path in tmp_path.iterdir()] == ["k"]


def test_an_entry_of_before_is_read_and_verified(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "k").mkdir()
    for name, array in build().items():
        np.save(tmp_path / "k" / f"{name}.npy", array)
    manifest = {name: digest(array) for name, array in build().items()}
    (tmp_path / "k" / "manifest.json").write_text(json.dumps(manifest))
    assert cached(tmp_path, "k", fail)["a"].tolist() == [0, 1, 2, 3, 4]
    np.save(tmp_path / "k" / "a.npy", np.arange(1, 6, dtype=np.int32))
    assert cached(tmp_path, "k", build)["a"].tolist() == [0, 1, 2, 3, 4]
    assert "a.npy does not match its hash" in caplog.text


def test_where_nothing_can_be_written_nothing_is_kept_and_it_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    for key in ("k", "l"):
        assert cached(Path("/proc/nobody"), key, build)["a"].tolist() == [0, 1, 2, 3, 4]
    [record] = caplog.records
    assert "/proc/nobody" in record.getMessage()
    assert "TUTELAGE_CACHE" in record.getMessage()


def test_digest_sees_type_shape_and_content() -> None:
    zero = np.zeros(4, np.int32)
    different: list[NDArray[Any]] = [
        zero,
        zero.astype(np.int64),
        zero.reshape(2, 2),
        np.array([0, 0, 0, 1], np.int32),
        zero[:0],
    ]
    assert len({digest(array) for array in different}) == len(different)
    assert digest(np.arange(6)[::2]) == digest(np.array([0, 2, 4]))
