from collections.abc import Iterator
from typing import Any

import pytest

from tutelage.data import hub
from tutelage.errors import UserError

datasets = pytest.importorskip("datasets")
huggingface_hub = pytest.importorskip("huggingface_hub")


@pytest.fixture
def reachable(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """A hub that knows every dataset, and a record of what was opened."""
    calls: list[tuple[Any, ...]] = []

    def load_dataset(name: str, config: str | None, **options: Any) -> Iterator[dict[str, str]]:
        calls.append((name, config, options))
        return ({"code": f"x = {n}"} for n in range(50))

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda self, name, timeout: None)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


def test_rows_are_streamed_and_limited(reachable: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    rows = list(hub.hub_sample("a/b", 3))
    assert rows == [(f"hub:a/b:{n}", {"code": f"x = {n - 1}"}) for n in (1, 2, 3)]
    assert reachable == [("a/b", None, {"split": "train", "streaming": True})]
    monkeypatch.setattr(hub, "MAX_DOCUMENTS", 7)
    assert len(list(hub.hub_sample("a/b", None))) == 7


def test_out_of_reach_the_local_sources_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://localhost:9")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://localhost:9")
    with pytest.raises(UserError, match=r"cannot reach dataset 'a/b'.*stdlib, site-packages"):
        list(hub.hub_rows("a/b"))


def test_a_name_that_cannot_be_a_dataset() -> None:
    with pytest.raises(UserError, match=r"no dataset 'a b/c' on the hub.*hub:ORG/NAME"):
        list(hub.hub_rows("a b/c"))


def test_a_stream_that_breaks_is_one_clear_line(
    reachable: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Iterator[dict[str, str]]:
        yield {"code": "x"}
        raise ConnectionError("gone\ndetails")

    monkeypatch.setattr(datasets, "load_dataset", broken)
    with pytest.raises(UserError, match=r"^hub:a/b cannot be read after row 1: gone$"):
        list(hub.hub_rows("a/b"))
