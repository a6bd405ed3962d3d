"""Writing into the outcome log of the disk store, and into the tally of what came of all requests."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC
from typing import TYPE_CHECKING

from llmrouter.domain.ledger import ClassTally, count_outcomes, count_paid, count_warm_up
from llmrouter.stores._chunks import CHUNK_OUTCOMES

if TYPE_CHECKING:
    from datetime import datetime
    from decimal import Decimal

    from llmrouter.domain.cache_use import CacheUse
    from llmrouter.domain.ledger import Tally
    from llmrouter.domain.requests import Outcome
    from llmrouter.stores._rows import Rows


class LogWriter:
    """Adds outcomes to the log within one write transaction, a row for each `CHUNK_OUTCOMES`.

    Attributes:
        count: How many were added.
    """

    def __init__(self, rows: Rows) -> None:
        """Begins after the last chunk."""
        self._rows = rows
        self._cancels = 0
        self._next = self.first = rows.counters()["chunks"]
        self._gathered: list[Outcome] = []
        self._tally: Tally | None = None
        self.count = 0

    def add(self, outcome: Outcome, *, was_queued: bool = False) -> tuple[int, int]:
        """Answers with where it stands: its place in a chunk, and the chunk's number.

        Args:
            outcome: Of a request that has none.
            was_queued: Whether the holder of the lease has to be told: its index has it as queued.
        """
        if len(self._gathered) == CHUNK_OUTCOMES:
            self._write_chunk()
        self._gathered.append(outcome)
        if was_queued:
            self._cancels = 1
        self.count += 1
        return len(self._gathered) - 1, self._next

    def add_wasted(self, latency: str, count: int) -> None:
        """Counts answers that came second."""
        if count:
            tally = self._of(latency)
            self._put(latency, replace(tally, wasted=tally.wasted + count))

    def add_resent(self, latency: str, count: int) -> None:
        """Counts live calls that are made again."""
        if count:
            tally = self._of(latency)
            self._put(latency, replace(tally, resent=tally.resent + count))

    def add_paid(self, latency: str, at: datetime, paid_usd: Decimal) -> None:
        """Counts the price of a live call."""
        self._put(latency, count_paid(self._of(latency), at.astimezone(UTC).date(), paid_usd))

    def add_warm_up(self, latency: str, use: CacheUse, at: datetime, paid_usd: Decimal | None) -> None:
        """Counts a live call that warmed the prompt cache."""
        day = at.astimezone(UTC).date()
        self._put(latency, count_warm_up(self._of(latency), use, day, paid_usd))

    def flush(self) -> None:
        """Writes what was added. To be called at the end."""
        self._write_chunk()
        if self._tally is not None:
            self._rows.write_tally(self._tally)

    def numbers(self) -> range:
        """The chunks that were written."""
        return range(self.first, self._next)

    def _write_chunk(self) -> None:
        if self._gathered:
            self._next = self._rows.append_chunk(self._gathered, cancels=self._cancels) + 1
            earlier = self._rows.tally() if self._tally is None else self._tally
            counted = count_outcomes(earlier, self._gathered)
            if counted is not earlier:
                self._tally = counted
            self._gathered, self._cancels = [], 0

    def _of(self, latency: str) -> ClassTally:
        if self._tally is None:
            self._tally = self._rows.tally()
        return self._tally.get(latency, ClassTally())

    def _put(self, latency: str, tally: ClassTally) -> None:
        self._tally = {**(self._tally or {}), latency: tally}
