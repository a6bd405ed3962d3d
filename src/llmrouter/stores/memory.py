"""A store that lives and dies with its process: for ``memory://`` and for tests."""

from __future__ import annotations

import secrets
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, assert_never

from llmrouter.domain.batches import OPEN_STATES, Batch, BatchState, Canceled, Settled
from llmrouter.domain.requests import OutcomeKind, RequestState
from llmrouter.errors import StoreError
from llmrouter.stores import _batch_rules as rules
from llmrouter.stores._memory_book import Book, Held
from llmrouter.stores._memory_lease import LeaseDesk
from llmrouter.stores.framing import FramedBody

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from datetime import datetime, timedelta

    from llmrouter.domain.batches import Answer
    from llmrouter.domain.packing import BatchLimits
    from llmrouter.domain.reporting import EngineReport, EngineView
    from llmrouter.domain.requests import Accepted, Outcome, QueuedRequest, RequestView, Waiting
    from llmrouter.ports import BatchBody, Lease

__all__ = ["MemoryStore"]


@dataclass(slots=True, kw_only=True)
class _HeldBatch:
    """A batch and the requests that it was claimed with."""

    batch: Batch
    members: dict[str, None]
    """In the order of their deadlines."""
    inside: dict[str, None]
    """Those that have not left it."""
    given_up_at: datetime | None = None
    """When one of them was last given up."""


