"""What owners do with many requests of a disk store at once: cancel them, or note that they were told."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from llmrouter.domain.batches import Canceled
from llmrouter.domain.requests import Outcome, OutcomeKind, format_request_id
from llmrouter.stores._layout import from_us, slots_by_page
from llmrouter.stores._log import LogWriter
from llmrouter.stores._table import CLAIMED, DELIVERED, ENDED, GIVEN_UP, QUEUED

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import datetime

    from llmrouter.stores._layout import Segment
    from llmrouter.stores._rows import Rows
    from llmrouter.stores._table import Table


def cancel(rows: Rows, request_ids: Collection[str], now: datetime, *, in_batches: bool) -> Canceled:
    """See `Store.cancel`."""
    pages = slots_by_page(request_ids)
    with rows.cache.write(synced=True):
        work = _Cancellation(rows, now, in_batches=in_batches)
        for page, slots in pages.items():
            work.cancel(page, slots)
        work.end()
    return Canceled(canceled=work.canceled, asked=work.asked, settled=work.settled)


def deliver(rows: Rows, request_ids: Collection[str]) -> None:
    """See `Store.deliver`."""
    pages = slots_by_page(request_ids)
    if not pages:
        return
    with rows.cache.write(synced=False):
        for page, slots in pages.items():
            table = rows.find_table(page)
            if table is not None and sum(table.deliver(slot) for slot in slots):
                rows.write_tables({page: table})


class _Cancellation:
    """A cancel, page by page, within a write transaction."""

    def __init__(self, rows: Rows, now: datetime, *, in_batches: bool) -> None:
        self._rows = rows
        self._now = now
        self._in_batches = in_batches
        self._log = LogWriter(rows)
        self._numbers: set[int] = set()
        self._latencies: dict[str, str] = {}
        self._keys: tuple[str, list[str | None]] = ("", [])
        self.asked = 0
        self.settled = 0

    @property
    def canceled(self) -> int:
        """How many got their outcome."""
        return self._log.count

    def cancel(self, page: str, slots: list[int]) -> None:
        """Cancels some requests of a page."""
        table = self._rows.table(page)
        before = bytes(table.raw)
        queued = [slot for slot in slots if self._is_queued(table, slot)]
        for segment, slot in self._rows.locate(page, queued):
            attempts = table.get(slot)[1]
            place, number = self._log.add(self._outcome(segment, slot, attempts), was_queued=True)
            # There is no answer that anybody could pick up.
            table.put(slot, DELIVERED, attempts, place, number)
        if table.raw != before:
            self._rows.write_tables({page: table})

    def end(self) -> None:
        """Writes what is left to be written, when all pages are done."""
        self._log.flush()
        for number in self._numbers:
            stored = self._rows.batch(number)
            everybody = all(given_up for _, _, given_up in self._rows.members(number, stored.ranges))
            batch = replace(stored.batch, cancel_wanted=everybody)
            self._rows.rewrite_batch(number, stored, replace(stored, batch=batch, given_up_at=self._now))

    def _is_queued(self, table: Table, slot: int) -> bool:
        """Sorts out those that are not."""
        state, attempts, place, number = table.get(slot)
        if state == CLAIMED and self._in_batches:
            table.put(slot, CLAIMED, attempts, place | GIVEN_UP, number)
            self._numbers.add(number)
            self.asked += 1
        self.settled += state in ENDED
        return state == QUEUED

    def _outcome(self, segment: Segment, slot: int, attempts: int) -> Outcome:
        if segment.group_hash not in self._latencies:
            self._latencies[segment.group_hash] = self._rows.group(segment.group_hash).latency
        if segment.keyed and segment.key != self._keys[0]:
            self._keys = segment.key, self._rows.segment_keys(segment)
        return Outcome(
            request_id=format_request_id(segment.page, slot),
            kind=OutcomeKind.CANCELED,
            latency=self._latencies[segment.group_hash],
            accepted_at=from_us(segment.accepted_us),
            deadline_at=from_us(segment.deadline_us),
            settled_at=self._now,
            attempts=attempts,
            batch_id=None,
            key=self._keys[1][slot - segment.start] if segment.keyed else None,
            raw=b"",
        )
