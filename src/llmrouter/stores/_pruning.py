"""Forgetting what was settled long ago, chunk by chunk of the outcome log."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from llmrouter import failpoints
from llmrouter.domain.batches import OPEN_STATES
from llmrouter.domain.requests import PAGE_SLOTS
from llmrouter.stores import _batch_rules as rules
from llmrouter.stores import _layout as layout
from llmrouter.stores._chunks import chunk_key
from llmrouter.stores._layout import slots_by_page, to_us
from llmrouter.stores._table import PRUNED, QUEUED

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from llmrouter.stores._batch_rows import StoredBatch
    from llmrouter.stores._rows import Rows
    from llmrouter.stores._table import Table

_BATCHES_AT_ONCE = 1_000
"""Bounds the transaction; those beyond it go with the next prune."""

_READ_AHEAD = 100
"""How many rows that are too young are read at once, to find old ones behind them; then they are known."""


class _Stay(NamedTuple):
    """What is remembered of a chunk that had to stay, so that it need not be read again."""

    newest_us: int
    pages: tuple[str, ...]
    size: int


class _Old(NamedTuple):
    """A chunk that can go."""

    number: int
    pages: dict[str, list[int]]
    keys: dict[str, str]


class Plan(NamedTuple):
    """What a prune will forget. What can go now can go later too: nothing comes back from the end."""

    chunks: list[_Old]
    batches: list[int]


class Pruner:
    """Plans without a lock, then acts within a write transaction of the holder's."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._cache = rows.cache
        self._stays: dict[int, _Stay] = {}
        self._closed: dict[int, StoredBatch] = {}
        self._claimed_at: dict[int, datetime] = {}

    def plan(self, before: datetime, limit: int, *, undelivered: bool) -> Plan:
        """What can go: whole chunks, until they have ``limit`` outcomes, and batches without any request."""
        chunks = [self._old(number) for number in self._prunable(to_us(before), limit, undelivered)]
        return Plan(chunks, list(islice(self._empty_batches(before), _BATCHES_AT_ONCE)))

    def prune(self, plan: Plan) -> int:
        """Forgets; answers with how many requests. All of it in one write transaction."""
        tables: dict[str, Table] = {}
        count = 0
        for chunk in plan.chunks:
            for page, slots in chunk.pages.items():
                if page not in tables:
                    tables[page] = self._rows.table(page)
                count += tables[page].prune(slots, chunk.number)
            for key, request_id in chunk.keys.items():
                if self._rows.key_owner(key) == request_id:
                    self._cache.delete(layout.key_row(key))
            self._cache.delete(chunk_key(chunk.number))
            self._stays.pop(chunk.number, None)
        for page, table in tables.items():
            self._write_table(page, table)
        for number in plan.batches:
            self._rows.drop_batch(number)
            self._closed.pop(number, None)
            self._claimed_at.pop(number, None)
        failpoints.reach("pruning")
        return count

    def _prunable(self, before_us: int, limit: int, undelivered: bool) -> Iterator[int]:
        blocked: dict[str, set[int]] = {}
        taken, ahead = 0, 0
        for key in self._rows.keys_with("o"):
            if taken >= limit or ahead >= _READ_AHEAD:
                return
            known = int(key[1:]) in self._stays
            stay = self._stay(int(key[1:]))
            if stay is None:
                continue
            if stay.newest_us >= before_us:
                # The log is in the order of settling, but for times when the clock was wrong.
                ahead += not known
                continue
            for page in stay.pages:
                if not undelivered and page not in blocked:
                    blocked[page] = self._rows.table(page).undelivered_chunks()
            if undelivered or not any(int(key[1:]) in blocked[page] for page in stay.pages):
                taken += stay.size
                yield int(key[1:])

    def _stay(self, number: int) -> _Stay | None:
        if number not in self._stays:
            chunk = self._rows.find_chunk(number)
            if chunk is None:
                return None
            pages = slots_by_page(chunk.request_ids())
            self._stays[number] = _Stay(chunk.newest_us(), tuple(pages), sum(map(len, pages.values())))
        return self._stays[number]

    def _old(self, number: int) -> _Old:
        chunk = self._rows.chunk(number)
        return _Old(number, slots_by_page(chunk.request_ids()), chunk.keys())

    def _write_table(self, page: str, table: Table) -> None:
        """Drops the bodies that nobody needs any more, and the table too when it says nothing any more."""
        left = 0
        for key in self._cache.keys_between(f"q{page}-", f"q{page}-~", limit=PAGE_SLOTS):
            segment = layout.read_segment_key(key)
            if table.is_over(segment.start, segment.stop):
                self._cache.delete(key)
            else:
                left += 1
        if left == 0 and table.is_empty():
            self._cache.delete(f"d{page}")
        else:
            self._rows.write_tables({page: table})

    def _empty_batches(self, before: datetime) -> Iterator[int]:
        """Closed batches that ended before an instant, of whose requests none is left."""
        ahead = 0
        for key in self._rows.keys_with("b"):
            if ahead >= _READ_AHEAD:
                return
            number = int(key[1:])
            known = self._claimed_at.get(number)
            if known is not None and known >= before:
                continue
            stored = self._closed.get(number) or self._rows.batch(number)
            self._claimed_at[number] = stored.batch.claimed_at
            if stored.batch.claimed_at >= before:
                # They are numbered in the order of claiming, but for times when the clock was wrong.
                ahead += 1
                continue
            if stored.batch.state in OPEN_STATES:
                continue
            self._closed[number] = stored
            if rules.is_over_before(stored.batch, before) and self._is_empty(stored):
                yield number

    def _is_empty(self, stored: StoredBatch) -> bool:
        for page, runs in stored.ranges.items():
            table = self._rows.find_table(page)
            if table is not None and not all(self._are_gone(page, table, *run) for run in runs):
                return False
        return True

    def _are_gone(self, page: str, table: Table, start: int, stop: int) -> bool:
        states = table.states(start, stop)
        if not set(states) <= {QUEUED, PRUNED}:
            return False
        # A queued one may wait again, or its table went, and came back for others of its page.
        waiting = [slot for slot, state in enumerate(states, start) if state == QUEUED]
        return next(self._rows.locate(page, waiting), None) is None
