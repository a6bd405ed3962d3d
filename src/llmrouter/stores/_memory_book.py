"""The requests of the store in memory: who waits, who has which key, and how they ended."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import islice
from typing import TYPE_CHECKING

from llmrouter.domain.packing import Run, pack
from llmrouter.domain.requests import Accepted, Outcome, OutcomeKind, RequestState, RequestView, Waiting
from llmrouter.errors import KeyConflictError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from llmrouter.domain.packing import BatchLimits
    from llmrouter.domain.requests import Lane, QueuedRequest

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
        self._keys: dict[str, str] = {}
        self._queues: dict[tuple[Lane, str], dict[str, Held]] = {}
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
            Waiting(
                lane=lane,
                latency=latency,
                request_count=len(queue),
                body_bytes=sum(held.size for held in queue.values()),
                earliest_deadline_at=min(held.request.deadline_at for held in queue.values()),
            )
            for (lane, latency), queue in self._queues.items()
        ]

    def first_due(self, lane: Lane, latency: str, limits: BatchLimits) -> list[Held]:
        """What would leave next. Among equal deadlines the smaller request id goes first."""
        queue = self._queues.get((lane, latency), {})
        due = sorted(queue.values(), key=lambda held: (held.request.deadline_at, held.request.request_id))
        return due[: sum(pack((_run(held) for held in due), limits))]

    def queue(self, held: Held) -> None:
        """Lets a request wait."""
        held.batch_id = None
        group = held.request.group
        self._queues.setdefault((group.lane, group.latency), {})[held.request.request_id] = held

    def unqueue(self, held: Held) -> None:
        """Takes a request out of the queue."""
        group = held.request.group
        queue = self._queues[group.lane, group.latency]
        del queue[held.request.request_id]
        if not queue:
            del self._queues[group.lane, group.latency]

    def end(self, held: Held, kind: OutcomeKind, raw: bytes, now: datetime, *, batches: int) -> None:
        """Writes the one outcome of a request that is in no queue any more."""
        request = held.request
        held.outcome = Outcome(
            request_id=request.request_id,
            kind=kind,
            latency=request.group.latency,
            accepted_at=request.accepted_at,
            deadline_at=request.deadline_at,
            settled_at=now,
            attempts=batches,
            batch_id=held.batch_id,
            key=request.key,
            raw=raw,
        )
        held.batch_id = None
        held.delivered = held.outcome.withdrawn
        held.place = self.log_end
        self._log[self.log_end] = held.outcome
        self.log_end += 1
        self._sweepable[request.request_id] = None

    def cancel(self, held: Held, now: datetime) -> None:
        """Ends a request that is in no queue and in no batch any more as canceled."""
        held.batch_id = None
        self.end(held, OutcomeKind.CANCELED, b"", now, batches=held.attempts)

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
