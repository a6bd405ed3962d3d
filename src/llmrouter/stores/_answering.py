"""What live calls said, into the rows of a disk store, whoever holds the lease."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmrouter.domain.batches import Settled
from llmrouter.domain.requests import Outcome, OutcomeKind, Route, split_request_id
from llmrouter.stores._layout import from_us, slots_by_page
from llmrouter.stores._log import LogWriter
from llmrouter.stores._table import CLAIMED, DELIVERED, ENDED, PRUNED, QUEUED, SETTLED

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from llmrouter.domain.batches import Answer, Batch
    from llmrouter.stores._layout import Segment
    from llmrouter.stores._rows import Rows
    from llmrouter.stores._table import Table


def answer(rows: Rows, answers: Sequence[Answer], now: datetime) -> Settled:
    """See `Store.answer`."""
    with rows.cache.write(synced=True):
        work = _Answering(rows, answers, now)
        for one in answers:
            work.apply(one)
        return work.end()


class _Answering:
    """Answers of live calls, within a write transaction."""

    def __init__(self, rows: Rows, answers: Sequence[Answer], now: datetime) -> None:
        self._rows = rows
        self._now = now
        self._log = LogWriter(rows)
        self._tables: dict[str, Table] = {}
        self._segments: dict[tuple[str, int], Segment] = {}
        self._batches: dict[int, Batch] = {}
        self._repeated = self._wasted = self._unknown = 0
        for page, slots in slots_by_page(one.request_id for one in answers).items():
            self._tables[page] = rows.table(page)
            # Bodies that are stored with others' may still be there when their requests are over.
            self._segments |= {(page, slot): segment for segment, slot in rows.locate(page, slots)}

    def apply(self, answer: Answer) -> None:
        """Takes one in, or counts it when its request has its outcome, or is not there."""
        try:
            page, slot = split_request_id(answer.request_id)
        except ValueError:
            self._unknown += 1
            return
        state, _, place, number = self._tables[page].get(slot)
        segment = self._segments.get((page, slot))
        if state == PRUNED or (state == QUEUED and segment is None):
            self._unknown += 1
            return
        latency = (
            self._rows.chunk(number)[place].latency
            if segment is None
            else self._rows.group(segment.group_hash).latency
        )
        if answer.paid_usd is not None:
            self._log.add_paid(latency, self._now, answer.paid_usd)
        if state in ENDED or segment is None:
            self._repeated += 1
            if answer.kind is OutcomeKind.SUCCEEDED:
                self._wasted += 1
                self._log.add_wasted(latency, 1)
        else:
            self._settle(answer, segment, slot, latency)

    def end(self) -> Settled:
        """Writes what came of them."""
        self._log.flush()
        self._rows.write_tables(self._tables)
        return Settled(
            outcomes=self._log.count,
            retried=0,
            repeated=self._repeated,
            unknown=self._unknown,
            wasted=self._wasted,
        )

    def _settle(self, answer: Answer, segment: Segment, slot: int, latency: str) -> None:
        table = self._tables[segment.page]
        state, attempts, _, number = table.get(slot)
        batch = self._batch(number) if state == CLAIMED else None
        outcome = Outcome(
            request_id=answer.request_id,
            kind=answer.kind,
            latency=latency,
            accepted_at=from_us(segment.accepted_us),
            deadline_at=from_us(segment.deadline_us),
            settled_at=self._now,
            attempts=attempts,
            batch_id=None,
            key=self._rows.segment_keys(segment)[slot - segment.start] if segment.keyed else None,
            raw=answer.raw,
            route=Route.ESCALATED,
            reason=None if batch is None else batch.reason,
            insured=batch is None or batch.insured,
        )
        place, chunk = self._log.add(outcome, was_queued=state == QUEUED)
        table.put(slot, DELIVERED if outcome.withdrawn else SETTLED, attempts, place, chunk)

    def _batch(self, number: int) -> Batch:
        if number not in self._batches:
            self._batches[number] = self._rows.batch(number).batch
        return self._batches[number]
