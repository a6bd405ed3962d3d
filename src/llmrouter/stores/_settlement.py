"""What becomes of the requests of a batch, onto the state tables of the disk store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmrouter.domain.requests import Outcome, OutcomeKind, format_request_id, split_request_id
from llmrouter.stores._layout import from_us
from llmrouter.stores._table import CALLED, CLAIMED, DELIVERED, ENDED, GIVEN_UP, QUEUED, SETTLED, Table

if TYPE_CHECKING:
    from datetime import datetime

    from llmrouter.domain.batches import Answer, Batch
    from llmrouter.stores._batch_rows import StoredBatch
    from llmrouter.stores._layout import Segment
    from llmrouter.stores._log import LogWriter
    from llmrouter.stores._members import Members
    from llmrouter.stores._rows import Rows

_MOST_ATTEMPTS = 255


class Settlement:
    """Lets requests leave their batch, within a write transaction; `write` ends it.

    Attributes:
        requeued: Page and slot of those that wait again.
        unqueued: Page and slot of those that waited, and got their outcome.
        repeated: Answers for requests that had left already.
        wasted: Successes among them for which the request has an outcome of another's.
        unknown: Answers for requests that were never in the batch.
        called: Those that wait again although a live call for them began: nobody knows its answer.
    """

    def __init__(
        self, rows: Rows, members: Members, stored: StoredBatch, number: int, log: LogWriter, now: datetime
    ) -> None:
        self._rows = rows
        self._members = members
        self._batch = stored.batch
        self._escalated = stored.escalated
        self._number = number
        self._log = log
        self._now = now
        self._tables: dict[str, Table] = {}
        self._segments: dict[str, dict[int, Segment]] = {}
        self._last: Segment | None = None
        self._instants = now, now
        self.requeued: list[tuple[str, int]] = []
        self.unqueued: list[tuple[str, int]] = []
        self.repeated = 0
        self.wasted = 0
        self.unknown = 0
        self.called = 0

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
            self._apply_late(answer, page, slot)
        elif not answer.retry:
            segment = self._members.segment(page, slot)
            self._end(segment, slot, answer.kind, answer.raw, attempts, self._batch)
        elif place & GIVEN_UP:
            self._cancel(page, slot, attempts, self._batch)
        else:
            self._requeue(page, slot, min(attempts + 1, _MOST_ATTEMPTS))

    def release(self, page: str, slot: int) -> None:
        """Lets a request go that the API never had."""
        _, attempts, place, _ = self._table(page).get(slot)
        if place & GIVEN_UP:
            self._cancel(page, slot, attempts, None)
        else:
            self.called += bool(place & CALLED)
            self._requeue(page, slot, attempts)

    def begin(self, page: str, slot: int) -> bool | None:
        """Notes that a live call for a request begins.

        Returns:
            Whether one had begun; None when there is to be none: it has left, or ends as canceled.
        """
        table = self._table(page)
        state, attempts, place, owner = table.get(slot)
        if (state, owner) != (CLAIMED, self._number):
            return None
        if place & GIVEN_UP:
            self._cancel(page, slot, attempts, None)
            return None
        table.put(slot, CLAIMED, attempts, place | CALLED, owner)
        return bool(place & CALLED)

    def end_call(self, page: str, slot: int) -> None:
        """Takes that back."""
        table = self._table(page)
        state, attempts, place, owner = table.get(slot)
        if (state, owner) == (CLAIMED, self._number):
            table.put(slot, CLAIMED, attempts, place & ~CALLED, owner)

    def write(self) -> None:
        """Writes what came of it."""
        self._log.flush()
        self._rows.write_tables(self._tables)

    def _apply_late(self, answer: Answer, page: str, slot: int) -> None:
        """Takes in an answer for a request that has left the batch."""
        state, attempts, place, number = self._table(page).get(slot)
        moved = None if answer.retry or not self._escalated else self._moved(page, slot)
        if moved is not None:
            self._end(moved, slot, answer.kind, answer.raw, attempts, self._batch)
            if state == QUEUED:
                self.unqueued.append((page, slot))
            return
        self.repeated += 1
        # What is not in the log yet is this batch's own.
        if state in ENDED and number < self._log.first and _is_paid(answer):
            self.wasted += self._rows.chunk(number).batch_id(place) != self._batch.batch_id

    def _table(self, page: str) -> Table:
        if page not in self._tables:
            self._tables[page] = self._rows.table(page)
        return self._tables[page]

    def _requeue(self, page: str, slot: int, attempts: int) -> None:
        self._table(page).put(slot, QUEUED, attempts, 0, 0)
        self.requeued.append((page, slot))

    def _cancel(self, page: str, slot: int, attempts: int, batch: Batch | None) -> None:
        self._end(self._members.segment(page, slot), slot, OutcomeKind.CANCELED, b"", attempts, batch)

    def _moved(self, page: str, slot: int) -> Segment | None:
        """The segment of a request that was taken out of the batch; None when it has its outcome.

        An index that was built since then knows nothing of that. The state of one that was pruned says the
        same as that of one that waits, but its body is gone.
        """
        if page not in self._segments:
            table = self._table(page)
            slots = [
                one
                for start, stop in self._escalated.get(page, ())
                for one, state in enumerate(table.states(start, stop), start)
                if state in (QUEUED, CLAIMED)
            ]
            self._segments[page] = {one: segment for segment, one in self._rows.locate(page, slots)}
        return self._segments[page].pop(slot, None)

    def _end(
        self, segment: Segment, slot: int, kind: OutcomeKind, raw: bytes, attempts: int, batch: Batch | None
    ) -> None:
        """Writes the one outcome of a request, of a batch or of none, after so many attempts."""
        if segment is not self._last:
            self._last = segment
            self._instants = from_us(segment.accepted_us), from_us(segment.deadline_us)
        accepted_at, deadline_at = self._instants
        outcome = Outcome(
            request_id=format_request_id(segment.page, slot),
            kind=kind,
            latency=self._batch.latency,
            accepted_at=accepted_at,
            deadline_at=deadline_at,
            settled_at=self._now,
            attempts=attempts if batch is None else attempts + 1,
            batch_id=None if batch is None else batch.batch_id,
            key=self._members.request_key(segment, slot) if segment.keyed else None,
            raw=raw,
            reason=None if batch is None else batch.reason,
            insured=batch is None or batch.insured,
        )
        place, number = self._log.add(outcome)
        state = DELIVERED if outcome.withdrawn else SETTLED
        self._tables[segment.page].put(slot, state, attempts, place, number)


def _is_paid(answer: Answer) -> bool:
    return answer.kind is OutcomeKind.SUCCEEDED and not answer.retry
