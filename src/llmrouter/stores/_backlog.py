"""What the holder of the lease knows of the disk store without asking: which bodies wait, and where.

It is built from the keys alone, in the order of insertion, so a million waiting requests cost a
second and no body is read. It is kept up to date by looking at the rows that were inserted since
the last look, newest first, down to a marker row of its own.
"""

from __future__ import annotations

import secrets
from functools import partial
from itertools import groupby, islice
from typing import TYPE_CHECKING, TypeAlias

from llmrouter.domain.packing import BatchLimits, Run, pack
from llmrouter.domain.requests import Waiting
from llmrouter.stores import _faults as faults
from llmrouter.stores._layout import (
    DEADLINE_OF_KEY,
    GROUP_OF_KEY,
    PAGE_OF_KEY,
    read_segment_key,
    slots_by_page,
)
from llmrouter.stores._members import Members
from llmrouter.stores._pieces import Piece, read_entry, runs_of, segment_of, whole
from llmrouter.stores._pile import Edit, Pile, entry_of
from llmrouter.stores._table import CLAIMED, QUEUED

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import datetime

    from llmrouter.domain.requests import Group
    from llmrouter.stores._layout import Segment
    from llmrouter.stores._rows import Counters, Rows
    from llmrouter.stores._table import Table


Line: TypeAlias = tuple[str, str, str]
"""Lane id, latency class and model of requests that may share a batch."""


def line_of(waiting: Waiting) -> Line:
    """The line that a look at the backlog has shown."""
    return waiting.lane.lane_id, waiting.latency, waiting.model


