"""Writing a claim of a disk store: which slots of which pages are in a new batch."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING

from llmrouter.domain.requests import format_request_id
from llmrouter.errors import StoreError
from llmrouter.stores._batch_rows import StoredBatch
from llmrouter.stores._pieces import due_of, runs_of
from llmrouter.stores._table import CLAIMED, QUEUED

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from llmrouter.domain.batches import Batch
    from llmrouter.stores._batch_rows import Ranges
    from llmrouter.stores._pieces import Piece
    from llmrouter.stores._rows import Rows
    from llmrouter.stores._table import Table


def claim_pieces(
    rows: Rows, batch: Batch, pieces: list[Piece], number: int, *, out_of: int | None = None
) -> StoredBatch:
    """Writes a claim into the state tables, within a write transaction.

    Args:
        rows: The store.
        batch: The new batch; what it weighs and when it is due is filled in.
        pieces: Its requests, earliest deadline first.
        number: Of its row.
        out_of: Of the batch that they are in; None when they wait.

    Raises:
        StoreError: The index was wrong: one of the requests is somewhere else.
    """
    ranges: Ranges = {}
    attempts: dict[str, int] = {}
    tables: dict[str, Table] = {}
    for page, members in _by_page(pieces):
        slots = sorted(slot for piece in members for slot in range(piece.start, piece.stop))
        table = tables[page] = rows.table(page)
        for start, stop in runs_of(slots):
            if not _are_where(table, start, stop, out_of):
                raise StoreError(f"{batch.batch_id}: the index of the backlog was not that of the store")
            earlier = enumerate(table.attempts(start, stop), start)
            attempts |= {format_request_id(page, slot): count for slot, count in earlier if count}
            table.claim(start, stop, number)
            ranges.setdefault(page, []).append([start, stop])
    rows.write_tables(tables)
    deadline_at, window = due_of(pieces[0].key)
    claimed = replace(
        batch,
        request_count=sum(piece.stop - piece.start for piece in pieces),
        body_bytes=sum(piece.body_bytes for piece in pieces),
        attempts=attempts,
        deadline_at=deadline_at,
        window=window,
    )
    return StoredBatch(batch=claimed, ranges=ranges)


def _are_where(table: Table, start: int, stop: int, out_of: int | None) -> bool:
    """Whether requests wait, or are in a batch."""
    if out_of is None:
        return set(table.states(start, stop)) == {QUEUED}
    return all(table.get(slot)[::3] == (CLAIMED, out_of) for slot in range(start, stop))


def _by_page(pieces: list[Piece]) -> Iterator[tuple[str, Iterable[Piece]]]:
    """The pieces of each page, wherever in the list they stand."""
    return groupby(sorted(pieces, key=attrgetter("page", "start")), key=attrgetter("page"))
