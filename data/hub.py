"""Datasets on the Hugging Face hub, streamed; when the hub is out of reach, say so within seconds."""

from collections.abc import Iterator
from itertools import islice

from tutelage.data.readers import Row, opened
from tutelage.errors import UserError

MAX_DOCUMENTS = 20_000
"""A hub source stops here unless `max_documents` says otherwise: streams can be endless."""

PROBE_SECONDS = 5.0


def hub_rows(dataset: str, config: str | None = None, split: str = "train") -> Iterator[Row]:
    """The rows of a split of `dataset`. Raises UserError if it is missing or cannot be reached."""
    _check_reachable(dataset)
    from datasets import load_dataset

    return opened(f"hub:{dataset}", lambda: load_dataset(dataset, config, split=split, streaming=True))


def hub_sample(dataset: str, limit: int | None) -> Iterator[Row]:
    """The first `limit` rows of a dataset, or `MAX_DOCUMENTS`."""
    return islice(hub_rows(dataset), limit or MAX_DOCUMENTS)


def _check_reachable(dataset: str) -> None:
    """One small request. `load_dataset` alone retries for more than 20 seconds before it gives up."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    try:
        HfApi().dataset_info(dataset, timeout=PROBE_SECONDS)
    except (HFValidationError, RepositoryNotFoundError) as error:
        raise UserError(f"no dataset '{dataset}' on the hub (or it is private): write hub:ORG/NAME") from error
    except Exception as error:  # the HTTP library, and so its errors, changes between hub versions
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"cannot reach dataset '{dataset}' on the hub ({reason}): "
            "use a local source: stdlib, site-packages, or a path to .jsonl, .parquet, .txt or .py files"
        ) from error
