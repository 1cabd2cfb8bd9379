"""What training tests share: a small vocabulary, teacher and text made in a second, and a cache of their own."""

import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is first imported, and what follows may do so

from tutelage.data.config import PackingConfig
from tutelage.data.tokenizer import Tokenizer, train
from tutelage.student.config import StudentConfig, StudentOptions
from tutelage.student.decoder import Decoder
from tutelage.student.weights import save_student
from tutelage.training.config import OptimConfig, RunConfig

ROOT = Path(__file__).resolve().parents[1]
VOCABULARY = 600
HF_SHAPE: dict[str, Any] = {
    "vocab_size": 600,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--resume", action="store_true", help="leave out long tests that passed at this commit")


def _passed() -> Path:
    """Where the long tests are noted that passed at this commit."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=ROOT, check=False).stdout
    return ROOT / ".pytest_cache" / f"long-{commit.strip() or 'unknown'}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--resume") and _passed().exists():
        done = set(_passed().read_text().splitlines())
        items[:] = [item for item in items if item.nodeid not in done]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" and report.passed and "long" in report.keywords:
        _passed().parent.mkdir(exist_ok=True)
        with _passed().open("a") as file:  # at once: who stops the run loses nothing
            file.write(f"{report.nodeid}\n")


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def text_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dozen short Python files."""
    folder = tmp_path_factory.mktemp("text")
    library = Path(sysconfig.get_path("stdlib"))
    for number, path in enumerate(sorted([*library.glob("json/*.py"), *library.glob("importlib/*.py")])):
        (folder / f"{number:02}.py").write_text(path.read_text()[:6000])
    return folder


@pytest.fixture(scope="session")
def tokenizer(text_dir: Path) -> Tokenizer:
    return train([path.read_text() for path in sorted(text_dir.glob("*.py"))], VOCABULARY)


@pytest.fixture(scope="session")
def letters() -> Tokenizer:
    """Every byte is a token, and no two are one."""
    return train(["ab"], 257)


@pytest.fixture(scope="session")
def teacher_decoder() -> Decoder:
    """A teacher with opinions: its logits spread over a few nats."""
    torch.manual_seed(1)
    shape = StudentConfig(
        vocab_size=VOCABULARY, n_layers=2, n_heads=4, n_kv_heads=2, d_model=64, d_ff=128, max_seq_len=256
    )
    decoder = Decoder(shape)
    torch.nn.init.normal_(decoder.embed_tokens.weight, std=0.2)
    return decoder.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def teacher_dir(tmp_path_factory: pytest.TempPathFactory, teacher_decoder: Decoder, tokenizer: Tokenizer) -> Path:
    """The teacher as a directory that `--teacher` accepts."""
    folder = tmp_path_factory.mktemp("teacher")
    save_student(teacher_decoder, tokenizer, folder)
    return folder


@pytest.fixture(scope="session")
def save_model(tokenizer: Tokenizer) -> Callable[..., Path]:
    """Writes a transformers model and the small tokenizer as a checkpoint directory."""

    def save(model: Any, folder: Path) -> Path:
        for parameter in model.parameters():  # the default's logits are nearly flat, and biases and norms are trivial
            torch.nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.1)
        model.bfloat16().save_pretrained(folder)
        tokenizer.save(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def llama_dir(tmp_path_factory: pytest.TempPathFactory, save_model: Callable[..., Path]) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return save_model(LlamaForCausalLM(LlamaConfig(**HF_SHAPE, rope_theta=5e4)), tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def cache(cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`$TUTELAGE_CACHE`, away from the user's own."""
    monkeypatch.setenv("TUTELAGE_CACHE", str(cache_dir))
    return cache_dir


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Tiny matrices are not worth a second thread, least of all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def make_config(
    teacher_dir: Path, text_dir: Path, tmp_path: Path, cache: Path, one_thread: None
) -> Callable[..., RunConfig]:
    """Configurations of tiny runs, into `tmp_path/run`, with any field set otherwise."""
    base = RunConfig(
        teacher=str(teacher_dir),
        data=str(text_dir),
        batch_size=4,
        steps=4,
        precision="fp32",
        output_dir=str(tmp_path / "run"),
        log_every=1,
        eval_rows=4,
        tracker="none",
        student=StudentOptions(preset="nano"),
        optim=OptimConfig(lr=1e-2, warmup_steps=2),
        packing=PackingConfig(seq_len=32, heldout=0.2),
    )
    return lambda **fields: replace(base, **fields)


@pytest.fixture
def tiny_flags(teacher_dir: Path, text_dir: Path) -> list[str]:
    """The same run as a command line, without its output directory."""
    text = (
        f"--teacher {teacher_dir} --data {text_dir} --batch_size 4 --steps 4 --log_every 1 --eval_rows 4"
        " --tracker none --student.preset nano --optim.lr 1e-2 --optim.warmup_steps 2 --packing.seq_len 32"
        " --packing.heldout 0.2"
    )
    return text.split()


@pytest.fixture
def script_env(cache_dir: Path) -> dict[str, str]:
    return {**os.environ, "TUTELAGE_CACHE": str(cache_dir), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@pytest.fixture
def run_script(script_env: dict[str, str], tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `python SCRIPT FLAGS…` in a process of its own, in `tmp_path`."""

    def run(script: str, *flags: Any, **options: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / script), *map(str, flags)]
        options = {"cwd": tmp_path, "env": script_env, "timeout": 120, **options}
        return subprocess.run(command, capture_output=True, text=True, check=False, **options)

    return run
