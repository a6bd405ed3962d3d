"""Writing into the outcome log of the disk store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmrouter.stores._chunks import CHUNK_OUTCOMES

if TYPE_CHECKING:
    from llmrouter.domain.requests import Outcome
    from llmrouter.stores._rows import Rows


class LogWriter:
    """Adds outcomes to the log within one write transaction, a row for each `CHUNK_OUTCOMES`.

    Attributes:
        count: How many were added.
    """

    def __init__(self, rows: Rows, *, cancels: int = 0) -> None:
        """Begins after the last chunk.

        Args:
            rows: The store.
            cancels: 1 when the holder of the lease has to be told: its index has them as queued.
        """
        self._rows = rows
        self._cancels = cancels
        self._next = self.first = rows.counters()["chunks"]
        self._gathered: list[Outcome] = []
        self.count = 0

    def add(self, outcome: Outcome) -> tuple[int, int]:
        """Answers with where it stands: its place in a chunk, and the chunk's number."""
        if len(self._gathered) == CHUNK_OUTCOMES:
            self.flush()
        self._gathered.append(outcome)
        self.count += 1
        return len(self._gathered) - 1, self._next

    def flush(self) -> None:
        """Writes what was added. To be called at the end."""
        if self._gathered:
            self._next = self._rows.append_chunk(self._gathered, cancels=self._cancels) + 1
            self._gathered = []

    def numbers(self) -> range:
        """The chunks that were written."""
        return range(self.first, self._next)
