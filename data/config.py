"""What the user may choose about the text: the `packing` part of the run configuration."""

from dataclasses import dataclass

from jsonargparse.typing import PositiveFloat, PositiveInt

from tutelage.errors import UserError


@dataclass(frozen=True)
class PackingConfig:
    """How documents are read, split and laid out in rows."""

    seq_len: PositiveInt = 512
    """Tokens per row. Longer documents continue in the next row, without their earlier context."""

    heldout: float = 0.02
    """Fraction of documents kept out of training, chosen by a hash of their text (0 < heldout < 1)."""

    max_documents: PositiveInt | None = None
    """Read at most this many documents from each source; hub sources stop at 20,000 unless told."""

    max_document_mb: PositiveFloat = 10.0
    """A longer document is an unreadable row: tokenising takes about a hundred times its size in memory."""

    max_bad_rows: float = 0.01
    """Share of unreadable rows or files in a source that is skipped with a warning instead of stopping."""

    def __post_init__(self) -> None:
        if not 0 < self.heldout < 1:
            raise UserError(f"--packing.heldout {self.heldout} must lie between 0 and 1, e.g. 0.02")
        if not 0 <= self.max_bad_rows <= 1:
            raise UserError(f"--packing.max_bad_rows {self.max_bad_rows} must be a share from 0 to 1, e.g. 0.01")
