"""The states of a page's requests: eight bytes for each slot."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from llmrouter.domain.requests import PAGE_SLOTS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

_ENTRY = struct.Struct("<BBHI")
ENTRY_BYTES = _ENTRY.size
TABLE_BYTES = PAGE_SLOTS * ENTRY_BYTES

QUEUED, CLAIMED, SETTLED, DELIVERED, PRUNED = range(5)
"""A slot that was never used is QUEUED too: it has no body. From SETTLED on there is no way back."""

GIVEN_UP = 1
"""A bit in the place of a CLAIMED slot: its owner does not want it any more."""

CALLED = 2
"""Another: a live call for it has begun, and nobody knows of an answer."""

ENDED = frozenset({SETTLED, DELIVERED})
"""States with an outcome."""


class Table:
    """The states of a page's requests."""

    __slots__ = ("raw",)

    def __init__(self, stored: bytes | None) -> None:
        """Takes a stored table apart, or begins one.

        Raises:
            ValueError: It has another length.
        """
        self.raw = bytearray(TABLE_BYTES if stored is None else stored)
        if len(self.raw) != TABLE_BYTES:
            raise ValueError(f"a state table of {len(self.raw)} bytes")

    def get(self, slot: int) -> tuple[int, int, int, int]:
        """State, earlier attempts, place in the chunk, number of the batch or chunk."""
        return _ENTRY.unpack_from(self.raw, slot * ENTRY_BYTES)

    def put(self, slot: int, state: int, attempts: int, place: int, number: int) -> None:
        """Writes one slot."""
        _ENTRY.pack_into(self.raw, slot * ENTRY_BYTES, state, attempts, place, number)

    def states(self, start: int, stop: int) -> bytes:
        """The states of some slots, a byte each."""
        return bytes(self.raw[start * ENTRY_BYTES : stop * ENTRY_BYTES : ENTRY_BYTES])

    def attempts(self, start: int, stop: int) -> bytes:
        """The earlier attempts of some slots, a byte each."""
        return bytes(self.raw[start * ENTRY_BYTES + 1 : stop * ENTRY_BYTES : ENTRY_BYTES])

    def claim(self, start: int, stop: int, number: int) -> None:
        """Puts some slots into a batch; their attempts stay."""
        if any(self.attempts(start, stop)):
            for slot in range(start, stop):
                self.put(slot, CLAIMED, self.get(slot)[1], 0, number)
        else:
            entry = _ENTRY.pack(CLAIMED, 0, 0, number)
            self.raw[start * ENTRY_BYTES : stop * ENTRY_BYTES] = entry * (stop - start)

    def claimed(self, number: int, start: int, stop: int) -> Iterator[tuple[int, bool]]:
        """Those of some slots that are in a batch, and whether they were given up."""
        for slot, state in enumerate(self.states(start, stop), start):
            if state == CLAIMED:
                _, _, place, owner = self.get(slot)
                if owner == number:
                    yield slot, bool(place & GIVEN_UP)

    def deliver(self, slot: int) -> bool:
        """Marks a settled slot as delivered; False when there is nothing to mark."""
        if self.raw[slot * ENTRY_BYTES] != SETTLED:
            return False
        self.raw[slot * ENTRY_BYTES] = DELIVERED
        return True

    def undelivered_chunks(self) -> set[int]:
        """The chunks in which outcomes of this page are that have reached nobody."""
        return {number for state, _, _, number in _ENTRY.iter_unpack(self.raw) if state == SETTLED}

    def prune(self, slots: Collection[int], number: int) -> int:
        """Forgets those of some slots whose outcomes are in a chunk; answers with how many."""
        pruned = 0
        for slot in slots:
            state, _, _, owner = self.get(slot)
            if state in ENDED and owner == number:
                self.put(slot, PRUNED, 0, 0, 0)
                pruned += 1
        return pruned

    def is_over(self, start: int = 0, stop: int = PAGE_SLOTS) -> bool:
        """Whether none of some slots waits for anything, so that their bodies are not needed."""
        return start == stop or min(self.states(start, stop)) >= SETTLED

    def is_empty(self) -> bool:
        """Whether it says nothing of any request, as long as none of its page has a body."""
        return set(self.states(0, PAGE_SLOTS)) <= {QUEUED, PRUNED}