class Backlog:
    """The index of stored bodies: queued by line, claimed by batch, or ready to be dropped."""

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
        self._piles: dict[Line, Pile] = {}
        self._places: dict[str, tuple[Pile, str]] = {}
        self._members: dict[int, Members] = {}
        self.claimed: dict[int, list[str]] = {}
        self.sweepable: dict[str, None] = {}
        self._own_chunks: set[int] = set()
        self._foreign: list[int] = []
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

    def _is_behind(self, counters: Counters) -> bool:
        """Whether something that waited got its outcome from somebody else since the last look."""
        return counters["cancels"] != self._seen["cancels"]

    def take_out_canceled(self, counters: Counters) -> bool:
        """Takes out what was canceled, or answered while it waited, since the last look, by reading the log.

        What was also enqueued since then is taken out as soon as it is taken in. False when a part of the
        log was pruned.
        """
        new = range(self._seen["chunks"], counters["chunks"])
        foreign = [number for number in new if number not in self._own_chunks]
        if self._is_behind(counters):
            canceled: list[str] = []
            for number in foreign:
                chunk = self._rows.find_chunk(number)
                if chunk is None:
                    return False
                canceled += chunk.request_ids()
            for page, slots in slots_by_page(canceled).items():
                self._early.setdefault(page, set()).update(slots)
            self._take_out()
        self._seen = counters
        self._own_chunks.clear()
        self._foreign += foreign
        return True

    def take_out(self, slots: Iterable[tuple[str, int]]) -> None:
        """Takes out some requests that got their outcome while they waited."""
        for page, slot in slots:
            self._early.setdefault(page, set()).add(slot)
        if self._early:
            self._take_out()

    def _take_out(self) -> None:
        """Takes out what has its outcome; what is not there yet is left for the next time."""
        for pile in self._piles.values():
            edits: list[Edit] = []
            for place, entry in enumerate(pile.entries()):
                gone = self._early.get(entry[PAGE_OF_KEY])
                if gone:
                    edits += self._without(pile, place, read_entry(entry), gone)
            if edits:
                pile.edit(edits)
        self._early = {page: slots for page, slots in self._early.items() if slots}

    def _without(self, pile: Pile, place: int, piece: Piece, gone: set[int]) -> Iterator[Edit]:
        """What to do with an entry of a pile some of whose requests may have gone."""
        slots = [slot for slot in range(piece.start, piece.stop) if slot not in gone]
        left = piece.stop - piece.start - len(slots)
        if left:
            gone.difference_update(range(piece.start, piece.stop))
            self.sweepable[piece.key] = None
            pile.discount(self._prefix_of(piece), left)
            rest = [self._part(piece, start, stop) for start, stop in runs_of(slots)]
            yield Edit(place, place + 1, [entry_of(part.entry()) for part in rest])

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
        taken: list[str] = []
        for key in rows:
            if key == last:
                self._unmark(last)
                # The oldest first: that is nearly the order in which they are due.
                for enqueued in reversed(taken):
                    self._add_whole(enqueued)
                if self._early:
                    self._take_out()
                    self._early.clear()
                return True
            if key[:1] == "q":
                taken.append(key)
        return False

    def waiting(self) -> list[Waiting]:
        """The backlog, line by line."""
        return [self._line(pile) for pile in self._piles.values() if pile]

    def _line(self, pile: Pile) -> Waiting:
        cohorts = tuple(pile.cohorts())
        group = self.group(segment_of(pile.entries()[0].partition("|")[0]).group_hash)
        return Waiting(
            lane=group.lane,
            latency=group.latency,
            model=group.model,
            request_count=pile.request_count,
            body_bytes=pile.body_bytes,
            earliest_deadline_at=cohorts[0].deadline_at,
            window=cohorts[0].window,
            cohorts=cohorts,
            prefixes=dict(pile.prefixes),
        )

    def sample(self, line: Line, prefix: str) -> bytes | None:
        """The body of a queued request with a prefix, of those the one that is due first."""
        pile = self._piles.get(line)
        if pile is None:
            return None
        groups = {name for name, (_, known) in self._places.items() if known == prefix}
        for entry in pile.entries():
            if entry.partition("|")[0][GROUP_OF_KEY] in groups:
                piece = read_entry(entry)
                return next(self._rows.bodies(piece.key, [piece.start - piece.segment.start]))
        return None

    def choose(self, line: Line, limits: BatchLimits) -> list[Piece]:
        """The pieces that would leave next, earliest deadline first. Changes nothing."""
        pile = self._piles.get(line)
        if not pile:
            return []
        entries = pile.entries()
        pieces: list[Piece] = []

        def runs() -> Iterator[Run]:
            for entry in islice(entries, pile.one_fate() if limits.one_fate else None):
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

    def choose_due(self, line: Line, before: datetime) -> list[Piece]:
        """The pieces that are due before an instant, earliest deadline first. Changes nothing."""
        pile = self._piles.get(line)
        return [] if pile is None else [read_entry(one) for one in pile.entries()[: pile.due_before(before)]]

    def take(self, line: Line, pieces: list[Piece], number: int) -> None:
        """Moves the chosen pieces, the first ones of their pile, into a batch."""
        pile = self._piles[line]
        last = pieces[-1]
        cut = read_entry(pile.entries()[len(pieces) - 1])
        rest = None if cut.stop == last.stop else self._part(cut, last.stop, cut.stop)
        taken = pile.take(len(pieces), rest and entry_of(rest.entry()))
        taken[-1] = last.entry()
        self.claimed[number] = taken
        if pile.prefixes:
            for piece in pieces:
                pile.discount(self._prefix_of(piece), piece.stop - piece.start)

    def members(self, number: int) -> Members:
        """The requests of an open batch."""
        if number not in self._members:
            ranges = self._rows.batch(number).ranges
            self._members[number] = Members(self._rows, self.claimed.get(number, ()), ranges)
        return self._members[number]

    def requeue(self, number: int, slots: Iterable[tuple[str, int]]) -> None:
        """Takes some requests of a batch back into the backlog."""
        for piece in self._pieces(number, slots):
            self._add(piece)

    def _pieces(self, number: int, slots: Iterable[tuple[str, int]]) -> Iterator[Piece]:
        """Some requests of a batch, neighbors together."""
        members = self.members(number)
        located = [(members.segment(page, slot), slot) for page, slot in sorted(slots)]
        for segment, group in groupby(located, key=lambda pair: pair[0]):
            for start, stop in runs_of([slot for _, slot in group]):
                yield self._part(whole(segment), start, stop)

    def move(self, number: int, slots: Iterable[tuple[str, int]], into: int) -> list[Piece]:
        """Puts some requests of a batch into a new one too, earliest deadline first.

        They stay with the old one as well, whose body may be on its way.
        """
        pieces = sorted(self._pieces(number, slots), key=lambda piece: (piece.key[DEADLINE_OF_KEY], piece))
        self.claimed[into] = [piece.entry() for piece in pieces]
        return pieces

    def find_sweepable(self) -> None:
        """Looks for bodies that others do not need any more, by reading what they wrote into the log."""
        for number in self._foreign:
            chunk = self._rows.find_chunk(number)
            for page, slots in slots_by_page(chunk.request_ids() if chunk else ()).items():
                for segment, _ in self._rows.locate(page, slots):
                    self.sweepable[segment.key] = None
        self._foreign.clear()

    def forget(self, number: int) -> None:
        """Drops a batch that is over; its bodies may be swept."""
        self.sweepable.update(dict.fromkeys(self.members(number).all_keys()))
        self._members.pop(number, None)
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
        _, _, count, size, group_hash, _ = key.rsplit("-", 5)
        pile, prefix = self._places.get(group_hash) or self._place(group_hash)
        pile.add(key, int(count), int(size), prefix)

    def _add(self, piece: Piece) -> None:
        pile, prefix = self._place(piece.segment.group_hash)
        pile.add(piece.entry(), piece.stop - piece.start, piece.body_bytes, prefix)

    def _place(self, group_hash: str) -> tuple[Pile, str]:
        """The pile of a group, and its prefix."""
        if group_hash not in self._places:
            group = self.group(group_hash)
            line = group.lane.lane_id, group.latency, group.model
            self._places[group_hash] = self._piles.setdefault(line, Pile()), group.prefix
        return self._places[group_hash]

    def _prefix_of(self, piece: Piece) -> str:
        return self._place(piece.key[GROUP_OF_KEY])[1]

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
