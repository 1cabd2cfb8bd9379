"""The Hugging Face hub: whether it can give a model or a dataset, told within seconds, and a model's small files."""

from pathlib import Path
from typing import Any, Literal

from tutelage.errors import UserError

PROBE_SECONDS = 5.0
LOCAL = {
    "model": "choose --teacher smollm2-135m (embedded) or a local directory",
    "dataset": "use a local source: stdlib, site-packages, or a path to .jsonl, .parquet, .txt or .py files",
}
"""What there is without the hub."""
SMALL_FILES = ["*.json", "*.model", "*.jinja", "*.txt", "tokenizer*", "vocab*", "merges*"]
"""Of a model: its configuration and its tokenizer."""


def split_revision(name: str) -> tuple[str, str | None]:
    """`NAME@REVISION` in its parts; what exists on disk is a name. Raises UserError where one part is empty."""
    base, at, revision = name.partition("@")
    if not at or Path(name).exists():
        return name, None
    if not (base and revision):
        raise UserError(f"'{name}': write NAME@REVISION, with a branch, a tag or a commit")
    return base, revision


def small_files(name: str, revision: str | None = None) -> Path:
    """The folder with the configuration and the tokenizer of a model on the hub, called like the commit they are of."""
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, revision=revision, allow_patterns=SMALL_FILES))


def check_reachable(
    name: str, kind: Literal["model", "dataset"] = "model", revision: str | None = None
) -> None:
    """Returns where the hub has `name` (at `revision`) and answers, or the local cache has a model of that name.

    The loaders alone retry for more than 20 seconds before they give up. Raises UserError naming the local choices.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    way = LOCAL[kind]
    nor_here = ", and no directory here is called so" if kind == "model" else ""
    at: dict[str, Any] = {"revision": revision} if revision else {}
    try:
        # a dataset is streamed from the hub whatever is in the cache
        if kind == "model" and isinstance(try_to_load_from_cache(name, "config.json", **at), str):
            return
        ask = HfApi().model_info if kind == "model" else HfApi().dataset_info
        ask(name, timeout=PROBE_SECONDS, **at)
    except GatedRepoError as error:
        raise UserError(f"{kind} '{name}' is gated: accept its terms on the hub and set HF_TOKEN, or {way}") from error
    except RevisionNotFoundError as error:
        raise UserError(f"{kind} '{name}' has no revision '{revision}' on the hub: name another") from error
    except (HFValidationError, RepositoryNotFoundError) as error:
        form = "write hub:ORG/NAME" if kind == "dataset" else way
        raise UserError(
            f"no {kind} '{name}' on the hub (or it is private: set HF_TOKEN){nor_here}: {form}"
        ) from error
    except Exception as error:  # the HTTP library, and so its errors, changes between versions of the hub's client
        reason = (str(error).splitlines() or [""])[0].rstrip(".") or type(error).__name__
        where = "on the hub, nor in the local cache" if kind == "model" else "on the hub"
        raise UserError(f"cannot reach {kind} '{name}' {where} ({reason}){nor_here}: {way}") from error
