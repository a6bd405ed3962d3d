"""A store that lives and dies with its process: for ``memory://`` and for tests."""

from __future__ import annotations

import hashlib
import secrets
import threading
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

from llmrouter.domain.batches import OPEN_STATES, Batch, BatchState, Settled
from llmrouter.domain.packing import Run, pack
from llmrouter.domain.requests import Accepted, Outcome, OutcomeKind, RequestState, RequestView, Waiting
from llmrouter.errors import KeyConflictError, LeaseLostError, StoreError
from llmrouter.ports import Lease
from llmrouter.stores.framing import FramedBody

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from datetime import datetime, timedelta

    from llmrouter.domain.batches import Answer
    from llmrouter.domain.packing import BatchLimits
    from llmrouter.domain.requests import Lane, QueuedRequest
    from llmrouter.ports import BatchBody

__all__ = ["MemoryStore"]

_LOG_CHUNK = 1000
"""Most outcomes that one read of the log answers with."""


@dataclass(slots=True, kw_only=True)
class _Held:
    """A request and where it is. Its body is kept apart, since it is dropped first."""

    request: QueuedRequest
    size: int
    digest: bytes
    """Of the body: tells a repeated key from a conflict after the body was swept."""
    attempts: int = 0
    batch_id: str | None = None
    outcome: Outcome | None = None


@dataclass(slots=True, kw_only=True)
class _HeldBatch:
    """An open batch and the requests that it was claimed with. Nobody asks for one that is closed."""

    batch: Batch
    members: dict[str, None]
    """In the order of their deadlines."""
    inside: dict[str, None]
    """Those that have not left it."""


