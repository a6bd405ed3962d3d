"""A store that lives and dies with its process: for ``memory://`` and for tests."""

from __future__ import annotations

import secrets
import threading
from typing import TYPE_CHECKING, Literal, assert_never

from llmrouter.domain.batches import Batch, BatchState, Canceled
from llmrouter.domain.requests import RequestState
from llmrouter.domain.traffic import add_rows
from llmrouter.stores._memory_batches import Batches
from llmrouter.stores._memory_book import Book, Held
from llmrouter.stores._memory_lease import LeaseDesk
from llmrouter.stores.framing import FramedBody

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from datetime import date, datetime, timedelta
    from decimal import Decimal

    from llmrouter.domain.batches import Answer, Settled
    from llmrouter.domain.blocks import Reason
    from llmrouter.domain.cache_use import CacheUse
    from llmrouter.domain.ledger import Tally
    from llmrouter.domain.live import LiveCall
    from llmrouter.domain.packing import BatchLimits
    from llmrouter.domain.reporting import EngineReport, EngineView
    from llmrouter.domain.requests import Accepted, Outcome, QueuedRequest, RequestView, Waiting
    from llmrouter.domain.runs import RunProgress
    from llmrouter.domain.traffic import TrafficRow
    from llmrouter.ports import BatchBody, Lease

__all__ = ["MemoryStore"]


class MemoryStore:
    """The `Store` contract in dictionaries under one lock. Nothing outlives the process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._secret = secrets.token_bytes(32)
        self._book = Book()
        self._batches = Batches(self._book)
        self._desk = LeaseDesk()
        self._paused: dict[str, datetime] = {}
        self._flush_requested = False
        self._traffic: list[TrafficRow] = []

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

    def runs(self) -> list[RunProgress]:
        """See `Store.runs`."""
        with self._lock:
            return self._book.runs()

    def find_batch(self, batch_id: str) -> Batch | None:
        """See `Store.find_batch`."""
        with self._lock:
            return self._batches.named(batch_id)

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
                self._batches.note_given_up(batch_id, now)
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

    def sample(self, waiting: Waiting, prefix: str) -> bytes | None:
        """See `Store.sample`."""
        with self._lock:
            return self._book.sample(waiting, prefix)

    def open_batches(self) -> list[Batch]:
        """See `Store.open_batches`."""
        with self._lock:
            return self._batches.in_open_states()

    def closed_batches(self, limit: int) -> list[Batch]:
        """See `Store.closed_batches`."""
        with self._lock:
            return self._batches.closed(limit)

    def tally(self) -> Tally:
        """See `Store.tally`."""
        with self._lock:
            return dict(self._book.tally)

    def answer(self, answers: Sequence[Answer], now: datetime) -> Settled:
        """See `Store.answer`."""
        with self._lock:
            return self._batches.answer(answers, now)

    def count_warm_up(self, latency: str, use: CacheUse, paid_usd: Decimal | None, now: datetime) -> None:
        """See `Store.count_warm_up`."""
        with self._lock:
            self._book.count_warm_up(latency, use, paid_usd, now)

    def add_traffic(self, rows: Sequence[TrafficRow]) -> None:
        """See `Store.add_traffic`."""
        with self._lock:
            self._traffic = add_rows(self._traffic, rows)

    def traffic(self, since: date | None) -> list[TrafficRow]:
        """See `Store.traffic`."""
        with self._lock:
            return [row for row in self._traffic if since is None or row.day >= since]

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
            batch = Batch(
                batch_id=batch_id,
                lane=waiting.lane,
                latency=waiting.latency,
                model=waiting.model,
                nonce=nonce,
                state=BatchState.CLAIMED,
                request_count=0,
                body_bytes=0,
                claimed_at=now,
                fence=lease.fence,
            )
            return self._batches.claim(batch, self._book.first_due(waiting, limits))

    def escalate_waiting(
        self,
        lease: Lease,
        waiting: Waiting,
        before: datetime,
        *,
        batch_id: str,
        reason: Reason,
        insured: bool,
        now: datetime,
    ) -> Batch | None:
        """See `Store.escalate_waiting`."""
        with self._lock:
            self._desk.check(lease)
            batch = Batch(
                batch_id=batch_id,
                lane=waiting.lane,
                latency=waiting.latency,
                model=waiting.model,
                nonce="",
                state=BatchState.ESCALATING,
                request_count=0,
                body_bytes=0,
                claimed_at=now,
                fence=lease.fence,
                reason=reason,
                insured=insured,
                escalated_at=now,
            )
            return self._batches.claim(batch, self._book.due_before(waiting, before))

    def escalate_batch(
        self, lease: Lease, batch_id: str, *, into: str, reason: Reason, insured: bool, now: datetime
    ) -> Batch | None:
        """See `Store.escalate_batch`."""
        with self._lock:
            self._desk.check(lease)
            return self._batches.escalate(
                batch_id, into=into, fence=lease.fence, reason=reason, insured=insured, now=now
            )

    def note_decision(
        self, lease: Lease, batch_id: str, *, reason: Reason, insured: bool, recalled_at: datetime | None
    ) -> None:
        """See `Store.note_decision`."""
        with self._lock:
            self._desk.check(lease)
            self._batches.note_decision(batch_id, reason=reason, insured=insured, recalled_at=recalled_at)

    def begin_calls(self, lease: Lease, batch_id: str, request_ids: Sequence[str]) -> list[LiveCall]:
        """See `Store.begin_calls`."""
        with self._lock:
            self._desk.check(lease)
            return self._batches.begin_calls(batch_id, request_ids)

    def end_calls(self, lease: Lease, batch_id: str, request_ids: Collection[str]) -> None:
        """See `Store.end_calls`."""
        with self._lock:
            self._desk.check(lease)
            self._batches.end_calls(batch_id, request_ids)

    def body(self, batch: Batch) -> BatchBody:
        """See `Store.body`."""
        with self._lock:
            members = self._batches.opened(batch.batch_id).members
            bodies = [(request_id, self._book.bodies[request_id]) for request_id in members]
        return FramedBody(
            nonce=batch.nonce,
            request_count=batch.request_count,
            body_bytes=batch.body_bytes,
            bodies=lambda: bodies,
        )

    def update_batch(self, lease: Lease, batch: Batch) -> None:
        """See `Store.update_batch`."""
        with self._lock:
            self._desk.check(lease)
            self._batches.update(batch)

    def record_created(self, batch: Batch) -> bool:
        """See `Store.record_created`."""
        with self._lock:
            return self._batches.created(batch)

    def known_batches(self, provider_batch_ids: Collection[str]) -> set[str]:
        """See `Store.known_batches`."""
        with self._lock:
            return self._batches.known(provider_batch_ids)

    def release(self, lease: Lease, batch_id: str) -> int:
        """See `Store.release`."""
        with self._lock:
            self._desk.check(lease)
            return self._batches.release(batch_id)

    def settle(self, lease: Lease, batch_id: str, answers: Sequence[Answer], now: datetime) -> Settled:
        """See `Store.settle`."""
        with self._lock:
            self._desk.check(lease)
            return self._batches.settle(batch_id, answers, now)

    def unsettled(self, batch_id: str) -> Iterator[str]:
        """See `Store.unsettled`. Those at the time of the call; none when the batch is closed."""
        with self._lock:
            held_batch = self._batches.find(batch_id)
            return iter(() if held_batch is None else tuple(held_batch.inside))

    def finish(self, lease: Lease, batch: Batch) -> None:
        """See `Store.finish`."""
        with self._lock:
            self._desk.check(lease)
            self._batches.finish(batch)

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
            self._batches.prune(before)
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
