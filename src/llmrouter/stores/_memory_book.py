"""The requests of the store in memory: who waits, who has which key, and how they ended."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass, replace
from datetime import UTC, timedelta
from fnmatch import fnmatchcase
from itertools import islice
from typing import TYPE_CHECKING

from llmrouter.domain.batches import Answer
from llmrouter.domain.ledger import ClassTally, count_outcome, count_paid, count_warm_up
from llmrouter.domain.packing import Run, pack
from llmrouter.domain.requests import (
    Accepted,
    Cohort,
    Outcome,
    OutcomeKind,
    RequestState,
    RequestView,
    Route,
    Waiting,
)
from llmrouter.domain.runs import RunCounter
from llmrouter.domain.scheduling import group_span
from llmrouter.errors import KeyConflictError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from datetime import datetime
    from decimal import Decimal

    from llmrouter.domain.batches import Batch
    from llmrouter.domain.cache_use import CacheUse
    from llmrouter.domain.packing import BatchLimits
    from llmrouter.domain.requests import Lane, QueuedRequest
    from llmrouter.domain.runs import RunProgress

_LOG_CHUNK = 1000
"""Most outcomes that one read of the log answers with."""


@dataclass(slots=True, kw_only=True)
class Held:
    """A request and where it is. Its body is kept apart, since it is dropped first."""

    request: QueuedRequest
    size: int
    digest: bytes
    """Of the body: tells a repeated key from a conflict after the body was swept."""
    attempts: int = 0
    batch_id: str | None = None
    given_up: bool = False
    outcome: Outcome | None = None
    place: int = 0
    """Of its outcome in the log."""
    delivered: bool = False

    @property
    def state(self) -> RequestState:
        """Where it is."""
        if self.outcome is not None:
            return RequestState.SETTLED
        return RequestState.QUEUED if self.batch_id is None else RequestState.CLAIMED

    @property
    def deadline_at(self) -> datetime:
        """When it is due."""
        return self.request.deadline_at

    @property
    def window(self) -> timedelta:
        """From its acceptance to its deadline."""
        return self.request.deadline_at - self.request.accepted_at

    def view(self) -> RequestView:
        """For people and for futures."""
        return RequestView(
            request_id=self.request.request_id,
            state=self.state,
            latency=self.request.group.latency,
            accepted_at=self.request.accepted_at,
            deadline_at=self.request.deadline_at,
            attempts=self.attempts,
            batch_id=self.batch_id,
            key=self.request.key,
            lane_id=self.request.group.lane.lane_id if self.outcome is None else None,
            given_up=self.given_up and self.outcome is None,
        )


class Book:
    """Requests by id, by key and by lane. Its owner lets one thread in at a time."""

    def __init__(self) -> None:
        self.held: dict[str, Held] = {}
        self.bodies: dict[str, bytes] = {}
        self.log_end = 0
        """The place in the log after the newest outcome."""
        self.tally: dict[str, ClassTally] = {}
        """By latency class."""
        self._keys: dict[str, str] = {}
        self._queues: dict[tuple[Lane, str, str], dict[str, Held]] = {}
        """By lane, latency class and model."""
        self._log: dict[int, Outcome] = {}
        self._sweepable: dict[str, None] = {}

    def enqueue(self, requests: Sequence[QueuedRequest]) -> list[Accepted]:
        """See `Store.enqueue`."""
        answering = self._answering(requests)
        accepted = []
        for request, held in zip(requests, answering, strict=True):
            fresh = held.request.request_id not in self.held
            if fresh:
                self._admit(held, request.body)
            accepted.append(
                Accepted(
                    request_id=held.request.request_id,
                    accepted_at=held.request.accepted_at,
                    deadline_at=held.request.deadline_at,
                    duplicate=not fresh,
                )
            )
        return accepted

    def with_key(self, key: str) -> str | None:
        """See `Store.find_key`."""
        return self._keys.get(key)

    def unsettled_with_key(self, pattern: str) -> list[str]:
        """See `Store.find_keys`."""
        return [
            request_id
            for key, request_id in self._keys.items()
            if self.held[request_id].outcome is None and fnmatchcase(key, pattern)
        ]

    def runs(self) -> list[RunProgress]:
        """See `Store.runs`."""
        counter = RunCounter()
        for key, request_id in self._keys.items():
            held = self.held[request_id]
            if held.outcome is not None:
                counter.add_settled(held.outcome)
            else:
                request, queued = held.request, held.state is RequestState.QUEUED
                counter.add_unsettled(key, request.group.latency, request.accepted_at, queued=queued)
        return counter.progress()

    def outcomes_since(self, cursor: int) -> tuple[list[Outcome], int]:
        """See `Store.outcomes_since`."""
        if cursor >= self.log_end:
            return [], cursor
        places = list(islice((place for place in self._log if place >= cursor), _LOG_CHUNK))
        following = places[-1] + 1 if len(places) == _LOG_CHUNK else self.log_end
        return [self._log[place] for place in places], following

    def waiting(self) -> list[Waiting]:
        """See `Store.waiting`."""
        return [
            _line(lane, latency, model, _by_deadline(queue))
            for (lane, latency, model), queue in self._queues.items()
        ]

    def first_due(self, waiting: Waiting, limits: BatchLimits) -> list[Held]:
        """What would leave next. Among equal deadlines the smaller request id goes first."""
        due = self._due(waiting)
        if limits.one_fate:
            due = due[: _count_in_span(due)]
        return due[: sum(pack((_run(held) for held in due), limits))]

    def due_before(self, waiting: Waiting, before: datetime) -> list[Held]:
        """What is due before an instant, in the same order."""
        return [held for held in self._due(waiting) if held.deadline_at < before]

    def sample(self, waiting: Waiting, prefix: str) -> bytes | None:
        """See `Store.sample`. The one with the earliest deadline."""
        found = (held for held in self._due(waiting) if held.request.group.prefix == prefix)
        first = next(found, None)
        return None if first is None else self.bodies[first.request.request_id]

    def queue(self, held: Held) -> None:
        """Lets a request wait."""
        held.batch_id = None
        self._queues.setdefault(_place(held), {})[held.request.request_id] = held

    def unqueue(self, held: Held) -> None:
        """Takes a request out of the queue."""
        queue = self._queues[_place(held)]
        del queue[held.request.request_id]
        if not queue:
            del self._queues[_place(held)]

    def end(
        self,
        held: Held,
        answer: Answer,
        now: datetime,
        *,
        attempts: int,
        batch: Batch | None = None,
        route: Route = Route.BATCH,
    ) -> None:
        """Writes the one outcome of a request that is in no queue and no batch any more.

        Args:
            held: The request.
            answer: What is written.
            now: When.
            attempts: How many batches it has been in.
            batch: That answered, or that it was in when a live call did; None where there is none.
            route: Which way the outcome came.
        """
        request = held.request
        held.outcome = outcome = Outcome(
            request_id=request.request_id,
            kind=answer.kind,
            latency=request.group.latency,
            accepted_at=request.accepted_at,
            deadline_at=request.deadline_at,
            settled_at=now,
            attempts=attempts,
            batch_id=batch.batch_id if batch is not None and route is Route.BATCH else None,
            key=request.key,
            raw=answer.raw,
            route=route,
            reason=None if batch is None else batch.reason,
            insured=batch is None or batch.insured,
        )
        held.delivered = outcome.withdrawn
        held.place = self.log_end
        self._log[self.log_end] = outcome
        self.log_end += 1
        self._sweepable[request.request_id] = None
        self._count(outcome.latency, lambda tally: count_outcome(tally, outcome))

    def cancel(self, held: Held, now: datetime) -> None:
        """Ends a request that is in no queue and in no batch any more as canceled."""
        canceled = Answer(request_id=held.request.request_id, kind=OutcomeKind.CANCELED, raw=b"", retry=False)
        self.end(held, canceled, now, attempts=held.attempts)

    def count_paid(self, latency: str, now: datetime, paid_usd: Decimal) -> None:
        """What a live call cost."""
        self._count(latency, lambda tally: count_paid(tally, now.astimezone(UTC).date(), paid_usd))

    def count_wasted(self, latency: str, number: int) -> None:
        """Answers that came second."""
        self._count(latency, lambda tally: replace(tally, wasted=tally.wasted + number))

    def count_resent(self, latency: str, number: int) -> None:
        """Live calls that were made again."""
        self._count(latency, lambda tally: replace(tally, resent=tally.resent + number))

    def count_warm_up(self, latency: str, use: CacheUse, paid_usd: Decimal | None, now: datetime) -> None:
        """See `Store.count_warm_up`."""
        day = now.astimezone(UTC).date()
        self._count(latency, lambda tally: count_warm_up(tally, use, day, paid_usd))

    def sweep(self, limit: int) -> int:
        """See `Store.sweep`."""
        dropped = list(islice(self._sweepable, limit))
        for request_id in dropped:
            del self._sweepable[request_id], self.bodies[request_id]
        return len(dropped)

    def prune(self, before: datetime, limit: int, *, undelivered: bool) -> int:
        """See `Store.prune`; the batches are their owner's."""
        old = (
            outcome.request_id
            for outcome in self._log.values()
            if outcome.settled_at < before and (undelivered or self.held[outcome.request_id].delivered)
        )
        gone = list(islice(old, limit))
        for request_id in gone:
            self._forget(request_id)
        return len(gone)

    def _count(self, latency: str, counted: Callable[[ClassTally], ClassTally]) -> None:
        self.tally[latency] = counted(self.tally.get(latency, ClassTally()))

    def _due(self, waiting: Waiting) -> list[Held]:
        return _by_deadline(self._queues.get((waiting.lane, waiting.latency, waiting.model), {}))

    def _forget(self, request_id: str) -> None:
        held = self.held.pop(request_id)
        del self._log[held.place]
        self.bodies.pop(request_id, None)
        self._sweepable.pop(request_id, None)
        if held.request.key is not None:
            del self._keys[held.request.key]

    def _answering(self, requests: Sequence[QueuedRequest]) -> list[Held]:
        """For each request what will stand for it: itself, or the one that has its key. Changes nothing."""
        answering = []
        coming: dict[str, Held] = {}
        for index, request in enumerate(requests):
            held = Held(
                request=replace(request, body=b""),
                size=len(request.body),
                digest=hashlib.sha256(request.body).digest(),
            )
            if request.key is not None:
                known = self._keys.get(request.key)
                earlier = coming.setdefault(request.key, held) if known is None else self.held[known]
                _check_same(earlier, held, index)
                held = earlier
            answering.append(held)
        return answering

    def _admit(self, held: Held, body: bytes) -> None:
        request = held.request
        self.held[request.request_id] = held
        self.bodies[request.request_id] = body
        if request.key is not None:
            self._keys[request.key] = request.request_id
        self.queue(held)


