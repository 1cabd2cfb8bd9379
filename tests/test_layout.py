"""The plan of the house: who may import whom, and what stays quick."""

import ast
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("kernels", "data", "student", "teacher", "losses", "training", "evaluation")
COMMON = ("errors", "cli", "locks", "store", "files", "hub", "runs", "environment", "numbers")
TOKENIZER_FILES = {"data/tokenizer_files.py", "data/chat.py"}
TRANSFORMERS = {
    "student/source.py",
    "teacher/huggingface.py",
    "teacher/rowwise.py",
    "teacher/embedded.py",
    "teacher/gguf.py",
    "teacher/load_errors.py",
    "teacher/preflight.py",
    *TOKENIZER_FILES,
}


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names of everything a file imports, wherever the import stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level <= 1, "relative imports hide the room"  # those of one folder do not
            yield from (f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names)


def misplaced(room: str, text: str) -> list[str]:
    """Imports that this room may not make."""
    allowed = {*ROOMS[: ROOMS.index(room) + 1], *COMMON}
    found = []
    for name in imports(ast.parse(text)):
        head, _, rest = name.partition(".")
        if (head == "tutelage" and rest.split(".")[0] not in allowed) or head in ROOMS:
            found.append(name)
    return found


@pytest.mark.parametrize("path", sources(*ROOMS), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_only_from_rooms_before_it(path: Path) -> None:
    assert misplaced(path.relative_to(ROOT).parts[0], path.read_text()) == []


@pytest.mark.parametrize(
    ("room", "line", "bad"),
    [
        ("kernels", "from tutelage.data.batch import Batch", True),
        ("data", "def f():\n    import tutelage.training.config", True),
        ("data", "from tutelage import student", True),
        ("losses", "import kernels", True),
        ("losses", "from tutelage import cli\nfrom tutelage.kernels import reference", False),
    ],
)
def test_the_layering_check_sees_what_it_should(room: str, line: str, bad: bool) -> None:
    assert bool(misplaced(room, line)) == bad


def test_common_modules_import_no_room() -> None:
    for name in COMMON:
        text = (ROOT / "tutelage" / f"{name}.py").read_text()
        found = [x for x in imports(ast.parse(text)) if x.startswith("tutelage.")]
        assert all(x.split(".")[1] in COMMON for x in found), found


def top_level_imports(path: Path) -> set[str]:
    return {name for node in ast.parse(path.read_text()).body for name in _direct(node)}


def _direct(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, ast.ImportFrom | ast.Import):
        yield from imports(node)


def test_modules_do_not_import_in_a_circle() -> None:
    modules = {f"tutelage.{'.'.join(p.relative_to(ROOT).with_suffix('').parts)}": p for p in sources(*ROOMS)}
    graph = {
        name: {known for found in top_level_imports(path) for known in modules if f"{found}.".startswith(f"{known}.")}
        for name, path in modules.items()
    }
    assert sum(map(len, graph.values())) > 50, "the graph lost its edges"
    TopologicalSorter(graph).prepare()  # raises CycleError naming the circle


@pytest.mark.parametrize("room", ROOMS)
def test_each_room_is_a_relative_link_without_init(room: str) -> None:
    link = ROOT / "tutelage" / room
    assert link.is_symlink()
    assert os.readlink(link) == f"../{room}"
    assert not list((ROOT / room).rglob("__init__.py"))


def test_transformers_is_imported_only_where_it_must_be() -> None:
    scripts = [ROOT / "train.py", ROOT / "evaluate.py", *(ROOT / "tutelage").glob("*.py")]
    found = {
        str(path.relative_to(ROOT))
        for path in [*sources(*ROOMS), *scripts]
        if any(name.split(".")[0] == "transformers" for name in imports(ast.parse(path.read_text())))
    }
    assert "teacher/huggingface.py" in found
    assert found <= TRANSFORMERS


@pytest.mark.parametrize("path", sources("teacher", "losses", "training"), ids=lambda p: f"{p.parent.name}/{p.name}")
def test_every_module_has_a_test_of_its_name(path: Path) -> None:
    assert (ROOT / "tests" / path.parent.name / f"test_{path.name}").is_file()


def python(code: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT, **options
    )  # type: ignore[call-overload,no-any-return]


def test_the_rooms_hide_nobodys_package(tmp_path: Path) -> None:
    for name in ("kernels", "data"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("REAL = True\n")
    code = (
        f"import sys; sys.path[:1] = [{str(ROOT)!r}, {str(tmp_path)!r}]; import kernels, data; "
        "print(kernels.REAL and data.REAL)"
    )
    assert python(code).stdout == "True\n"


def test_transformers_can_be_imported_from_the_repository() -> None:
    done = python("import transformers; print(transformers.PretrainedConfig.__name__)")
    assert (done.returncode, done.stdout.endswith("Config\n")) == (0, True), done.stderr


def test_import_tutelage_is_light() -> None:
    heavy = "('torch', 'transformers', 'numpy', 'accelerate', 'jsonargparse')"
    done = python(f"import sys, tutelage; print([m for m in {heavy} if m in sys.modules], tutelage.__version__)")
    assert done.stdout.startswith("[] 0."), done.stderr


@pytest.mark.parametrize("script", ["train.py", "evaluate.py"])
def test_help_is_quick_and_needs_no_torch(script: str) -> None:
    command = [sys.executable, "-X", "importtime", script, "--help"]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT, check=True)
    seconds = time.perf_counter() - start
    modules = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "jsonargparse" in modules
    assert not modules & {"torch", "transformers", "datasets", "accelerate", "tokenizers"}
    assert "--config" in done.stdout
    assert seconds < 3


@pytest.fixture
def unlinked(tmp_path: Path) -> Path:
    """What git or an archive leaves on a system without links: small text files."""
    (tmp_path / "tutelage").mkdir()
    for path in (ROOT / "tutelage").iterdir():
        if path.is_symlink():
            (tmp_path / "tutelage" / path.name).write_text(os.readlink(path))
        elif path.suffix == ".py":
            shutil.copy(path, tmp_path / "tutelage")
    for script in ("train.py", "evaluate.py"):
        shutil.copy(ROOT / script, tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "command", ["train.py --help", "evaluate.py --humaneval", "-m tutelage doctor", "-c import\u00a0tutelage"]
)
def test_a_copy_without_links_says_what_to_do(unlinked: Path, command: str) -> None:
    argv = [sys.executable, *(part.replace("\u00a0", " ") for part in command.split(" "))]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, cwd=unlinked, env=environment)
    assert (done.returncode, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    assert line.startswith("error: tutelage/kernels")
    assert "git config core.symlinks true" in line


@pytest.mark.parametrize("module", ["tutelage.evaluation.sandbox.pool", "tutelage.locks", "tutelage.cli"])
def test_what_only_unix_has_is_not_imported_early(module: str) -> None:
    code = "import sys; sys.modules |= dict.fromkeys(('fcntl', 'resource', 'pwd', 'grp', 'termios'))\n"
    assert python(f"{code}import {module}").stderr == ""


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("train.py --help", "--config"),
        # psutil wants `resource` on Linux, and does without it elsewhere
        (
            "fcntl train.py --dry_run --steps 2 --data {data} --teacher {teacher} --device cpu --student.preset nano"
            " --packing.seq_len 64",
            "tokens",
        ),
        ("evaluate.py --help", "--config"),
        ("-m tutelage doctor --json", '"locks"'),
    ],
)
def test_no_unix_no_hindrance(command: str, said: str, tmp_path: Path, text_dir: Path, teacher_dir: Path) -> None:
    words = command.format(data=text_dir, teacher=teacher_dir).split()
    argv = [sys.executable, *words[words[0] == "fcntl" :]]
    for module in ("fcntl",) if words[0] == "fcntl" else ("fcntl", "resource"):
        (tmp_path / f"{module}.py").write_text(f"raise ModuleNotFoundError({f'No module named {module!r}'!r})\n")
    environment = {
        **os.environ,
        "PYTHONPATH": f"{tmp_path}:{ROOT}",
        "HF_HUB_OFFLINE": "1",
        "TUTELAGE_CACHE": str(tmp_path),
    }
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("script", ["train", "evaluate"])
def test_a_script_does_nothing_on_import(script: str, tmp_path: Path) -> None:
    code = f"import os, sys; sys.path.insert(0, {str(ROOT)!r}); os.chdir({str(tmp_path)!r}); import {script}; "
    done = python(code + "print('torch' in sys.modules, os.listdir())")
    assert (done.stdout, done.stderr) == ("False []\n", "")


def test_the_three_public_functions_exist() -> None:
    import tutelage

    assert all(callable(getattr(tutelage, name)) for name in tutelage.__all__)
    with pytest.raises(AttributeError, match="nothing_here"):
        _ = tutelage.nothing_here
