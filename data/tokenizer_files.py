"""What a folder that somebody published says of its tokenizer: `tokenizer.json` itself, and what stands around it.

transformers rebuilds a tokenizer from the name of its class and drops what the file says, so the file is read directly.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
from tokenizers import Tokenizer as Backend

from tutelage.errors import UserError

SPECIALS = ("eos_token", "bos_token", "pad_token", "unk_token")
RECORD = "tutelage"
"""Under this name the `tokenizer_config.json` that we write holds how texts begin and end."""
OLDER = ("tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
"""What older formats consist of, which transformers converts."""


class Source(NamedTuple):
    """A tokenizer as its files describe it."""

    backend: Backend
    specials: dict[str, str]
    chat_template: str | None
    prefix_ids: tuple[int, ...] = ()
    """What stands before a text."""
    end_ids: tuple[int, ...] = ()
    """What ends a generation, besides the end-of-text tokens."""
    document_end: int | None = None
    """What stands after a text; None: not said."""


def read_folder(directory: Path, *, ours: bool = False) -> Source:
    """Raises UserError if there is no tokenizer, a file is broken, or no end-of-text token is named.

    In a directory of ours that was written before texts had a beginning, they have none.
    """
    if not (directory / "tokenizer.json").is_file():
        tokenizer = _converted(directory)
        return _around(directory, tokenizer.backend_tokenizer, special_texts(tokenizer), None)
    backend = read_backend(directory / "tokenizer.json")
    config = read_json(directory / "tokenizer_config.json")
    record = config.get(RECORD, {})
    if ours:
        prefix, ends = tuple(record.get("prefix_ids", ())), tuple(record.get("end_ids", ()))
        specials = {name: text for name in SPECIALS if (text := _text(config.get(name)))}
        return Source(backend, specials, _template(directory, config), prefix, ends, record.get("document_end"))
    found = _around(directory, backend, {}, config.get("add_bos_token"))
    ends = (*found.end_ids, *record.get("end_ids", ()))
    return found._replace(end_ids=ends, document_end=record.get("document_end"))


def read_backend(path: Path) -> Backend:
    """A `tokenizer.json`. Raises UserError where the installed `tokenizers` cannot read it."""
    try:
        return Backend.from_file(str(path))
    except Exception as error:  # the Rust side raises bare Exception
        raise UserError(
            f"{path} is not a tokenizer that tokenizers {tokenizers.__version__} can read ({error}):"
            " it is damaged, or made by a newer version: pip install -U tokenizers"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; nothing where there is no file. Raises UserError for a broken one."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"'{path}' is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"'{path}' holds a {type(content).__name__}, not an object")
    return content


def special_texts(tokenizer: Any) -> dict[str, str]:
    """The special tokens of a transformers tokenizer."""
    return {name: str(text) for name in SPECIALS if (text := getattr(tokenizer, name, None))}


def prefix_of(backend: Backend) -> tuple[int, ...]:
    """The ids that a tokenizer's post-processor puts before a text."""
    encoding = backend.encode("a", add_special_tokens=True)
    before = next((n for n, special in enumerate(encoding.special_tokens_mask) if not special), 0)
    return tuple(encoding.ids[:before])


def _around(directory: Path, backend: Backend, known: Mapping[str, str], add_bos: bool | None) -> Source:
    """A backend with what the files beside it say: `known` where they are silent."""
    config = read_json(directory / "tokenizer_config.json")
    named = read_json(directory / "special_tokens_map.json")
    model = read_json(directory / "config.json")
    generation = read_json(directory / "generation_config.json") or model  # as transformers has it
    specials = {}
    for name in SPECIALS:
        text = _text(config.get(name)) or _text(named.get(name)) or known.get(name)
        ids = [*_ids(generation, f"{name}_id"), *_ids(model, f"{name}_id")]
        if text := text or next(filter(None, map(backend.id_to_token, ids)), None):
            specials[name] = text
    bos = backend.token_to_id(specials.get("bos_token", ""))
    # what the configuration says goes before what the post-processor does
    by_config = (bos,) if add_bos and bos is not None else ()
    prefix = prefix_of(backend) if add_bos is None else by_config
    return Source(backend, specials, _template(directory, config), prefix, tuple(_ids(generation, "eos_token_id")))


def _template(directory: Path, config: Mapping[str, Any]) -> str | None:
    """The chat template; of several the one called default."""
    file = directory / "chat_template.jinja"  # where newer transformers puts it
    template = file.read_text(encoding="utf-8") if file.is_file() else config.get("chat_template")
    if isinstance(template, list):
        named = {one.get("name"): one.get("template") for one in template if isinstance(one, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _text(token: Any) -> str | None:
    """A special token, given as a string or an object with `content`."""
    value = token.get("content") if isinstance(token, dict) else token
    return str(value) if value else None


def _ids(config: Mapping[str, Any], name: str) -> list[int]:
    """One id or several."""
    value = config.get(name)
    return [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, int)]


def _converted(directory: Path) -> Any:
    """A tokenizer in `vocab.json` or `tokenizer.model`, converted by transformers."""
    if not any((directory / name).is_file() for name in OLDER):
        raise UserError(f"no tokenizer in '{directory}': expected tokenizer.json")
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # every format fails in its own way
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"the tokenizer in '{directory}' cannot be read: {reason}") from error
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise UserError(f"tokenizer '{directory}' has no fast version: convert it to tokenizer.json with transformers")
    return tokenizer
