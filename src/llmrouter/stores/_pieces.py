"""Stored bodies as the index of the disk store has them: runs of neighbors."""

from __future__ import annotations

import sys
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from llmrouter.domain.requests import PAGE_SLOTS
from llmrouter.stores._layout import (
    ACCEPTED_OF_KEY,
    DEADLINE_OF_KEY,
    PAGE_OF_KEY,
    START_OF_KEY,
    Segment,
    from_us,
    read_segment_key,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

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


def due_of(entry: str) -> tuple[datetime, timedelta]:
    """The deadline of an entry's requests, and their window."""
    deadline_us = int(entry[DEADLINE_OF_KEY])
    return from_us(deadline_us), timedelta(microseconds=deadline_us - int(entry[ACCEPTED_OF_KEY]))


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