class MemoryStore:
    """The `Store` contract in dictionaries under one lock. Nothing outlives the process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._secret = secrets.token_bytes(32)
        self._held: dict[str, _Held] = {}
        self._bodies: dict[str, bytes] = {}
        self._keys: dict[str, str] = {}
        self._queues: dict[tuple[Lane, str], dict[str, _Held]] = {}
        self._open: dict[str, _HeldBatch] = {}
        self._log: list[Outcome] = []
        self._sweepable: dict[str, None] = {}
        self._flush_requested = False
        self._fence = 0
        self._lease: Lease | None = None
        self._lease_until: datetime | None = None

    def secret(self) -> bytes:
        """See `Store.secret`."""
        return self._secret

    def enqueue(self, requests: Sequence[QueuedRequest]) -> list[Accepted]:
        """See `Store.enqueue`."""
        with self._lock:
            answering = self._answering(requests)
            accepted = []
            for request, held in zip(requests, answering, strict=True):
                fresh = held.request.request_id not in self._held
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

    def find(self, request_id: str) -> RequestView | None:
        """See `Store.find`."""
        with self._lock:
            held = self._held.get(request_id)
            return None if held is None else _view(held)

    def find_key(self, key: str) -> str | None:
        """See `Store.find_key`."""
        with self._lock:
            return self._keys.get(key)

    def outcomes(self, request_ids: Collection[str]) -> Iterator[Outcome]:
        """See `Store.outcomes`. Those at the time of the call."""
        with self._lock:
            found = [self._held[request_id].outcome for request_id in request_ids if request_id in self._held]
        return (outcome for outcome in found if outcome is not None)

    def outcome_cursor(self) -> int:
        """See `Store.outcome_cursor`."""
        with self._lock:
            return len(self._log)

    def outcomes_since(self, cursor: int) -> tuple[list[Outcome], int]:
        """See `Store.outcomes_since`."""
        with self._lock:
            chunk = self._log[cursor : cursor + _LOG_CHUNK]
            return chunk, cursor + len(chunk)

    def cancel(self, request_id: str, now: datetime) -> bool:
        """See `Store.cancel`."""
        with self._lock:
            held = self._held.get(request_id)
            if held is None or _state(held) is not RequestState.QUEUED:
                return False
            self._unqueue(held)
            self._end(held, OutcomeKind.CANCELED, b"", now, batches=held.attempts)
            return True

    def request_flush(self) -> None:
        """See `Store.request_flush`."""
        with self._lock:
            self._flush_requested = True

    def waiting(self) -> list[Waiting]:
        """See `Store.waiting`."""
        with self._lock:
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

    def open_batches(self) -> list[Batch]:
        """See `Store.open_batches`."""
        with self._lock:
            return [held.batch for held in self._open.values()]

    def acquire_lease(self, holder: str, now: datetime, length: timedelta) -> Lease | None:
        """See `Store.acquire_lease`. No holder is ever dead: all are in this process."""
        with self._lock:
            if self._lease is None or self._lease.holder != holder:
                if self._lease is not None and self._lease_until is not None and self._lease_until > now:
                    return None
                self._fence += 1
                self._lease = Lease(holder=holder, fence=self._fence)
            self._lease_until = now + length
            return self._lease

    def release_lease(self, lease: Lease) -> None:
        """See `Store.release_lease`."""
        with self._lock:
            if self._lease == lease:
                self._lease = self._lease_until = None

    def take_flush_request(self, lease: Lease) -> bool:
        """See `Store.take_flush_request`."""
        with self._lock:
            self._check(lease)
            requested, self._flush_requested = self._flush_requested, False
            return requested

    def claim(
        self, lease: Lease, waiting: Waiting, limits: BatchLimits, *, batch_id: str, nonce: str, now: datetime
    ) -> Batch | None:
        """See `Store.claim`. Among equal deadlines the smaller request id goes first."""
        with self._lock:
            self._check(lease)
            taken = self._first_due(waiting.lane, waiting.latency, limits)
            if not taken:
                return None
            batch = Batch(
                batch_id=batch_id,
                lane=waiting.lane,
                latency=waiting.latency,
                nonce=nonce,
                state=BatchState.CLAIMED,
                request_count=len(taken),
                body_bytes=sum(held.size for held in taken),
                claimed_at=now,
                fence=lease.fence,
                attempts={held.request.request_id: held.attempts for held in taken if held.attempts},
            )
            self._open[batch_id] = self._filled(batch, taken)
            return batch

    def body(self, batch: Batch) -> BatchBody:
        """See `Store.body`."""
        with self._lock:
            members = self._opened(batch.batch_id).members
            bodies = [(request_id, self._bodies[request_id]) for request_id in members]
        return FramedBody(
            nonce=batch.nonce,
            request_count=batch.request_count,
            body_bytes=batch.body_bytes,
            bodies=lambda: bodies,
        )

    def update_batch(self, lease: Lease, batch: Batch) -> None:
        """See `Store.update_batch`.

        Raises:
            StoreError: The batch is not open, or would not be.
        """
        with self._lock:
            self._check(lease)
            if batch.state not in OPEN_STATES:
                raise StoreError(f"{batch.batch_id}: {batch.state} is no state of an open batch")
            self._opened(batch.batch_id).batch = batch

    def release(self, lease: Lease, batch_id: str) -> int:
        """See `Store.release`."""
        with self._lock:
            self._check(lease)
            held_batch = self._open.pop(batch_id, None)
            if held_batch is None:
                return 0
            for request_id in held_batch.inside:
                self._queue(self._held[request_id])
            return len(held_batch.inside)

    def settle(self, lease: Lease, batch_id: str, answers: Sequence[Answer], now: datetime) -> Settled:
        """See `Store.settle`.

        Raises:
            StoreError: The batch is not open.
        """
        with self._lock:
            self._check(lease)
            held_batch = self._opened(batch_id)
            outcomes = retried = repeated = unknown = 0
            for answer in answers:
                if answer.request_id not in held_batch.members:
                    unknown += 1
                elif answer.request_id not in held_batch.inside:
                    repeated += 1
                else:
                    del held_batch.inside[answer.request_id]
                    self._apply(answer, now)
                    outcomes += not answer.retry
                    retried += answer.retry
            return Settled(outcomes=outcomes, retried=retried, repeated=repeated, unknown=unknown)

    def unsettled(self, batch_id: str) -> Iterator[str]:
        """See `Store.unsettled`. Those at the time of the call; none when the batch is closed."""
        with self._lock:
            held_batch = self._open.get(batch_id)
            return iter(() if held_batch is None else tuple(held_batch.inside))

    def finish(self, lease: Lease, batch: Batch) -> None:
        """See `Store.finish`."""
        with self._lock:
            self._check(lease)
            held_batch = self._opened(batch.batch_id)
            if held_batch.inside:
                raise StoreError(f"{batch.batch_id}: {len(held_batch.inside)} requests are still in it")
            del self._open[batch.batch_id]

    def sweep(self, lease: Lease, limit: int) -> int:
        """See `Store.sweep`."""
        with self._lock:
            self._check(lease)
            dropped = list(islice(self._sweepable, limit))
            for request_id in dropped:
                del self._sweepable[request_id], self._bodies[request_id]
            return len(dropped)

    def close(self) -> None:
        """See `Store.close`. There is nothing to let go of."""

    def _answering(self, requests: Sequence[QueuedRequest]) -> list[_Held]:
        """For each request what will stand for it: itself, or the one that has its key. Changes nothing."""
        answering = []
        coming: dict[str, _Held] = {}
        for index, request in enumerate(requests):
            held = _Held(
                request=replace(request, body=b""),
                size=len(request.body),
                digest=hashlib.sha256(request.body).digest(),
            )
            if request.key is not None:
                earlier = self._with_key(request.key) or coming.setdefault(request.key, held)
                _check_same(earlier, held, index)
                held = earlier
            answering.append(held)
        return answering

    def _with_key(self, key: str) -> _Held | None:
        request_id = self._keys.get(key)
        return None if request_id is None else self._held[request_id]

    def _admit(self, held: _Held, body: bytes) -> None:
        request = held.request
        self._held[request.request_id] = held
        self._bodies[request.request_id] = body
        if request.key is not None:
            self._keys[request.key] = request.request_id
        self._queue(held)

    def _queue(self, held: _Held) -> None:
        held.batch_id = None
        group = held.request.group
        self._queues.setdefault((group.lane, group.latency), {})[held.request.request_id] = held

    def _unqueue(self, held: _Held) -> None:
        group = held.request.group
        queue = self._queues[group.lane, group.latency]
        del queue[held.request.request_id]
        if not queue:
            del self._queues[group.lane, group.latency]

    def _first_due(self, lane: Lane, latency: str, limits: BatchLimits) -> list[_Held]:
        queue = self._queues.get((lane, latency), {})
        due = sorted(queue.values(), key=lambda held: (held.request.deadline_at, held.request.request_id))
        return due[: sum(pack((_run(held) for held in due), limits))]

    def _filled(self, batch: Batch, taken: Sequence[_Held]) -> _HeldBatch:
        for held in taken:
            self._unqueue(held)
            held.batch_id = batch.batch_id
        members = dict.fromkeys(held.request.request_id for held in taken)
        return _HeldBatch(batch=batch, members=members, inside=members.copy())

    def _apply(self, answer: Answer, now: datetime) -> None:
        held = self._held[answer.request_id]
        if answer.retry:
            held.attempts += 1
            self._queue(held)
        else:
            self._end(held, answer.kind, answer.raw, now, batches=held.attempts + 1)

    def _end(self, held: _Held, kind: OutcomeKind, raw: bytes, now: datetime, *, batches: int) -> None:
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
        self._log.append(held.outcome)
        self._sweepable[request.request_id] = None

    def _opened(self, batch_id: str) -> _HeldBatch:
        held_batch = self._open.get(batch_id)
        if held_batch is None:
            raise StoreError(f"{batch_id}: there is no such open batch")
        return held_batch

    def _check(self, lease: Lease) -> None:
        if lease.fence != self._fence:
            raise LeaseLostError(
                f"{lease.holder} held lease {lease.fence}; lease {self._fence} has been given out since"
            )


def _check_same(earlier: _Held, later: _Held, index: int) -> None:
    if earlier.digest != later.digest:
        raise KeyConflictError("key", "is known with another body", index=index)
    known, asked = earlier.request.group.latency, later.request.group.latency
    if known != asked:
        raise KeyConflictError("key", f"is known with latency class {known!r}, not {asked!r}", index=index)


def _run(held: _Held) -> Run:
    return Run(count=1, body_bytes=held.size, sizes=lambda: [held.size])


def _state(held: _Held) -> RequestState:
    if held.outcome is not None:
        return RequestState.SETTLED
    return RequestState.QUEUED if held.batch_id is None else RequestState.CLAIMED


def _view(held: _Held) -> RequestView:
    return RequestView(
        request_id=held.request.request_id,
        state=_state(held),
        latency=held.request.group.latency,
        accepted_at=held.request.accepted_at,
        deadline_at=held.request.deadline_at,
        attempts=held.attempts,
        batch_id=held.batch_id,
        key=held.request.key,
    )
