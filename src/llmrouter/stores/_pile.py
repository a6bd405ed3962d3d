"""What waits in one line of the disk store's backlog, by deadline, and how much of it is due until when."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from llmrouter.domain.requests import Cohort
from llmrouter.domain.scheduling import group_span
from llmrouter.stores._layout import DEADLINE_OF_KEY, from_us, key_instant
from llmrouter.stores._pieces import due_of, read_entry

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

_MICROSECOND = timedelta(microseconds=1)
_REBUILT_FROM = 0.1
"""From this share of late entries on it is faster to sort the rest anew than to put each in its place."""


Entry: TypeAlias = tuple[str, str, int, int]
"""When a piece is due, the piece, its requests and its bytes. They compare by deadline, then by age."""


class Edit(NamedTuple):
    """Entries ``[start, stop)`` of a pile, and what comes in their place."""

    start: int
    stop: int
    entries: Sequence[Entry]


class Pile:
    """The waiting pieces of one lane, class and model, as entries.

    There may be a million of them, so nothing walks them but `edit`, and that only from the first edit on.
    """

    __slots__ = ("_bytes", "_counts", "_entries", "_late", "prefixes")

    def __init__(self) -> None:
        self._entries: list[str] = []
        self._counts, self._bytes = _Sums(), _Sums()
        self._late: list[Entry] = []
        self.prefixes: dict[str, int] = {}
        """How many requests begin with a prompt."""

    def __len__(self) -> int:
        return len(self._entries) + len(self._late)

    @property
    def request_count(self) -> int:
        """Of all entries."""
        self.entries()
        return self._counts.between(0, len(self._entries))

    @property
    def body_bytes(self) -> int:
        """Of all their bodies."""
        self.entries()
        return self._bytes.between(0, len(self._entries))

    def add(self, entry: str, count: int, body_bytes: int, prefix: str) -> None:
        """Takes in an entry of so many requests."""
        if prefix:
            self.prefixes[prefix] = self.prefixes.get(prefix, 0) + count
        if self._entries and _order(entry) < _order(self._entries[-1]):
            self._late.append((_due(entry), entry, count, body_bytes))
        else:
            self._append(entry, count, body_bytes)

    def discount(self, prefix: str, count: int) -> None:
        """Notes that requests with a prefix have gone."""
        if prefix:
            self.prefixes[prefix] -= count
            if not self.prefixes[prefix]:
                del self.prefixes[prefix]

    def entries(self) -> list[str]:
        """All, earliest deadline first; not to be changed."""
        if self._late:
            late, self._late = sorted(self._late), []
            first = bisect_right(self._entries, late[0][:2], key=_order)
            if len(late) > _REBUILT_FROM * (len(self._entries) - first):
                self._rebuild(first, late)
            else:
                places = (bisect_right(self._entries, one[:2], lo=first, key=_order) for one in late)
                self.edit([Edit(place, place, [one]) for place, one in zip(places, late, strict=True)])
        return self._entries

    def due_before(self, instant: datetime) -> int:
        """How many of the entries are due before an instant."""
        return bisect_left(self.entries(), key_instant(instant), key=_due)

    def one_fate(self, start: int = 0) -> int:
        """Where the entries end that may share a batch with one, as far as their deadlines go."""
        deadline_at, window = due_of(self._entries[start])
        latest = key_instant(deadline_at + max(group_span(window), timedelta(0)))
        return bisect_right(self._entries, latest, lo=start, key=_due)

    def cohorts(self) -> Iterator[Cohort]:
        """The requests by deadline, in the fewest groups of one fate."""
        start, entries = 0, self.entries()
        while start < len(entries):
            stop = self.one_fate(start)
            deadline_at, window = due_of(entries[start])
            yield Cohort(
                deadline_at=deadline_at,
                before=from_us(int(_due(entries[stop - 1]))) + _MICROSECOND,
                window=window,
                request_count=self._counts.between(start, stop),
                body_bytes=self._bytes.between(start, stop),
            )
            start = stop

    def take(self, number: int, rest: Entry | None) -> list[str]:
        """Takes the first entries out, but for a rest of the last of them; answers with them, whole."""
        taken = self.entries()[:number]
        self._entries[:number] = [] if rest is None else [rest[1]]
        self._counts.drop(number, rest and rest[2])
        self._bytes.drop(number, rest and rest[3])
        return taken

    def edit(self, edits: Sequence[Edit]) -> None:
        """Replaces some entries; the edits come in the order of their places."""
        place = first = edits[0].start
        entries, counts, sizes = self._cut(first)
        for start, stop, new in edits:
            self._copy(entries, counts, sizes, place - first, start - first)
            for _, entry, count, body_bytes in new:
                self._append(entry, count, body_bytes)
            place = stop
        self._copy(entries, counts, sizes, place - first, len(entries))

    def _append(self, entry: str, count: int, body_bytes: int) -> None:
        self._entries.append(entry)
        self._counts.append(count)
        self._bytes.append(body_bytes)

    def _rebuild(self, first: int, late: list[Entry]) -> None:
        """Sorts the entries from a place on together with others."""
        entries, counts, sizes = self._cut(first)
        differences = ([after - before for before, after in pairwise(sums)] for sums in (counts, sizes))
        late += zip(map(_due, entries), entries, *differences, strict=True)
        for _, entry, count, body_bytes in sorted(late):
            self._append(entry, count, body_bytes)

    def _cut(self, first: int) -> tuple[list[str], array[int], array[int]]:
        """Takes out everything from a place on: entries and sums, and the sum before it in front of those."""
        entries = self._entries[first:]
        del self._entries[first:]
        return entries, self._counts.cut(first), self._bytes.cut(first)

    def _copy(self, entries: list[str], counts: array[int], sizes: array[int], start: int, stop: int) -> None:
        """Puts some of what was cut out back behind the others."""
        if start < stop:
            self._entries += entries[start:stop]
            self._counts.extend(counts, start, stop)
            self._bytes.extend(sizes, start, stop)


class _Sums:
    """Running sums, eight bytes each."""

    __slots__ = ("_base", "_sums", "_total")

    def __init__(self) -> None:
        self._base = self._total = 0
        self._sums = array("q")

    def append(self, value: int) -> None:
        """One more value."""
        self._total += value
        self._sums.append(self._total)

    def between(self, start: int, stop: int) -> int:
        """The sum of some neighboring values."""
        return self._before(stop) - self._before(start)

    def drop(self, number: int, rest: int | None) -> None:
        """Forgets the first values; the last of them stays with a rest, where there is any."""
        self._base = self._before(number) - (rest or 0)
        del self._sums[: number - (rest is not None)]

    def cut(self, first: int) -> array[int]:
        """Takes out the sums from a place on; the one before it goes in front."""
        self._total = self._before(first)
        sums = array("q", [self._total]) + self._sums[first:]
        del self._sums[first:]
        return sums

    def extend(self, sums: array[int], start: int, stop: int) -> None:
        """Puts some values back that were cut out."""
        shift = self._total - sums[start]
        part = sums[start + 1 : stop + 1]
        self._sums += array("q", [one + shift for one in part]) if shift else part
        self._total = self._sums[-1]

    def _before(self, place: int) -> int:
        return self._sums[place - 1] if place else self._base


def entry_of(entry: str) -> Entry:
    """An entry of a pile, from the text."""
    piece = read_entry(entry)
    return _due(entry), entry, piece.stop - piece.start, piece.body_bytes


def _due(entry: str) -> str:
    return entry[DEADLINE_OF_KEY]


def _order(entry: str) -> tuple[str, str]:
    """By deadline, then by age."""
    return entry[DEADLINE_OF_KEY], entry
