"""What the holder of the lease knows of the disk store without asking: which bodies wait, and where.

It is built from the keys alone, in the order of insertion, so a million waiting requests cost a
second and no body is read. It is kept up to date by looking at the rows that were inserted since
the last look, newest first, down to a marker row of its own.
"""

from __future__ import annotations

import secrets
import sys
from bisect import bisect_right
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from llmrouter.domain.packing import BatchLimits, Run, pack
from llmrouter.domain.requests import PAGE_SLOTS, Waiting
from llmrouter.stores._layout import (
    CLAIMED,
    DEADLINE_OF_KEY,
    PAGE_OF_KEY,
    QUEUED,
    SETTLED,
    START_OF_KEY,
    Segment,
    from_us,
    read_segment_key,
    segment_keys,
    segment_sizes,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from llmrouter.domain.requests import Group
    from llmrouter.stores._layout import Ranges, Table
    from llmrouter.stores._rows import Rows

segment_of = lru_cache(maxsize=4096)(read_segment_key)


class Piece(NamedTuple):
    """Neighbouring requests of one segment: all of them, or some. Slim: a batch may have 100,000."""

    key: str
    """The segment's."""
    page: str
    start: int
    stop: int
    """The slot after its last one."""
    body_bytes: int

    @property
    def segment(self) -> Segment:
        """Where its bodies are."""
        return segment_of(self.key)

    def entry(self) -> str:
        """A text that takes little memory: for a whole segment its key, which is there already."""
        segment = self.segment
        whole = self.start == segment.start and self.stop == segment.stop
        return self.key if whole else f"{self.key}|{self.start}|{self.stop}|{self.body_bytes}"


def read_entry(entry: str) -> Piece:
    """The piece of an entry."""
    key, _, part = entry.partition("|")
    page = sys.intern(key[PAGE_OF_KEY])
    if part:
        start, stop, body_bytes = map(int, part.split("|"))
        return Piece(key, page, start, stop, body_bytes)
    start = int(key[START_OF_KEY])
    _, count, size, _, _ = key.rsplit("-", 4)
    return Piece(key, page, start, start + int(count), int(size))


def _order(entry: str) -> tuple[str, str]:
    """By deadline, then by age."""
    return entry[DEADLINE_OF_KEY], entry


@dataclass(slots=True)
class _Pile:
    """The waiting pieces of one lane and class."""

    entries: list[str] = field(default_factory=list)
    request_count: int = 0
    body_bytes: int = 0
    in_order: bool = True

    def add(self, entry: str, count: int, body_bytes: int) -> None:
        if self.in_order and self.entries and _order(entry) < _order(self.entries[-1]):
            self.in_order = False
        self.entries.append(entry)
        self.request_count += count
        self.body_bytes += body_bytes

    def sort(self) -> list[str]:
        if not self.in_order:
            self.entries.sort(key=_order)
            self.in_order = True
        return self.entries


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
            self._request_keys[segment.key] = segment_keys(self._rows.must_get(segment.key))
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
        self._cache = cache = rows.cache
        self._groups: dict[str, Group] = {}
        self._piles: dict[tuple[str, str], _Pile] = {}
        self._members: dict[int, Members] = {}
        self.claimed: dict[int, list[str]] = {}
        self.sweepable: dict[str, None] = {}
        self._markers = 0
        self._prefix = f"m{fence}-{secrets.token_hex(4)}-"
        self._marker = None if fence is None else self._mark()
        page, table = "", None
        for key in cache.cache:
            if key[0] == "q":
                if key[PAGE_OF_KEY] != page:
                    page = key[PAGE_OF_KEY]
                    table = rows.find_table(page)
                if table is None:
                    self._add_whole(key)
                else:
                    self._sort_out(key, table)
            elif key == self._marker:
                break
            elif key[0] == "m" and fence is not None:
                self._unmark(key)

    def refresh(self) -> bool:
        """Takes in what was enqueued since the last look, which is what lies between two markers.

        False when the last marker is gone: then this index cannot be kept any more.
        """
        last = self._marker
        if last is None or next(reversed(self._cache.cache), None) == last:
            return True
        self._marker = self._mark()
        rows = reversed(self._cache.cache)
        for key in rows:
            if key == self._marker:
                break
        for key in rows:
            if key == last:
                self._unmark(last)
                return True
            if key[0] == "q":
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
            ranges = self._rows.batch(number)[1]
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
        if states.count(SETTLED) == len(states):
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

    def _pile(self, group_hash: str) -> _Pile:
        group = self.group(group_hash)
        return self._piles.setdefault((group.lane.lane_id, group.latency), _Pile())

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
        return segment_sizes(self._rows.must_get(segment.key))


def whole(segment: Segment) -> Piece:
    """All requests of a segment."""
    return Piece(segment.key, segment.page, segment.start, segment.stop, segment.body_bytes)


def runs_of(slots: list[int]) -> Iterator[tuple[int, int]]:
    """Sorted slots as runs ``[start, stop)`` without a gap."""
    start = 0
    for place in range(1, len(slots) + 1):
        if place == len(slots) or slots[place] != slots[place - 1] + 1:
            yield slots[start], slots[place - 1] + 1
            start = place


assert PAGE_SLOTS <= 1000, "a slot is written with three digits"
