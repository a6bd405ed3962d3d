"""What the holder of the lease knows of the disk store without asking: which bodies wait, and where.

It is built from the keys alone, in the order of insertion, so a million waiting requests cost a
second and no body is read. It is kept up to date by looking at the rows that were inserted since
the last look, newest first, down to a marker row of its own.
"""

from __future__ import annotations

import secrets
import sys
from bisect import bisect_right
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING

from llmrouter.domain.packing import BatchLimits, Run, pack
from llmrouter.domain.requests import Waiting
from llmrouter.stores import _faults as faults
from llmrouter.stores._layout import (
    PAGE_OF_KEY,
    START_OF_KEY,
    from_us,
    read_segment_key,
    slots_by_page,
)
from llmrouter.stores._pieces import Piece, Pile, read_entry, runs_of, segment_of, whole
from llmrouter.stores._table import CLAIMED, QUEUED

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from llmrouter.domain.requests import Group
    from llmrouter.stores._batch_rows import Ranges
    from llmrouter.stores._layout import Segment
    from llmrouter.stores._rows import Counters, Rows
    from llmrouter.stores._table import Table


class Members:
    """The requests of one batch, to be found by page and slot."""

    def __init__(self, rows: Rows, entries: Iterable[str], ranges: Ranges) -> None:
        self._rows = rows
        self._ranges = ranges
        self._starts: dict[str, list[int]] = {}
        self._segment_keys: dict[str, list[str]] = {}
        self._request_keys: dict[str, list[str | None]] = {}
        for key in sorted({entry.partition("|")[0] for entry in entries}):
            page = sys.intern(key[PAGE_OF_KEY])
            self._starts.setdefault(page, []).append(int(key[START_OF_KEY]))
            self._segment_keys.setdefault(page, []).append(key)

    def includes(self, page: str, slot: int) -> bool:
        """Whether a request was claimed into this batch, however it is now."""
        return any(start <= slot < stop for start, stop in self._ranges.get(page, ()))

    def segment(self, page: str, slot: int) -> Segment:
        """The segment of a request that is still in this batch."""
        place = bisect_right(self._starts[page], slot) - 1
        return segment_of(self._segment_keys[page][place])

    def request_key(self, segment: Segment, slot: int) -> str | None:
        """The idempotency key of a request."""
        if not segment.keyed:
            return None
        if segment.key not in self._request_keys:
            self._request_keys[segment.key] = self._rows.segment_keys(segment)
        return self._request_keys[segment.key][slot - segment.start]

    def all_keys(self) -> Iterator[str]:
        """The row keys of all its segments."""
        for keys in self._segment_keys.values():
            yield from keys


