"""Answers of a batch onto the state tables of the disk store."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from llmrouter.domain.requests import Outcome, split_request_id
from llmrouter.stores._layout import CLAIMED, QUEUED, SETTLED, Table, from_us

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from llmrouter.domain.batches import Answer, Batch
    from llmrouter.stores._backlog import Members

CHUNK_OUTCOMES = 10_000
"""At most so many outcomes in one row; a place in it is written with 16 bits."""

_MOST_ATTEMPTS = 255


class Settlement:
    """Applies answers in memory; its owner writes what came of it, in the same transaction."""

    def __init__(
        self,
        members: Members,
        batch: Batch,
        number: int,
        first_chunk: int,
        now: datetime,
        load: Callable[[str], Table],
    ) -> None:
        self._members = members
        self._batch_id = batch.batch_id
        self._latency = batch.latency
        self._number = number
        self._first_chunk = first_chunk
        self._now = now
        self._load = load
        self.tables: dict[str, Table] = {}
        self.outcomes: list[Outcome] = []
        self.retried: list[tuple[str, int]] = []
        self.repeated = 0
        self.unknown = 0

    def apply(self, answer: Answer) -> None:
        """Takes one answer in, or counts it when its request is not in the batch."""
        try:
            page, slot = split_request_id(answer.request_id)
        except ValueError:
            self.unknown += 1
            return
        if not self._members.includes(page, slot):
            self.unknown += 1
            return
        if page not in self.tables:
            self.tables[page] = self._load(page)
        table = self.tables[page]
        state, attempts, _, owner = table.get(slot)
        if (state, owner) != (CLAIMED, self._number):
            self.repeated += 1
            return
        if answer.retry:
            table.put(slot, QUEUED, min(attempts + 1, _MOST_ATTEMPTS), 0, 0)
            self.retried.append((page, slot))
        else:
            chunk, place = divmod(len(self.outcomes), CHUNK_OUTCOMES)
            table.put(slot, SETTLED, attempts, place, self._first_chunk + chunk)
            self.outcomes.append(self._outcome(answer, page, slot, attempts + 1))

    def chunks(self) -> Iterator[list[Outcome]]:
        """The outcomes, a row of the log at a time."""
        rest = iter(self.outcomes)
        while chunk := list(islice(rest, CHUNK_OUTCOMES)):
            yield chunk

    def _outcome(self, answer: Answer, page: str, slot: int, attempts: int) -> Outcome:
        segment = self._members.segment(page, slot)
        return Outcome(
            request_id=answer.request_id,
            kind=answer.kind,
            latency=self._latency,
            accepted_at=from_us(segment.accepted_us),
            deadline_at=from_us(segment.deadline_us),
            settled_at=self._now,
            attempts=attempts,
            batch_id=self._batch_id,
            key=self._members.request_key(segment, slot),
            raw=answer.raw,
        )
