"""What becomes of the requests of a batch, onto the state tables of the disk store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmrouter.domain.requests import Outcome, OutcomeKind, format_request_id, split_request_id
from llmrouter.stores._layout import from_us
from llmrouter.stores._table import CLAIMED, DELIVERED, GIVEN_UP, QUEUED, SETTLED, Table

if TYPE_CHECKING:
    from datetime import datetime

    from llmrouter.domain.batches import Answer, Batch
    from llmrouter.stores._backlog import Members
    from llmrouter.stores._log import LogWriter
    from llmrouter.stores._rows import Rows

_MOST_ATTEMPTS = 255


class Settlement:
    """Lets requests leave their batch, within a write transaction; `write` ends it.

    Attributes:
        requeued: Page and slot of those that wait again.
        repeated: Answers for requests that had left already.
        unknown: Answers for requests that were never in the batch.
    """

    def __init__(
        self, rows: Rows, members: Members, batch: Batch, number: int, log: LogWriter, now: datetime
    ) -> None:
        self._rows = rows
        self._members = members
        self._batch = batch
        self._number = number
        self._log = log
        self._now = now
        self._tables: dict[str, Table] = {}
        self.requeued: list[tuple[str, int]] = []
        self.repeated = 0
        self.unknown = 0

    def apply(self, answer: Answer) -> None:
        """Takes one answer in, or counts it when its request is not in the batch."""
        try:
            page, slot = split_request_id(answer.request_id)
        except ValueError:
            self.unknown += 1
            return
        if not self._members.includes(page, slot):
            self.unknown += 1
            return
        state, attempts, place, owner = self._table(page).get(slot)
        if (state, owner) != (CLAIMED, self._number):
            self.repeated += 1
        elif not answer.retry:
            self._end(page, slot, answer.kind, answer.raw, attempts + 1, self._batch.batch_id)
        elif place == GIVEN_UP:
            self._end(page, slot, OutcomeKind.CANCELED, b"", attempts + 1, self._batch.batch_id)
        else:
            self._requeue(page, slot, min(attempts + 1, _MOST_ATTEMPTS))

    def release(self, page: str, slot: int) -> None:
        """Lets a request go that the API never had."""
        _, attempts, place, _ = self._table(page).get(slot)
        if place == GIVEN_UP:
            self._end(page, slot, OutcomeKind.CANCELED, b"", attempts, None)
        else:
            self._requeue(page, slot, attempts)

    def write(self) -> None:
        """Writes what came of it."""
        self._log.flush()
        self._rows.write_tables(self._tables)

    def _table(self, page: str) -> Table:
        if page not in self._tables:
            self._tables[page] = self._rows.table(page)
        return self._tables[page]

    def _requeue(self, page: str, slot: int, attempts: int) -> None:
        self._table(page).put(slot, QUEUED, attempts, 0, 0)
        self.requeued.append((page, slot))

    def _end(
        self, page: str, slot: int, kind: OutcomeKind, raw: bytes, batches: int, batch_id: str | None
    ) -> None:
        """Writes the one outcome of a request; it had so many batches."""
        segment = self._members.segment(page, slot)
        outcome = Outcome(
            request_id=format_request_id(page, slot),
            kind=kind,
            latency=self._batch.latency,
            accepted_at=from_us(segment.accepted_us),
            deadline_at=from_us(segment.deadline_us),
            settled_at=self._now,
            attempts=batches,
            batch_id=batch_id,
            key=self._members.request_key(segment, slot),
            raw=raw,
        )
        place, number = self._log.add(outcome)
        table = self._table(page)
        table.put(slot, DELIVERED if outcome.withdrawn else SETTLED, table.get(slot)[1], place, number)
