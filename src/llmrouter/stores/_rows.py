"""The rows of the disk store, by what they mean."""

from __future__ import annotations

import json
from bisect import bisect_right
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NoReturn, TypedDict, TypeVar

from llmrouter.domain.batches import BatchState
from llmrouter.domain.ledger import read_tally, tally_fields
from llmrouter.domain.requests import PAGE_SLOTS
from llmrouter.errors import StoreError
from llmrouter.stores import _faults as faults
from llmrouter.stores import _layout as layout
from llmrouter.stores._batch_rows import (
    StoredAttempts,
    attempts_key,
    batch_key,
    batch_row,
    ended_key,
    read_batch,
    read_batch_alone,
)
from llmrouter.stores._chunks import Chunk, chunk_key, chunk_row
from llmrouter.stores._table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from llmrouter.domain.batches import Batch
    from llmrouter.domain.ledger import Tally
    from llmrouter.domain.requests import Group, Outcome
    from llmrouter.stores._batch_rows import Ranges, StoredBatch
    from llmrouter.stores._cache import LockedCache
    from llmrouter.stores._layout import Segment

S = TypeVar("S")
T = TypeVar("T")

_KEYS_AT_ONCE = 10_000
_BATCHES_AT_ONCE = 100
_CHUNKS_KEPT = 8
"""Of about 4 MB at most, as they are settled."""


class Counters(TypedDict):
    """How many there have been."""

    batches: int
    chunks: int
    cancels: int


class LeaseRow(TypedDict):
    """Who works on the store."""

    holder: str
    """Empty when nobody does."""
    fence: int
    until: int
    locked: bool
    """Whether the holder also has the engine lock, which dies with its process."""


