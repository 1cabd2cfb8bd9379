"""The helper and what it forks stand alone: they run under `-I -S`, where nothing of ours can be imported."""

import ast
import sys
from pathlib import Path

import pytest

from tutelage.evaluation.sandbox import helper

FILES = [path for path in Path(helper.__file__).parent.glob("*.py") if path.name != "pool.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_it_imports_the_standard_library_and_its_neighbours_alone(path):
    imported, neighbours = set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            neighbours |= {node.module} if node.module else {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.split(".")[0])
    assert imported <= set(sys.stdlib_module_names)
    assert neighbours <= {file.stem for file in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_it_unpickles_and_evaluates_nothing(path):
    names = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
    assert len(FILES) == 5
    assert not names & {"pickle", "marshal", "eval"}