class Backlog:
    """The index of stored bodies: queued by lane and class, claimed by batch, or ready to be dropped."""

    def __init__(self, rows: Rows, fence: int | None) -> None:
        """Reads the keys of the whole store. Call it outside a write transaction.

        Args:
            rows: The store.
            fence: Fencing number of the lease under which it will be kept up to date, or None for
                a single look, which writes nothing.
        """
        self._rows = rows
        self._cache = rows.cache
        self.fence = fence
        self._groups: dict[str, Group] = {}
        self._piles: dict[tuple[str, str], Pile] = {}
        self._members: dict[int, Members] = {}
        self.claimed: dict[int, list[str]] = {}
        self.sweepable: dict[str, None] = {}
        self._own_chunks: set[int] = set()
        self._early: dict[str, set[int]] = {}
        self._last_sizes: tuple[str, list[int]] = ("", [])
        self._seen = rows.counters()
        self._markers = 0
        self._prefix = f"m{fence}-{secrets.token_hex(4)}-"
        self._marker = None if fence is None else self._mark()
        try:
            self._build()
        except (ValueError, IndexError) as error:
            raise faults.damaged(self._cache.folder, error) from error

    def _build(self) -> None:
        page, table = "", None
        for key in self._cache.all_keys():
            if key[:1] == "q":
                if key[PAGE_OF_KEY] != page:
                    page = key[PAGE_OF_KEY]
                    table = self._rows.find_table(page)
                if table is None:
                    self._add_whole(key)
                else:
                    self._sort_out(key, table)
            elif key == self._marker:
                break
            elif key[:1] == "m" and self._marker is not None:
                self._unmark(key)

    def refresh(self) -> bool:
        """Takes in what was enqueued since the last look, and takes out what was canceled.

        False when this index cannot be kept any more.
        """
        counters = self._rows.counters()
        return self._take_in() and self.take_out_canceled(counters)

    def own(self, chunks: Iterable[int]) -> None:
        """Notes chunks of the log that come from the holder's own work: this index knows already."""
        self._own_chunks.update(chunks)

    def is_behind(self, counters: Counters) -> bool:
        """Whether something was canceled since the last look."""
        return counters["cancels"] != self._seen["cancels"]

    def take_out_canceled(self, counters: Counters) -> bool:
        """Takes out what was canceled since the last look, by reading the log.

        What was also enqueued since then is taken out as soon as it is taken in. False when a part of the
        log was pruned.
        """
        if self.is_behind(counters):
            canceled: list[str] = []
            for number in range(self._seen["chunks"], counters["chunks"]):
                if number not in self._own_chunks:
                    chunk = self._rows.find_chunk(number)
                    if chunk is None:
                        return False
                    canceled += chunk.request_ids()
            for page, slots in slots_by_page(canceled).items():
                self._early.setdefault(page, set()).update(slots)
            self._take_out()
        self._seen = counters
        self._own_chunks.clear()
        return True

    def _take_out(self) -> None:
        """Takes out what was canceled; what is not there yet is left for the next time."""
        for pile in self._piles.values():
            entries = []
            for entry in pile.entries:
                gone = self._early.get(entry[PAGE_OF_KEY])
                if gone is None:
                    entries.append(entry)
                else:
                    entries += self._rest(pile, read_entry(entry), gone)
            pile.entries = entries
        self._early = {page: slots for page, slots in self._early.items() if slots}

    def _rest(self, pile: Pile, piece: Piece, gone: set[int]) -> list[str]:
        """What is left of a piece of a pile."""
        slots = [slot for slot in range(piece.start, piece.stop) if slot not in gone]
        if len(slots) == piece.stop - piece.start:
            return [piece.entry()]
        gone.difference_update(range(piece.start, piece.stop))
        self.sweepable[piece.key] = None
        rest = [self._part(piece, start, stop) for start, stop in runs_of(slots)]
        pile.request_count -= piece.stop - piece.start - len(slots)
        pile.body_bytes -= piece.body_bytes - sum(part.body_bytes for part in rest)
        return [part.entry() for part in rest]

    def _take_in(self) -> bool:
        """Takes in what was enqueued since the last look, which is what lies between two markers."""
        last = self._marker
        if last is None or next(self._cache.all_keys(newest_first=True), None) == last:
            return True
        self._marker = self._mark()
        rows = self._cache.all_keys(newest_first=True)
        for key in rows:
            if key == self._marker:
                break
        for key in rows:
            if key == last:
                self._unmark(last)
                if self._early:
                    self._take_out()
                    self._early.clear()
                return True
            if key[:1] == "q":
                self._add_whole(key)
        return False

    def waiting(self) -> list[Waiting]:
        """The backlog, a line for each lane and class."""
        lines = []
        for pile in self._piles.values():
            if pile.entries:
                first = read_entry(pile.sort()[0]).segment
                group = self.group(first.group_hash)
                lines.append(
                    Waiting(
                        lane=group.lane,
                        latency=group.latency,
                        request_count=pile.request_count,
                        body_bytes=pile.body_bytes,
                        earliest_deadline_at=from_us(first.deadline_us),
                    )
                )
        return lines

    def choose(self, lane_id: str, latency: str, limits: BatchLimits) -> list[Piece]:
        """The pieces that would leave next, earliest deadline first. Changes nothing."""
        pile = self._piles.get((lane_id, latency))
        if pile is None:
            return []
        pieces: list[Piece] = []

        def runs() -> Iterator[Run]:
            for entry in pile.sort():
                piece = read_entry(entry)
                pieces.append(piece)
                sizes = partial(self._sizes, piece)
                yield Run(piece.stop - piece.start, piece.body_bytes, sizes)

        taken = list(pack(runs(), limits))
        return [
            piece
            if count == piece.stop - piece.start
            else self._part(piece, piece.start, piece.start + count)
            for piece, count in zip(pieces, taken, strict=False)
        ]

    def take(self, lane_id: str, latency: str, pieces: list[Piece], number: int) -> None:
        """Moves the chosen pieces, the first ones of their pile, into a batch."""
        pile = self._piles[lane_id, latency]
        taken, last = pile.entries[: len(pieces)], pieces[-1]
        cut = read_entry(taken[-1])
        rest = [] if cut.stop == last.stop else [self._part(cut, last.stop, cut.stop).entry()]
        taken[-1] = last.entry()
        pile.entries[: len(pieces)] = rest
        pile.request_count -= sum(piece.stop - piece.start for piece in pieces)
        pile.body_bytes -= sum(piece.body_bytes for piece in pieces)
        self.claimed[number] = taken

    def members(self, number: int) -> Members:
        """The requests of an open batch."""
        if number not in self._members:
            ranges = self._rows.batch(number).ranges
            self._members[number] = Members(self._rows, self.claimed.get(number, ()), ranges)
        return self._members[number]

    def requeue(self, number: int, slots: Iterable[tuple[str, int]]) -> None:
        """Takes some requests of a batch back into the backlog."""
        members = self.members(number)
        located = [(members.segment(page, slot), slot) for page, slot in sorted(slots)]
        for segment, group in groupby(located, key=lambda pair: pair[0]):
            for start, stop in runs_of([slot for _, slot in group]):
                self._add(self._part(whole(segment), start, stop))

    def forget(self, number: int) -> None:
        """Drops a batch that is over; its bodies may be swept."""
        self.sweepable.update(dict.fromkeys(self.members(number).all_keys()))
        del self._members[number]
        self.claimed.pop(number, None)

    def group(self, group_hash: str) -> Group:
        """A group by its hash."""
        if group_hash not in self._groups:
            self._groups[group_hash] = self._rows.group(group_hash)
        return self._groups[group_hash]

    def _mark(self) -> str:
        """Writes a row that is younger than all rows there are."""
        self._markers += 1
        marker = f"{self._prefix}{self._markers}"
        with self._cache.write(synced=False):
            self._cache.set(marker, b"")
        return marker

    def _unmark(self, marker: str) -> None:
        with self._cache.write(synced=False):
            self._cache.delete(marker)

    def _sort_out(self, key: str, table: Table) -> None:
        """Takes in a segment of a page some of whose requests have left the queue."""
        segment = read_segment_key(key)
        states = table.states(segment.start, segment.stop)
        if not any(states):
            self._add_whole(key)
            return
        if table.is_over(segment.start, segment.stop):
            self.sweepable[key] = None
            return
        queued = [slot for slot, state in enumerate(states, segment.start) if state == QUEUED]
        for start, stop in runs_of(queued):
            self._add(self._part(whole(segment), start, stop))
        by_batch: dict[int, list[int]] = {}
        for slot, state in enumerate(states, segment.start):
            if state == CLAIMED:
                by_batch.setdefault(table.get(slot)[3], []).append(slot)
        for number, slots in by_batch.items():
            pieces = [self._part(whole(segment), start, stop) for start, stop in runs_of(slots)]
            self.claimed.setdefault(number, []).extend(piece.entry() for piece in pieces)

    def _add_whole(self, key: str) -> None:
        parts = key.rsplit("-", 5)
        self._pile(parts[4]).add(key, int(parts[2]), int(parts[3]))

    def _add(self, piece: Piece) -> None:
        self._pile(piece.segment.group_hash).add(piece.entry(), piece.stop - piece.start, piece.body_bytes)

    def _pile(self, group_hash: str) -> Pile:
        group = self.group(group_hash)
        return self._piles.setdefault((group.lane.lane_id, group.latency), Pile())

    def _part(self, piece: Piece, start: int, stop: int) -> Piece:
        if (start, stop) == (piece.start, piece.stop):
            return piece
        segment = piece.segment
        sizes = self._segment_sizes(segment)[start - segment.start : stop - segment.start]
        return piece._replace(start=start, stop=stop, body_bytes=sum(sizes))

    def _sizes(self, piece: Piece) -> list[int]:
        first = piece.segment.start
        return self._segment_sizes(piece.segment)[piece.start - first : piece.stop - first]

    def _segment_sizes(self, segment: Segment) -> list[int]:
        """Kept for the last one: its pieces come one after the other, and a row holds a megabyte."""
        if self._last_sizes[0] != segment.key:
            self._last_sizes = segment.key, self._rows.segment_sizes(segment)
        return self._last_sizes[1]