class Rows:
    """Reads take no lock; writes belong into ``cache.write``."""

    def __init__(self, cache: LockedCache) -> None:
        self.cache = cache
        self._chunks: dict[int, Chunk] = {}

    def lease(self) -> LeaseRow:
        """The last lease that was given out."""
        row: LeaseRow | None = self._find(layout.LEASE, json.loads)
        return row or {"holder": "", "fence": 0, "until": 0, "locked": False}

    def write_lease(self, row: LeaseRow) -> None:
        """Gives out a lease, or takes it back."""
        self.cache.set(layout.LEASE, layout.dump(row))

    def counters(self) -> Counters:
        """How many batches, chunks and cancels there have been."""
        counters: Counters | None = self._find(layout.COUNTERS, json.loads)
        return counters or {"batches": 0, "chunks": 0, "cancels": 0}

    def _write_counters(self, counters: Counters) -> None:
        self.cache.set(layout.COUNTERS, layout.dump(counters))

    def table(self, page: str) -> Table:
        """The states of a page."""
        return self.find_table(page) or Table(None)

    def find_table(self, page: str) -> Table | None:
        """The states of a page, or None when nothing on it has left the queue, or all of it was pruned."""
        return self._find(f"d{page}", Table)

    def write_tables(self, tables: Mapping[str, Table]) -> None:
        """Writes the states of some pages."""
        for page, table in tables.items():
            self.cache.set(f"d{page}", bytes(table.raw))

    def chunk(self, number: int) -> Chunk:
        """A chunk of the outcome log."""
        return self.find_chunk(number) or self._missing(chunk_key(number))

    def read_chunk(self, number: int) -> Chunk | None:
        """A chunk of the outcome log, or None when it was pruned."""
        return self._find(chunk_key(number), Chunk)

    def find_chunk(self, number: int) -> Chunk | None:
        """The same for a number that was just read in a state table.

        The last few chunks are kept: lookups come in company. They may have been pruned since.
        """
        chunk = self._chunks.get(number) or self.read_chunk(number)
        if chunk is not None and number not in self._chunks:
            for oldest in list(self._chunks)[: 1 - _CHUNKS_KEPT]:
                self._chunks.pop(oldest, None)
            self._chunks[number] = chunk
        return chunk

    def chunk_after(self, number: int) -> int | None:
        """The first chunk with at least this number that was not pruned."""
        found = self.cache.keys_between(chunk_key(number), "p", limit=1)
        return int(found[0][1:]) if found else None

    def append_chunk(self, outcomes: Sequence[Outcome], *, cancels: int = 0) -> int:
        """Adds to the outcome log; answers with the chunk's number."""
        counters = self.counters()
        number = counters["chunks"]
        self.cache.set(chunk_key(number), chunk_row(outcomes))
        self._write_counters({**counters, "chunks": number + 1, "cancels": counters["cancels"] + cancels})
        return number

    def tally(self) -> Tally:
        """What came of all requests so far, by latency class."""
        found: Tally | None = self._find(layout.TALLY, _read_tallies)
        return found or {}

    def write_tally(self, tally: Tally) -> None:
        """Writes that."""
        self.cache.set(
            layout.TALLY, layout.dump({latency: tally_fields(one) for latency, one in tally.items()})
        )

    def group(self, group_hash: str) -> Group:
        """A group by its hash."""
        return self._get(f"g{group_hash}", layout.read_group)

    def key_owner(self, key: str) -> str | None:
        """The id of the request that has an idempotency key."""
        return self._find(layout.key_row(key), lambda value: str(json.loads(value)["request_id"]))

    def open_numbers(self) -> dict[str, int]:
        """Batch ids of the open batches, oldest first, and the numbers of their rows."""
        numbers: dict[str, int] | None = self._find(layout.OPEN, json.loads)
        return numbers or {}

    def open_number(self, batch_id: str) -> int:
        """The number of an open batch."""
        try:
            return self.open_numbers()[batch_id]
        except KeyError:
            raise StoreError(f"{batch_id} is no open batch") from None

    def find_open(self, batch_id: str) -> tuple[int, StoredBatch] | None:
        """The number of a batch, and the batch; None when it is not open."""
        number = self.open_numbers().get(batch_id)
        return None if number is None else (number, self.batch(number))

    def numbered(self, prefix: str, batch_id: str) -> int | None:
        """The number of a batch, open or not, by our id (prefix ``i``) or the API's (``p``)."""
        return self._find(prefix + batch_id, int)

    def batch(self, number: int) -> StoredBatch:
        """A batch and what was claimed into it."""
        return self._get(batch_key(number), self._batch_reader(number))

    def find_batch(self, number: int) -> StoredBatch | None:
        """The same, or None when it was pruned."""
        return self._find(batch_key(number), self._batch_reader(number))

    def find_batch_alone(self, number: int) -> Batch | None:
        """The same without what was claimed into it: for looks that are taken often."""
        return self._find(
            batch_key(number), partial(read_batch_alone, read_attempts=partial(self._attempts, number))
        )

    def _batch_reader(self, number: int) -> Callable[[bytes], StoredBatch]:
        return partial(read_batch, read_attempts=partial(self._attempts, number))

    def _attempts(self, number: int) -> dict[str, int]:
        """The earlier attempts of the requests of a batch; none when it was pruned since it was read."""
        found: dict[str, int] | None = self._find(attempts_key(number), json.loads)
        if found is None and self.cache.get(batch_key(number)) is not None:
            self._missing(attempts_key(number))
        return found or {}

    def open_batch(self, number: int, stored: StoredBatch) -> None:
        """Writes a new batch."""
        batch_id = stored.batch.batch_id
        attempts = stored.batch.attempts
        if attempts:
            self.cache.set(attempts_key(number), layout.dump(dict(attempts)))
            stored = _with_attempts(stored, StoredAttempts(partial(self._attempts, number)))
        self.cache.set(batch_key(number), batch_row(stored))
        self.cache.set(f"i{batch_id}", b"%d" % number)
        self.cache.set(layout.OPEN, layout.dump({**self.open_numbers(), batch_id: number}))
        self._write_counters({**self.counters(), "batches": number})

    def rewrite_batch(self, number: int, earlier: StoredBatch, stored: StoredBatch) -> None:
        """Writes what has become of a batch. Its attempts stay where they are."""
        was, now = earlier.batch.provider_batch_id, stored.batch.provider_batch_id
        if was != now:
            self._drop_name(number, "p", was)
            if now is not None:
                self.cache.set(f"p{now}", b"%d" % number)
        self.cache.set(batch_key(number), batch_row(_with_attempts(stored, earlier.batch.attempts)))

    def close_batch(self, number: int, earlier: StoredBatch, stored: StoredBatch) -> None:
        """Writes the end of a batch."""
        self.rewrite_batch(number, earlier, stored)
        numbers = self.open_numbers()
        del numbers[stored.batch.batch_id]
        self.cache.set(layout.OPEN, layout.dump(numbers))
        self.note_ended(number, stored.batch)

    def note_ended(self, number: int, batch: Batch) -> None:
        """Lets `ended_backwards` find a batch: of those that go live there can be one each second."""
        if batch.state is BatchState.ENDED and batch.provider_batch_id:
            self.cache.set(ended_key(number), b"")

    def drop_batch(self, number: int) -> None:
        """Forgets a batch that is over."""
        batch = self.batch(number).batch
        self._drop_name(number, "i", batch.batch_id)
        self._drop_name(number, "p", batch.provider_batch_id)
        self.cache.delete(attempts_key(number))
        self.cache.delete(ended_key(number))
        self.cache.delete(batch_key(number))

    def _drop_name(self, number: int, prefix: str, batch_id: str | None) -> None:
        if batch_id is not None and self.numbered(prefix, batch_id) == number:
            self.cache.delete(prefix + batch_id)

    def members(self, number: int, ranges: Ranges) -> Iterator[tuple[str, int, bool]]:
        """Page and slot of the requests that are still in a batch, and whether they were given up."""
        for page, runs in ranges.items():
            table = self.table(page)
            for start, stop in runs:
                for slot, given_up in table.claimed(number, start, stop):
                    yield page, slot, given_up

    def find_segment(self, page: str, slot: int) -> Segment | None:
        """The segment that holds a request, or None when its body is gone or never was."""
        located = next(self.locate(page, [slot]), None)
        return None if located is None else located[0]

    def locate(self, page: str, slots: Sequence[int]) -> Iterator[tuple[Segment, int]]:
        """The segments that hold some slots of a page, in order; slots without a body are left out."""
        if not slots:
            return
        first = self.cache.keys_between(
            f"q{page}-", f"q{page}-{slots[0]:03d}~", limit=1, last_first=True
        ) or self.cache.keys_between(f"q{page}-{slots[0]:03d}", f"q{page}-~", limit=1)
        if not first:
            return
        keys = self.cache.keys_between(first[0], f"q{page}-{slots[-1]:03d}~", limit=PAGE_SLOTS)
        segments = [self.parse(key, layout.read_segment_key, key) for key in keys]
        starts = [segment.start for segment in segments]
        for slot in slots:
            place = bisect_right(starts, slot) - 1
            if place >= 0 and slot < segments[place].stop:
                yield segments[place], slot

    def segment_keys(self, segment: Segment) -> list[str | None]:
        """The idempotency keys of a segment's requests."""
        return self._get(segment.key, layout.segment_keys)

    def find_segment_keys(self, segment: Segment) -> list[str | None]:
        """The same; none when the segment was swept meanwhile."""
        return self._find(segment.key, layout.segment_keys) or []

    def segment_sizes(self, segment: Segment) -> list[int]:
        """Bytes of each of a segment's bodies."""
        return self._get(segment.key, layout.segment_sizes)

    def bodies(self, key: str, places: Sequence[int]) -> Iterator[bytes]:
        """The bodies of a segment at some places."""
        return self._get(key, lambda value: layout.segment_bodies(value, places))

    def ended_backwards(self) -> Iterator[Batch]:
        """The batches of the API's that ended, the latest claim first."""
        end = "d"
        while keys := self.cache.keys_between("c", end, limit=_BATCHES_AT_ONCE, last_first=True):
            for key in keys:
                batch = self.find_batch_alone(int(key[1:]))
                if batch is not None:
                    yield batch
            end = keys[-1]

    def keys_with(self, prefix: str) -> Iterator[str]:
        """The row keys that begin with a letter, in their order."""
        low, end = prefix, chr(ord(prefix) + 1)
        while keys := self.cache.keys_between(low, end, limit=_KEYS_AT_ONCE):
            yield from keys
            low = keys[-1] + "\0"

    def parse(self, key: str, read: Callable[[S], T], stored: S) -> T:
        """What a row says.

        Raises:
            StoreUnusableError: Nothing that this store has written.
        """
        try:
            return read(stored)
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise faults.damaged(self.cache.folder, f"row {key:.60}: {error}") from error

    def _find(self, key: str, read: Callable[[bytes], T]) -> T | None:
        value = self.cache.get(key)
        return None if value is None else self.parse(key, read, value)

    def _get(self, key: str, read: Callable[[bytes], T]) -> T:
        """The same for a row that another row names."""
        value = self.cache.get(key)
        return self._missing(key) if value is None else self.parse(key, read, value)

    def _missing(self, key: str) -> NoReturn:
        raise faults.damaged(self.cache.folder, f"row {key:.60} is missing")


def _read_tallies(value: bytes) -> Tally:
    return {latency: read_tally(fields) for latency, fields in json.loads(value).items()}


def _with_attempts(stored: StoredBatch, attempts: Mapping[str, int]) -> StoredBatch:
    return replace(stored, batch=replace(stored.batch, attempts=attempts))
