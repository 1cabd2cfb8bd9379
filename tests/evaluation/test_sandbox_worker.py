"""The worker stands alone: it runs under `-I -S`, where nothing of ours can be imported."""

import ast
import sys
from pathlib import Path

WORKER = Path(__file__).parents[2] / "evaluation" / "sandbox_worker.py"


def test_it_imports_the_standard_library_alone():
    imported = set()
    for node in ast.walk(ast.parse(WORKER.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").split(".")[0])
    assert imported <= set(sys.stdlib_module_names)


def test_it_unpickles_and_evaluates_nothing_from_the_candidate():
    names = {node.id for node in ast.walk(ast.parse(WORKER.read_text())) if isinstance(node, ast.Name)}
    assert not names & {"pickle", "marshal", "eval"}