class MemoryStore:
    """The `Store` contract in dictionaries under one lock. Nothing outlives the process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._secret = secrets.token_bytes(32)
        self._book = Book()
        self._batches: dict[str, _HeldBatch] = {}
        self._desk = LeaseDesk()
        self._paused: dict[str, datetime] = {}
        self._flush_requested = False

    def secret(self) -> bytes:
        """See `Store.secret`."""
        return self._secret

    def enqueue(self, requests: Sequence[QueuedRequest]) -> list[Accepted]:
        """See `Store.enqueue`."""
        with self._lock:
            return self._book.enqueue(requests)

    def find(self, request_id: str) -> RequestView | None:
        """See `Store.find`."""
        with self._lock:
            held = self._book.held.get(request_id)
            return None if held is None else held.view()

    def find_key(self, key: str) -> str | None:
        """See `Store.find_key`."""
        with self._lock:
            return self._book.with_key(key)

    def find_keys(self, pattern: str) -> Iterator[str]:
        """See `Store.find_keys`. Those at the time of the call."""
        with self._lock:
            return iter(self._book.unsettled_with_key(pattern))

    def find_batch(self, batch_id: str) -> Batch | None:
        """See `Store.find_batch`."""
        with self._lock:
            for held in self._batches.values():
                if batch_id in (held.batch.batch_id, held.batch.provider_batch_id):
                    return held.batch
            return None

    def outcomes(self, request_ids: Collection[str]) -> Iterator[Outcome]:
        """See `Store.outcomes`. Those at the time of the call."""
        with self._lock:
            found = [self._book.held[one].outcome for one in request_ids if one in self._book.held]
        return (outcome for outcome in found if outcome is not None)

    def outcome_cursor(self) -> int:
        """See `Store.outcome_cursor`."""
        with self._lock:
            return self._book.log_end

    def outcomes_since(self, cursor: int) -> tuple[list[Outcome], int]:
        """See `Store.outcomes_since`."""
        with self._lock:
            return self._book.outcomes_since(cursor)

    def cancel(self, request_ids: Collection[str], now: datetime, *, in_batches: bool) -> Canceled:
        """See `Store.cancel`."""
        with self._lock:
            found = [self._book.held[one] for one in sorted({*request_ids}) if one in self._book.held]
            done = [self._cancel(held, now, in_batches=in_batches) for held in found]
            touched = {held.batch_id for held in found if in_batches and held.batch_id}
            for batch_id in touched:
                self._note_given_up(self._batches[batch_id], now)
        return Canceled(
            canceled=done.count("canceled"), asked=done.count("asked"), settled=done.count("settled")
        )

    def deliver(self, request_ids: Collection[str]) -> None:
        """See `Store.deliver`."""
        with self._lock:
            for request_id in request_ids:
                held = self._book.held.get(request_id)
                if held is not None and held.outcome is not None:
                    held.delivered = True

    def pause(self, latency: str, now: datetime) -> None:
        """See `Store.pause`."""
        with self._lock:
            self._paused.setdefault(latency, now)

    def resume(self, latency: str) -> bool:
        """See `Store.resume`."""
        with self._lock:
            return self._paused.pop(latency, None) is not None

    def paused(self) -> Mapping[str, datetime]:
        """See `Store.paused`."""
        with self._lock:
            return dict(self._paused)

    def engine(self) -> EngineView | None:
        """See `Store.engine`."""
        with self._lock:
            return self._desk.view()

    def request_flush(self) -> None:
        """See `Store.request_flush`."""
        with self._lock:
            self._flush_requested = True

    def waiting(self) -> list[Waiting]:
        """See `Store.waiting`."""
        with self._lock:
            return self._book.waiting()

    def open_batches(self) -> list[Batch]:
        """See `Store.open_batches`."""
        with self._lock:
            return [held.batch for held in self._batches.values() if held.batch.state in OPEN_STATES]

    def acquire_lease(self, holder: str, now: datetime, length: timedelta) -> Lease | None:
        """See `Store.acquire_lease`."""
        with self._lock:
            return self._desk.acquire(holder, now, length)

    def release_lease(self, lease: Lease) -> None:
        """See `Store.release_lease`."""
        with self._lock:
            self._desk.release(lease)

    def check_lease(self, lease: Lease) -> None:
        """See `Store.check_lease`."""
        with self._lock:
            self._desk.check(lease)

    def report(self, lease: Lease, report: EngineReport) -> None:
        """See `Store.report`."""
        with self._lock:
            self._desk.report(lease, report)

    def take_flush_request(self, lease: Lease) -> bool:
        """See `Store.take_flush_request`."""
        with self._lock:
            self._desk.check(lease)
            requested, self._flush_requested = self._flush_requested, False
            return requested

    def claim(
        self, lease: Lease, waiting: Waiting, limits: BatchLimits, *, batch_id: str, nonce: str, now: datetime
    ) -> Batch | None:
        """See `Store.claim`. Among equal deadlines the smaller request id goes first."""
        with self._lock:
            self._desk.check(lease)
            taken = self._book.first_due(waiting.lane, waiting.latency, limits)
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
            self._fill(batch, taken)
            return batch

    def body(self, batch: Batch) -> BatchBody:
        """See `Store.body`."""
        with self._lock:
            members = self._opened(batch.batch_id).members
            bodies = [(request_id, self._book.bodies[request_id]) for request_id in members]
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
            self._desk.check(lease)
            held_batch = self._opened(batch.batch_id)
            held_batch.batch = rules.updated(held_batch.batch, batch)

    def record_created(self, batch: Batch) -> bool:
        """See `Store.record_created`."""
        with self._lock:
            held_batch = self._batches.get(batch.batch_id)
            created = None if held_batch is None else rules.created(held_batch.batch, batch)
            if held_batch is None or created is None:
                return False
            held_batch.batch = created
            return True

    def known_batches(self, provider_batch_ids: Collection[str]) -> set[str]:
        """See `Store.known_batches`."""
        with self._lock:
            known = {held.batch.provider_batch_id for held in self._batches.values()}
            return {one for one in provider_batch_ids if one in known}

    def release(self, lease: Lease, batch_id: str) -> int:
        """See `Store.release`."""
        with self._lock:
            self._desk.check(lease)
            held_batch = self._batches.get(batch_id)
            if held_batch is None or held_batch.batch.state not in (BatchState.CLAIMED, BatchState.IN_DOUBT):
                return 0
            held_batch.batch = replace(held_batch.batch, state=BatchState.RELEASED)
            left, held_batch.inside = held_batch.inside, {}
            for held in (self._book.held[request_id] for request_id in sorted(left)):
                if held.given_up and held_batch.given_up_at is not None:
                    self._book.cancel(held, held_batch.given_up_at)
                else:
                    self._book.queue(held)
            return len(left)

    def settle(self, lease: Lease, batch_id: str, answers: Sequence[Answer], now: datetime) -> Settled:
        """See `Store.settle`.

        Raises:
            StoreError: The batch is not open.
        """
        with self._lock:
            self._desk.check(lease)
            held_batch = self._opened(batch_id)
            outcomes = retried = repeated = unknown = 0
            for answer in answers:
                if answer.request_id not in held_batch.members:
                    unknown += 1
                elif answer.request_id not in held_batch.inside:
                    repeated += 1
                else:
                    del held_batch.inside[answer.request_id]
                    settled = self._apply(answer, now)
                    outcomes += settled
                    retried += not settled
            return Settled(outcomes=outcomes, retried=retried, repeated=repeated, unknown=unknown)

    def unsettled(self, batch_id: str) -> Iterator[str]:
        """See `Store.unsettled`. Those at the time of the call; none when the batch is closed."""
        with self._lock:
            held_batch = self._batches.get(batch_id)
            return iter(() if held_batch is None else tuple(held_batch.inside))

    def finish(self, lease: Lease, batch: Batch) -> None:
        """See `Store.finish`."""
        with self._lock:
            self._desk.check(lease)
            held_batch = self._opened(batch.batch_id)
            if held_batch.inside:
                raise StoreError(f"{batch.batch_id}: {len(held_batch.inside)} requests are still in it")
            held_batch.batch = rules.finished(held_batch.batch, batch)

    def sweep(self, lease: Lease, limit: int) -> int:
        """See `Store.sweep`."""
        with self._lock:
            self._desk.check(lease)
            return self._book.sweep(limit)

    def prune(self, lease: Lease, before: datetime, limit: int, *, undelivered: bool) -> int:
        """See `Store.prune`."""
        with self._lock:
            self._desk.check(lease)
            gone = self._book.prune(before, limit, undelivered=undelivered)
            self._batches = {
                batch_id: held
                for batch_id, held in self._batches.items()
                if held.batch.state in OPEN_STATES
                or not rules.is_over_before(held.batch, before)
                or any(request_id in self._book.held for request_id in held.members)
            }
            return gone

    def close(self) -> None:
        """See `Store.close`. There is nothing to let go of."""

    def _cancel(
        self, held: Held, now: datetime, *, in_batches: bool
    ) -> Literal["canceled", "asked", "settled", "left"]:
        match held.state:
            case RequestState.QUEUED:
                self._book.unqueue(held)
                self._book.cancel(held, now)
                return "canceled"
            case RequestState.CLAIMED:
                held.given_up = held.given_up or in_batches
                return "asked" if in_batches else "left"
            case RequestState.SETTLED:
                return "settled"
            case never:
                assert_never(never)

    def _note_given_up(self, held_batch: _HeldBatch, now: datetime) -> None:
        held_batch.given_up_at = now
        if all(self._book.held[request_id].given_up for request_id in held_batch.inside):
            held_batch.batch = replace(held_batch.batch, cancel_wanted=True)

    def _fill(self, batch: Batch, taken: Sequence[Held]) -> None:
        for held in taken:
            self._book.unqueue(held)
            held.batch_id = batch.batch_id
        members = dict.fromkeys(held.request.request_id for held in taken)
        self._batches[batch.batch_id] = _HeldBatch(batch=batch, members=members, inside=members.copy())

    def _apply(self, answer: Answer, now: datetime) -> bool:
        """Whether the request got its outcome by the answer."""
        held = self._book.held[answer.request_id]
        if answer.retry and not held.given_up:
            held.attempts += 1
            self._book.queue(held)
            return False
        kind, raw = (OutcomeKind.CANCELED, b"") if answer.retry else (answer.kind, answer.raw)
        self._book.end(held, kind, raw, now, batches=held.attempts + 1)
        return True

    def _opened(self, batch_id: str) -> _HeldBatch:
        held_batch = self._batches.get(batch_id)
        if held_batch is None or held_batch.batch.state not in OPEN_STATES:
            raise StoreError(f"{batch_id}: there is no such open batch")
        return held_batch
