"""Datasets on the Hugging Face hub, streamed."""

from collections.abc import Iterator
from itertools import islice

from tutelage.data.readers import Row, opened
from tutelage.hub import check_reachable

MAX_DOCUMENTS = 20_000
"""A hub source stops here unless `max_documents` says otherwise: streams can be endless."""


def hub_rows(dataset: str, config: str | None = None, split: str = "train") -> Iterator[Row]:
    """The rows of a split of `dataset`. Raises UserError if it is missing or cannot be reached."""
    check_reachable(dataset, "dataset")
    from datasets import load_dataset

    return opened(f"hub:{dataset}", lambda: load_dataset(dataset, config, split=split, streaming=True))


def hub_sample(dataset: str, limit: int | None) -> Iterator[Row]:
    """The first `limit` rows of a dataset, or `MAX_DOCUMENTS`."""
    return islice(hub_rows(dataset), limit or MAX_DOCUMENTS)
