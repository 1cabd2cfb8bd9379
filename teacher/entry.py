"""A teacher before it is loaded: its sizes and what suits it, read from small files. Importing this costs nothing."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from tutelage.runs import FORMAT, is_student
from tutelage.teacher.gguf_file import read
from tutelage.teacher.preflight import ADAPTER, CONFIG, model_config

CODE = "mbpp,hub:DaniilOr/humanized_cleaned_code"
BYTES = {None: 2.0, "int8": 1.1, "nf4": 0.6}
"""What a parameter takes in memory, by how weights are packed; bf16 where they are not."""
GGUF = ".gguf"
"""How files that we unpack end."""
WIDTH = ("hidden_size", "n_embd", "d_model", "dim")
CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "seq_length")
"""Names that architectures give one thing."""


@dataclass(frozen=True)
class TeacherEntry:
    """Where a teacher comes from, its size, and the student and data that suit it."""

    source: str
    n_parameters: int
    d_model: int
    vocab_size: int
    download_bytes: int
    quantisation: str | None = None
    preset: str = "125m"
    data: str = CODE
    prompt_style: str | None = None
    """How benchmarks put problems to it; None: as its chat template says, if it has one."""
    context: int | None = None
    """Longest text it was made for, in tokens; None where that is not known yet."""
    revision: str | None = None
    """Branch, tag or commit of a model on the hub."""
    packaged: bool = False
    """Whether a package brings its weights."""
    ours: bool = False
    """Whether it is known to run in our own arithmetic, which packs no weights."""

    @property
    def memory_bytes(self) -> int:
        """Weights as they stand in memory: bf16, or packed in 8 or 4 bits."""
        return int(self.n_parameters * BYTES[self.quantisation])


def of_folder(name: str, folder: Path) -> TeacherEntry:
    """A student directory of ours, or a model of transformers. Raises UserError where it is no model."""
    config = model_config(name, folder)
    ours = config.get("format") == FORMAT
    text = config if ours else {**config, **_text_part(config)}
    weights = [*folder.glob("*.safetensors")] or [*folder.glob("*.bin")]
    full = ours or "float32" in (text.get("dtype"), text.get("torch_dtype"))
    return TeacherEntry(
        source=str(folder),
        n_parameters=sum(file.stat().st_size for file in weights) // (4 if full else 2),
        d_model=_first(text, WIDTH) or 0,
        vocab_size=text.get("vocab_size", 0),
        download_bytes=0,
        context=_first(text, CONTEXT),
        prompt_style="completion" if ours else None,
        ours=ours,
    )


def of_gguf(path: Path) -> TeacherEntry:
    """A `.gguf` file. Raises UserError where it is none."""
    file = read(path)
    return TeacherEntry(
        source=str(path),
        n_parameters=sum(prod(shape) for shape in file.shapes.values()),
        d_model=file.of_model("embedding_length") or 0,
        vocab_size=len(file.of_tokenizer("tokens") or ()),
        download_bytes=0,
        context=file.of_model("context_length"),
    )


def is_foreign(path: Path) -> bool:
    """Whether a path holds a model, or an adapter of one, that is not a student of ours."""
    if path.suffix == GGUF:
        return path.is_file()
    if (path / ADAPTER).is_file():
        return True
    return (path / CONFIG).is_file() and not is_student(path)


def _text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a model that sees or hears besides says of its text part."""
    part: Mapping[str, Any] = next(
        (config[key] for key in ("text_config", "llm_config") if isinstance(config.get(key), dict)), {}
    )
    return {key: value for key, value in part.items() if value is not None}


def _first(config: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    return next((value for name in names if isinstance(value := config.get(name), int)), None)
