"""What anybody may ask a disk store without a lock: requests, keys, outcomes and batches."""

from __future__ import annotations

from fnmatch import fnmatchcase
from itertools import islice
from typing import TYPE_CHECKING

from llmrouter.domain.batches import OPEN_STATES
from llmrouter.domain.requests import RequestState, RequestView, format_request_id, split_request_id
from llmrouter.errors import StoreUnusableError
from llmrouter.stores._layout import from_us, read_segment_key, slots_by_page
from llmrouter.stores._table import CLAIMED, ENDED, GIVEN_UP, PRUNED

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from llmrouter.domain.batches import Batch
    from llmrouter.domain.requests import Outcome
    from llmrouter.stores._layout import Segment
    from llmrouter.stores._rows import Rows

_LOOKS = 3
"""A look reads row by row; meanwhile another process may have dropped one that another had named."""


class Lookups:
    """Answers from rows that other processes go on changing."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def find(self, request_id: str) -> RequestView | None:
        """See `Store.find`."""
        try:
            page, slot = split_request_id(request_id)
        except ValueError:
            return None
        for _ in range(_LOOKS - 1):
            try:
                return self._look(request_id, page, slot)
            except StoreUnusableError:
                continue
        return self._look(request_id, page, slot)

    def _look(self, request_id: str, page: str, slot: int) -> RequestView | None:
        state, attempts, place, number = self._rows.table(page).get(slot)
        if state == PRUNED:
            return None
        if state in ENDED:
            return _settled_view(self._rows.chunk(number)[place], attempts)
        segment = self._rows.find_segment(page, slot)
        if segment is None:
            # Perhaps it was settled and swept since its state was read.
            settled = self._rows.table(page).get(slot)[0] in ENDED
            return self._look(request_id, page, slot) if settled else None
        group = self._rows.group(segment.group_hash)
        return RequestView(
            request_id=request_id,
            state=RequestState.CLAIMED if state == CLAIMED else RequestState.QUEUED,
            latency=group.latency,
            accepted_at=from_us(segment.accepted_us),
            deadline_at=from_us(segment.deadline_us),
            attempts=attempts,
            batch_id=self._rows.batch(number).batch.batch_id if state == CLAIMED else None,
            key=self._rows.segment_keys(segment)[slot - segment.start] if segment.keyed else None,
            lane_id=group.lane.lane_id,
            given_up=state == CLAIMED and bool(place & GIVEN_UP),
        )

    def find_keys(self, pattern: str) -> Iterator[str]:
        """See `Store.find_keys`. Reads the rows of those that have keys."""
        for key in self._rows.keys_with("q"):
            if key.endswith("-k"):
                segment = self._rows.parse(key, read_segment_key, key)
                yield from self._matching(segment, pattern)

    def _matching(self, segment: Segment, pattern: str) -> Iterator[str]:
        keys = self._rows.find_segment_keys(segment)
        table = self._rows.table(segment.page)
        for slot, (key, state) in enumerate(
            zip(keys, table.states(segment.start, segment.stop), strict=False), segment.start
        ):
            if key is not None and state <= CLAIMED and fnmatchcase(key, pattern):
                yield format_request_id(segment.page, slot)

    def outcomes(self, request_ids: Collection[str]) -> Iterator[Outcome]:
        """See `Store.outcomes`."""
        by_chunk: dict[int, list[tuple[str, int, int]]] = {}
        for page, slots in slots_by_page(request_ids).items():
            table = self._rows.table(page)
            for slot in slots:
                state, _, place, number = table.get(slot)
                if state in ENDED:
                    by_chunk.setdefault(number, []).append((page, slot, place))
        for number, members in by_chunk.items():
            chunk = self._rows.find_chunk(number)
            if chunk is None:
                self._check_pruned(number, *members[0][:2])
            else:
                yield from (chunk[place] for _, _, place in members)

    def _check_pruned(self, number: int, page: str, slot: int) -> None:
        """Raises when a chunk is missing that is still named."""
        state, _, _, named = self._rows.table(page).get(slot)
        if state in ENDED and named == number:
            self._rows.chunk(number)

    def outcomes_since(self, cursor: int) -> tuple[list[Outcome], int]:
        """See `Store.outcomes_since`."""
        end = self._rows.counters()["chunks"]
        if cursor >= end:
            return [], cursor
        chunk = self._rows.read_chunk(cursor)
        while chunk is None:  # It was pruned.
            following = self._rows.chunk_after(cursor + 1)
            if following is None:
                return [], end
            cursor, chunk = following, self._rows.read_chunk(following)
        return chunk.all(), cursor + 1

    def find_batch(self, batch_id: str) -> Batch | None:
        """See `Store.find_batch`."""
        for prefix in ("i", "p"):
            number = self._rows.numbered(prefix, batch_id)
            batch = None if number is None else self._rows.find_batch_alone(number)
            if batch is not None:
                return batch
        return None

    def known_batches(self, provider_batch_ids: Collection[str]) -> set[str]:
        """See `Store.known_batches`."""
        return {one for one in provider_batch_ids if self._rows.numbered("p", one) is not None}

    def open_batches(self) -> list[Batch]:
        """See `Store.open_batches`."""
        found = [self._rows.find_batch_alone(number) for number in self._rows.open_numbers().values()]
        return [batch for batch in found if batch and batch.state in OPEN_STATES]

    def closed_batches(self, limit: int) -> list[Batch]:
        """See `Store.closed_batches`. Reads hardly more rows than that."""
        return list(islice(self._rows.ended_backwards(), limit))

    def unsettled(self, batch_id: str) -> Iterator[str]:
        """See `Store.unsettled`."""
        number = self._rows.open_numbers().get(batch_id)
        stored = None if number is None else self._rows.find_batch(number)
        if number is not None and stored is not None:
            for page, slot, _ in self._rows.members(number, stored.ranges):
                yield format_request_id(page, slot)


def _settled_view(outcome: Outcome, attempts: int) -> RequestView:
    return RequestView(
        request_id=outcome.request_id,
        state=RequestState.SETTLED,
        latency=outcome.latency,
        accepted_at=outcome.accepted_at,
        deadline_at=outcome.deadline_at,
        attempts=attempts,
        batch_id=None,
        key=outcome.key,
    )