def _check_same(earlier: Held, later: Held, index: int) -> None:
    if earlier.digest != later.digest:
        raise KeyConflictError("key", "is known with another body", index=index)
    known, asked = earlier.request.group.latency, later.request.group.latency
    if known != asked:
        raise KeyConflictError("key", f"is known with latency class {known!r}, not {asked!r}", index=index)


def _run(held: Held) -> Run:
    return Run(count=1, body_bytes=held.size, sizes=lambda: [held.size])


def _place(held: Held) -> tuple[Lane, str, str]:
    """The backlog that a request belongs to."""
    group = held.request.group
    return group.lane, group.latency, group.model


def _by_deadline(queue: Mapping[str, Held]) -> list[Held]:
    return sorted(queue.values(), key=lambda held: (held.deadline_at, held.request.request_id))


def _line(lane: Lane, latency: str, model: str, due: Sequence[Held]) -> Waiting:
    """A line of the backlog, of its requests by deadline."""
    prefixes = Counter(held.request.group.prefix for held in due)
    del prefixes[""]
    return Waiting(
        lane=lane,
        latency=latency,
        model=model,
        request_count=len(due),
        body_bytes=sum(held.size for held in due),
        earliest_deadline_at=due[0].deadline_at,
        window=due[0].window,
        cohorts=tuple(_cohorts(due)),
        prefixes=dict(prefixes),
    )


def _cohorts(due: Sequence[Held]) -> Iterator[Cohort]:
    """Cuts requests, earliest deadline first; each cohort is as wide as the window of its first allows."""
    while due:
        count = _count_in_span(due)
        cohort, due = due[:count], due[count:]
        yield Cohort(
            deadline_at=cohort[0].deadline_at,
            before=cohort[-1].deadline_at + timedelta.resolution,
            window=cohort[0].window,
            request_count=count,
            body_bytes=sum(held.size for held in cohort),
        )


def _count_in_span(due: Sequence[Held]) -> int:
    """How many of the first are due within `group_span` of the window of the first one."""
    if not due:
        return 0
    span = max(group_span(due[0].window), timedelta(0))
    return bisect_right(due, due[0].deadline_at + span, key=lambda held: held.deadline_at)
