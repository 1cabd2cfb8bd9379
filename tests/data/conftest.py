"""A small vocabulary for all tests of the data room, trained once on a few library files."""

import sysconfig
from pathlib import Path

import pytest

from tutelage.data.tokenizer import Tokenizer, train


@pytest.fixture(scope="session")
def library_texts() -> list[str]:
    folder = Path(sysconfig.get_path("stdlib"), "json")
    return [path.read_text() for path in sorted(folder.glob("*.py"))]


@pytest.fixture(scope="session")
def tokenizer(library_texts: list[str]) -> Tokenizer:
    return train(library_texts, 600)
