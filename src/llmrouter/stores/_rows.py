"""The rows of the disk store, by what they mean."""

from __future__ import annotations

import json
import secrets
from typing import TYPE_CHECKING, TypedDict

from llmrouter.errors import StoreError, StoreUnusableError
from llmrouter.stores import _layout as layout
from llmrouter.stores._layout import CLAIMED, Chunk, Ranges, Segment, Table

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from llmrouter.domain.batches import Batch
    from llmrouter.domain.requests import Group, Outcome
    from llmrouter.stores._cache import LockedCache


class Meta(TypedDict):
    """What is said once of the whole store."""

    schema: int
    secret: str


class Counters(TypedDict):
    """How many there have been."""

    batches: int
    chunks: int
    cancels: int


class LeaseRow(TypedDict):
    """Who works on the store."""

    holder: str
    fence: int
    until: int
    locked: bool
    """Whether the holder also has the engine lock, which dies with its process."""


class Rows:
    """Reads take no lock; writes belong into ``cache.write``."""

    def __init__(self, cache: LockedCache) -> None:
        self.cache = cache
        self._last_chunk: tuple[int, Chunk] | None = None

    def meta(self) -> Meta:
        """The store's own row, made when it is not there."""
        value = self.cache.get(layout.META)
        if value is None:
            with self.cache.write(synced=True):
                value = self.cache.get(layout.META)
                if value is None:
                    value = layout.dump({"schema": layout.SCHEMA, "secret": secrets.token_hex(32)})
                    self.cache.set(layout.META, value)
        meta: Meta = json.loads(value)
        if meta["schema"] > layout.SCHEMA:
            raise StoreUnusableError(
                f"the store in {self.cache.folder} was written by a newer llmrouter"
                f" (schema {meta['schema']}, this one knows {layout.SCHEMA}): upgrade llmrouter"
            )
        return meta

    def lease(self) -> LeaseRow:
        """The last lease that was given out."""
        value = self.cache.get(layout.LEASE)
        if value is None:
            return {"holder": "", "fence": 0, "until": 0, "locked": False}
        row: LeaseRow = json.loads(value)
        return row

    def write_lease(self, row: LeaseRow) -> None:
        """Gives out a lease, or takes it back."""
        self.cache.set(layout.LEASE, layout.dump(row))

    def counters(self) -> Counters:
        """How many batches, chunks and cancels there have been."""
        value = self.cache.get(layout.COUNTERS)
        if value is None:
            return {"batches": 0, "chunks": 0, "cancels": 0}
        counters: Counters = json.loads(value)
        return counters

    def _write_counters(self, counters: Counters) -> None:
        self.cache.set(layout.COUNTERS, layout.dump(counters))

    def table(self, page: str) -> Table:
        """The states of a page."""
        return Table(self.cache.get(f"d{page}"))

    def find_table(self, page: str) -> Table | None:
        """The states of a page, or None when nothing on it has ever left the queue."""
        value = self.cache.get(f"d{page}")
        return None if value is None else Table(value)

    def write_tables(self, tables: Mapping[str, Table]) -> None:
        """Writes the states of some pages."""
        for page, table in tables.items():
            self.cache.set(f"d{page}", bytes(table.raw))

    def chunk(self, number: int) -> Chunk:
        """A chunk of the outcome log. The last one read is kept: lookups come in company."""
        last = self._last_chunk
        if last is None or last[0] != number:
            last = self._last_chunk = (number, Chunk(self.must_get(f"o{number:010d}")))
        return last[1]

    def append_chunk(self, outcomes: Sequence[Outcome], *, cancels: int = 0) -> int:
        """Adds to the outcome log; answers with the chunk's number."""
        counters = self.counters()
        number = counters["chunks"]
        self.cache.set(f"o{number:010d}", layout.chunk_row(outcomes))
        self._write_counters({**counters, "chunks": number + 1, "cancels": counters["cancels"] + cancels})
        return number

    def group(self, group_hash: str) -> Group:
        """A group by its hash."""
        return layout.read_group(self.must_get(f"g{group_hash}"))

    def open_numbers(self) -> dict[str, int]:
        """Batch ids of the open batches, oldest first, and the numbers of their rows."""
        numbers: dict[str, int] = json.loads(self.cache.get(layout.OPEN) or b"{}")
        return numbers

    def open_number(self, batch_id: str) -> int:
        """The number of an open batch."""
        try:
            return self.open_numbers()[batch_id]
        except KeyError:
            raise StoreError(f"{batch_id} is no open batch") from None

    def batch(self, number: int) -> tuple[Batch, Ranges]:
        """A batch and what was claimed into it."""
        return layout.read_batch(self.must_get(f"b{number:010d}"))

    def open_batch(self, number: int, batch: Batch, ranges: Ranges) -> None:
        """Writes a new batch."""
        self.cache.set(f"b{number:010d}", layout.batch_row(batch, ranges))
        self.cache.set(layout.OPEN, layout.dump({**self.open_numbers(), batch.batch_id: number}))
        self._write_counters({**self.counters(), "batches": number})

    def rewrite_batch(self, number: int, batch: Batch) -> None:
        """Writes what has become of a batch."""
        self.cache.set(f"b{number:010d}", layout.batch_row(batch, self.batch(number)[1]))

    def close_batch(self, number: int, batch: Batch) -> None:
        """Writes the end of a batch."""
        self.rewrite_batch(number, batch)
        numbers = self.open_numbers()
        del numbers[batch.batch_id]
        self.cache.set(layout.OPEN, layout.dump(numbers))

    def members(self, number: int, ranges: Ranges) -> Iterator[tuple[str, int]]:
        """Page and slot of the requests that are still in a batch."""
        for page, runs in ranges.items():
            table = self.table(page)
            for start, stop in runs:
                for slot, state in enumerate(table.states(start, stop), start):
                    if state == CLAIMED and table.get(slot)[3] == number:
                        yield page, slot

    def find_segment(self, page: str, slot: int) -> Segment | None:
        """The segment that holds a request, or None when its body is gone or never was."""
        with self.cache.write(synced=False):
            for start in range(slot, -1, -1):
                key = self.cache.first_with_prefix(f"q{page}-{start:03d}")
                if key is not None:
                    segment = layout.read_segment_key(key)
                    return segment if slot < segment.stop else None
        return None

    def must_get(self, key: str) -> bytes:
        """The value of a row that another row names."""
        value = self.cache.get(key)
        if value is None:
            raise StoreUnusableError(f"the store in {self.cache.folder} is damaged: row {key} is missing")
        return value
