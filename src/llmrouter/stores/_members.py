"""The requests of one batch of the disk store, as the index knows them."""

from __future__ import annotations

import sys
from bisect import bisect_right
from typing import TYPE_CHECKING

from llmrouter.stores._batch_rows import includes
from llmrouter.stores._layout import PAGE_OF_KEY, START_OF_KEY
from llmrouter.stores._pieces import segment_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from llmrouter.stores._batch_rows import Ranges
    from llmrouter.stores._layout import Segment
    from llmrouter.stores._rows import Rows


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
        return includes(self._ranges, page, slot)

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
