"""The parts of the engine on a memory store, a fake API and a fake clock."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from llmrouter.domain.packing import BatchLimits
from llmrouter.domain.scheduling import Flush, FlushReason, Margin
from llmrouter.engine.collector import Collector
from llmrouter.engine.flusher import Flusher
from llmrouter.engine.janitor import Janitor
from llmrouter.engine.lease import LeaseKeeper
from llmrouter.engine.reconciler import Reconciler
from llmrouter.stores.memory import MemoryStore
from llmrouter.wiring import Engine
from support.batch_api import FakeBatchApi
from support.clocks import FakeClock
from support.requests import DAILY, LANE, queued

if TYPE_CHECKING:
    from llmrouter.domain.latency import LatencyClass
    from llmrouter.domain.requests import Lane, Outcome, QueuedRequest, Waiting
    from llmrouter.ports import BatchApi, Lease, Store

LEASE = timedelta(hours=1000)


class Bench:
    """A store, an API, a clock, and the engine's parts over them."""

    def __init__(
        self,
        *,
        store: Store | None = None,
        max_requests: int = 1000,
        max_attempts: int = 3,
        fixed_poll: bool = True,
    ) -> None:
        self.clock = FakeClock()
        self.api = FakeBatchApi(self.clock)
        self.store: Store = store or MemoryStore()
        self.limits = {"daily": BatchLimits(max_requests=max_requests)}
        self._others = 0
        self.lease = self._take_lease()
        self.flusher = Flusher(self.store, self.api, self.clock, self.limits)
        self.collector = Collector(
            self.store, self.api, self.clock, fixed_poll=fixed_poll, max_attempts=max_attempts
        )

    def enqueue(self, count: int = 1, **options: Any) -> list[QueuedRequest]:
        """Puts requests into the queue."""
        requests = [queued(**options) for _ in range(count)]
        self.store.enqueue(requests)
        return requests

    def waiting(self, lane: Lane = LANE, latency: str = "daily") -> Waiting:
        """The backlog of one lane and class."""
        found = [one for one in self.store.waiting() if (one.lane, one.latency) == (lane, latency)]
        return found[0]

    def flush(self, reason: FlushReason = FlushReason.SCHEDULED) -> int:
        """Flushes all that waits."""
        flushes = [Flush(waiting=waiting, reason=reason) for waiting in self.store.waiting()]
        return self.flusher.run_once(self.lease, flushes)

    def collect(self) -> int:
        """Looks at the open batches whose turn it is: all of them, unless the poll is not fixed."""
        return self.collector.run_once(self.lease)

    def outcomes(self, requests: list[QueuedRequest]) -> dict[str, Outcome]:
        """How these requests ended, by id."""
        ids = [request.request_id for request in requests]
        return {outcome.request_id: outcome for outcome in self.store.outcomes(ids)}

    def queued_count(self) -> int:
        """How many requests wait."""
        return sum(waiting.request_count for waiting in self.store.waiting())

    def lose_lease(self) -> Lease:
        """Another process takes over; returns its lease."""
        self.clock.advance(LEASE * 2)
        self._others += 1
        lease = self.store.acquire_lease(f"another {self._others}", self.clock.now(), LEASE)
        assert lease is not None
        return lease

    def _take_lease(self) -> Lease:
        lease = self.store.acquire_lease("tests", self.clock.now(), LEASE)
        assert lease is not None
        return lease


def make_engine(store: Store, api: BatchApi, clock: FakeClock, *classes: LatencyClass) -> Engine:
    """An engine for a `Worker`; of the class `daily`, unless others are given."""
    by_name = {latency.name: latency for latency in classes or (DAILY,)}
    limits = {name: BatchLimits() for name in by_name}
    return Engine(
        store=store,
        clock=clock,
        classes=by_name,
        limits=limits,
        margin=Margin(at_least=timedelta(minutes=2), at_most=timedelta(hours=1)),
        keeper=LeaseKeeper(store),
        flusher=Flusher(store, api, clock, limits),
        collector=Collector(store, api, clock, fixed_poll=True, max_attempts=3),
        reconciler=Reconciler(store),
        janitor=Janitor(store),
    )
