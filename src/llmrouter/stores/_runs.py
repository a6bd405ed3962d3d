"""How far the runs in a disk store have come."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from llmrouter.domain.requests import split_request_id
from llmrouter.domain.runs import RUN_PREFIX, RunCounter
from llmrouter.stores._layout import from_us, read_segment_key
from llmrouter.stores._table import CLAIMED, QUEUED

if TYPE_CHECKING:
    from llmrouter.domain.runs import RunProgress
    from llmrouter.stores._layout import Segment
    from llmrouter.stores._rows import Rows


def runs(rows: Rows) -> list[RunProgress]:
    """See `Store.runs`."""
    return _Count(rows).progress()


class _Count:
    """One reading of the backlog, then of the log: what ends in between is counted in both, and put right.

    What was counted as unsettled is kept in a bit for each slot, so a large backlog takes little memory.
    """

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._counter = RunCounter()
        self._queued: defaultdict[str, int] = defaultdict(int)
        self._in_batches: defaultdict[str, int] = defaultdict(int)
        self._latencies: dict[str, str] = {}

    def progress(self) -> list[RunProgress]:
        """See `Store.runs`."""
        for key in self._rows.keys_with("q"):
            if key.endswith("-k"):
                self._read_segment(self._rows.parse(key, read_segment_key, key))
        for key in self._rows.keys_with("o"):
            self._read_chunk(self._rows.parse(key, _number, key))
        return self._counter.progress()

    def _read_segment(self, segment: Segment) -> None:
        keys = self._rows.find_segment_keys(segment)
        states = self._rows.table(segment.page).states(segment.start, segment.stop)
        accepted_at = from_us(segment.accepted_us)
        for slot, (key, state) in enumerate(zip(keys, states, strict=False), segment.start):
            if key is None or state > CLAIMED or not key.startswith(RUN_PREFIX):
                continue
            latency, queued = self._latency(segment.group_hash), state == QUEUED
            if self._counter.add_unsettled(key, latency, accepted_at, queued=queued):
                (self._queued if queued else self._in_batches)[segment.page] |= 1 << slot

    def _read_chunk(self, number: int) -> None:
        chunk = self._rows.read_chunk(number)
        if chunk is None:  # It was pruned since it was listed.
            return
        for place in chunk.keyed_places(RUN_PREFIX):
            outcome = chunk[place]
            page, slot = split_request_id(outcome.request_id)
            self._counter.add_settled(
                outcome,
                counted_queued=bool(self._queued.get(page, 0) >> slot & 1),
                counted_in=bool(self._in_batches.get(page, 0) >> slot & 1),
            )

    def _latency(self, group_hash: str) -> str:
        latency = self._latencies.get(group_hash)
        if latency is None:
            latency = self._latencies[group_hash] = self._rows.group(group_hash).latency
        return latency


def _number(key: str) -> int:
    return int(key[1:])
