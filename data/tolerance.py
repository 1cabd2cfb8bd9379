"""How many unreadable rows a run puts up with."""

import logging

from tutelage.errors import UserError

logger = logging.getLogger(__name__)

PATIENCE = 100
"""More bad rows than this are judged at once instead of at the end of the source."""

LOGGED = 20
"""Bad rows that are logged one by one; the rest is only counted."""


class BadRows:
    """Counts the good and bad rows of one source and stops the run when too large a share is bad."""

    def __init__(self, source: str, max_share: float) -> None:
        self.source = source
        self.max_share = max_share
        self.good = 0
        self.bad = 0
        self.first = ""

    def accept(self) -> None:
        """Counts a row that was read."""
        self.good += 1

    def reject(self, origin: str, reason: str) -> None:
        """Counts and logs a row that was not. Raises UserError as `judge` does once patience is over."""
        self.bad += 1
        self.first = self.first or f"{origin}: {reason}"
        if self.bad <= LOGGED:
            logger.warning("skipped %s: %s", origin, reason)
        if self.bad > PATIENCE:
            self._check()

    def judge(self) -> None:
        """The verdict at the end of the source. Raises UserError naming the first bad row and the count."""
        self._check()
        if self.bad:
            logger.warning("skipped %d of %d rows of %s", self.bad, self.good + self.bad, self.source)

    def _check(self) -> None:
        rows = self.good + self.bad
        if self.bad > self.max_share * rows:
            raise UserError(
                f"{self.bad} of the first {rows} rows of '{self.source}' cannot be read, first {self.first}: "
                f"repair the data or allow more than --packing.max_bad_rows {self.max_share}"
            )
