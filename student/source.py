"""A model that a student starts from: a run or student of ours, a folder of transformers, or one on the hub."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch

from tutelage.data.tokenizer import Tokenizer
from tutelage.errors import UserError, unknown
from tutelage.hub import LOCAL, check_reachable, small_files, split_revision
from tutelage.runs import STUDENT, checkpoints, is_student, named
from tutelage.student.config import StudentConfig
from tutelage.student.huggingface import ARCHITECTURES, config_from_huggingface, from_huggingface
from tutelage.student.weights import Student, find_student, load_student, read_config

INITS = ("random", "embeddings", "layers")
"""Initial weights that need no source."""


@dataclass(frozen=True)
class _Place:
    """A folder, of ours or of transformers, or an id on the hub with its revision."""

    path: str
    revision: str | None = None

    @property
    def ours(self) -> bool:
        return is_student(Path(self.path))

    @property
    def on_hub(self) -> bool:
        return not Path(self.path).is_dir()


def read_shape(name: str) -> StudentConfig:
    """The shape of the model that `--student.init` names, from its config.json alone.

    Raises UserError where there is none, or our decoder has not its arithmetic.
    """
    with _said(name):
        place = _find(name)
        if place.ours:
            return read_config(Path(place.path))[0]
        from transformers import AutoConfig

        _check_folder(place)
        config = AutoConfig.from_pretrained(place.path, revision=place.revision, trust_remote_code=False).to_dict()
        if quantised := config.get("quantization_config"):
            method = quantised.get("quant_method", "of an unknown kind")
            raise UserError(f"its weights are quantised ({method}), and training needs whole ones: name the original")
        shape = config_from_huggingface(config)
        if shape is None:
            raise UserError(
                f"its arithmetic ({config.get('model_type')}) is not the student's: choose a model of"
                f" {', '.join(ARCHITECTURES)} with a plain activation and unscaled rotary positions"
            )
        return shape


def read_source(name: str) -> Student:
    """The model that `--student.init` names, in fp32 and in our arithmetic, and its tokenizer.

    Raises UserError where it cannot be read, lacks weights, or holds some that are not finite.
    """
    read_shape(name)  # whose errors are the clearer ones
    with _said(name):
        place = _find(name)
        source = load_student(place.path, dtype=torch.float32) if place.ours else _foreign(place)
        for weight, parameter in source.model.named_parameters():
            if not parameter.isfinite().all():
                raise UserError(f"{weight} holds NaN or infinity: name another model")
        return source


def _foreign(place: _Place) -> Student:
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(
        place.path,
        revision=place.revision,
        dtype=torch.float32,
        trust_remote_code=False,
        output_loading_info=True,
    )
    model, loading = loaded
    if absent := sorted(loading["missing_keys"]):  # left alone, transformers would draw these at random
        raise UserError(f"{len(absent)} of its weights are missing, such as {absent[0]}: fetch it again, and whole")
    folder = small_files(place.path, place.revision) if place.on_hub else Path(place.path)
    tokenizer = Tokenizer.from_directory(folder).within(len(model.get_output_embeddings().weight), place.path)
    decoder = from_huggingface(model, model.config.to_dict(), tokenizer.vocab_size)
    assert decoder is not None, "its shape was read"
    return Student(decoder, tokenizer)


def _find(name: str) -> _Place:
    """Raises UserError where there is nothing of that name, as far as it can be told here."""
    path, checkpoint = named(name)
    if path.is_dir():
        ours = checkpoint or checkpoints(path) or is_student(path) or is_student(path / STUDENT)
        return _Place(str(find_student(Path(name)) if ours else path))
    if path.is_file():
        raise UserError("it is a file: name the directory that a model lies in")
    model, revision = split_revision(name)
    if model.count("/") == 1 and not model.startswith((".", "/", "~")):
        return _Place(model, revision)
    if "/" in name:
        raise UserError("there is no such directory")
    raise UserError(f"{unknown('value', name, INITS)} (or a run, a model's directory, or ORG/NAME on the hub)")


def _check_folder(place: _Place) -> None:
    if place.on_hub:
        try:
            return check_reachable(place.path, revision=place.revision)
        except UserError as error:  # whose way out is a teacher's
            raise UserError(str(error).replace(LOCAL["model"], "name a directory or a run")) from error
    if (Path(place.path) / "adapter_config.json").is_file():
        raise UserError("it is a LoRA adapter: merge it into its model, and name that")
    if not (Path(place.path) / "config.json").is_file():
        raise UserError("it has no config.json: name a run, or the directory of a model")


@contextmanager
def _said(name: str) -> Iterator[None]:
    """Turns whatever is raised inside into a UserError that names the flag and its value."""
    try:
        yield
    except UserError as error:
        text = str(error)
        raise UserError(text if text.startswith("--student.init") else f"--student.init {name}: {text}") from error
    except Exception as error:  # transformers, tokenizers and safetensors raise dozens of kinds
        reason = shorten(f"{type(error).__name__}: {error}".rstrip(": "), 400, placeholder=" …")
        raise UserError(f"--student.init {name} cannot be read ({reason}): mend it, or name another model") from error
