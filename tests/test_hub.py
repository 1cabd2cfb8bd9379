"""`tutelage.hub`: what the hub can give, within seconds."""

import time
from typing import Any

import pytest

from tutelage.errors import UserError
from tutelage.hub import check_reachable

huggingface_hub = pytest.importorskip("huggingface_hub")


def answers(monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> list[tuple[str, str]]:
    """A hub that answers so, and a record of what it was asked."""
    asked = []

    def info(kind: str) -> Any:
        def answer(self: Any, name: str, timeout: float) -> None:
            assert timeout <= 10
            asked.append((kind, name))
            if error:
                raise error

        return answer

    for kind in ("model", "dataset"):
        monkeypatch.setattr(huggingface_hub.HfApi, f"{kind}_info", info(kind))
    return asked


def test_what_the_hub_has_is_within_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answers(monkeypatch)
    check_reachable("a/b")
    check_reachable("c/d", "dataset")
    assert asked == [("model", "a/b"), ("dataset", "c/d")]


def test_a_model_in_the_local_cache_needs_no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answers(monkeypatch, ConnectionError("gone"))
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda name, file: f"/cache/{name}/{file}")
    check_reachable("a/b")
    assert asked == []
    with pytest.raises(UserError):  # which is streamed from the hub in any case
        check_reachable("a/b", "dataset")


@pytest.mark.parametrize(("kind", "way"), [("model", "smollm2-135m"), ("dataset", "stdlib, site-packages")])
@pytest.mark.parametrize("error", [ConnectionError("no route\nto host"), TimeoutError()])
def test_without_an_answer_the_local_choices_are_named(
    kind: Any, way: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers(monkeypatch, error)
    with pytest.raises(UserError, match=rf"^cannot reach {kind} 'a/b'.*(no route|TimeoutError)\).*{way}[^\n]*$"):
        check_reachable("a/b", kind)


def test_out_of_reach_it_says_so_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://localhost:9")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://localhost:9")
    start = time.monotonic()
    with pytest.raises(UserError, match="cannot reach"):
        check_reachable("a/b")
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(("name", "kind"), [("a b/c", "model"), ("a b/c", "dataset"), ("a/b/c", "model")])
def test_a_name_that_cannot_be_one_is_not_blamed_on_the_network(name: str, kind: Any) -> None:
    with pytest.raises(UserError, match=f"no {kind} '{name}' on the hub"):
        check_reachable(name, kind)
