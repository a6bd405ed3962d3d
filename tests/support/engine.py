"""The parts of the engine on a memory store, a fake API and a fake clock."""

from __future__ import annotations

from concurrent.futures import Executor, Future
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import anthropic
import httpx2

from llmrouter.domain.blocks import rules_of
from llmrouter.domain.ledger import ClassTally
from llmrouter.domain.pacing import Pacer
from llmrouter.domain.packing import BatchLimits
from llmrouter.domain.rates import RAMP
from llmrouter.domain.scheduling import Flush, FlushReason, Margin
from llmrouter.engine.budget import Budget
from llmrouter.engine.canceller import Canceller
from llmrouter.engine.collector import Collector
from llmrouter.engine.escalator import Escalator
from llmrouter.engine.flusher import Flusher
from llmrouter.engine.janitor import Janitor
from llmrouter.engine.lease import LeaseKeeper
from llmrouter.engine.live_faults import LiveFaults
from llmrouter.engine.pace import Pace
from llmrouter.engine.reconciler import Reconciler
from llmrouter.engine.sender import Sender
from llmrouter.errors import CreateRefusedError, CreateUnclearError
from llmrouter.stores.memory import MemoryStore
from llmrouter.wiring import Engine
from support.batch_api import FakeBatchApi
from support.clocks import FakeClock
from support.live_api import FakeLiveApi
from support.requests import DAILY, LANE, queued

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from datetime import datetime
    from decimal import Decimal

    from llmrouter.domain.batches import Batch, BatchState, ProviderBatch
    from llmrouter.domain.latency import LatencyClass
    from llmrouter.domain.requests import Lane, Outcome, OutcomeKind, QueuedRequest, Waiting
    from llmrouter.ports import BatchApi, BatchBody, Lease, LiveApi, Store


@dataclass
class WireApi(FakeBatchApi):
    """The fake API as it is met through the adapter: a body that breaks off has created nothing."""

    on_piece: Callable[[int], None] = lambda number: None
    """Called when so many pieces of a body have gone out, 0 before the first."""

    def create(self, lane: Lane, body: BatchBody) -> ProviderBatch:
        """See `BatchApi.create`."""
        pieces: list[bytes] = []
        try:
            self.on_piece(0)
            for piece in body:
                pieces.append(piece)
                self.on_piece(len(pieces))
        except Exception as error:
            raise CreateRefusedError("the batch was not created: its body broke off") from error
        return super().create(lane, Whole(b"".join(pieces)))


@dataclass
class Whole:
    """A finished body."""

    raw: bytes

    @property
    def content_length(self) -> int:
        """How long it is."""
        return len(self.raw)

    def __iter__(self) -> Iterator[bytes]:
        yield self.raw


class Inline(Executor):
    """Runs what it is given at once, or keeps it until a test lets it go: calls that are under way."""

    def __init__(self) -> None:
        self.keeps = False
        """Whether calls take until `let_go`."""
        self.kept: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **options: Any) -> Future[Any]:
        """See `Executor.submit`. What it raises is raised at once."""
        if self.keeps:
            self.kept.append((fn, args, options))
        else:
            fn(*args, **options)
        return Future()

    def let_go(self, count: int | None = None) -> None:
        """Lets the oldest calls go on, all of them by default."""
        going, self.kept = self.kept[:count], self.kept[len(self.kept) if count is None else count :]
        for fn, args, options in going:
            fn(*args, **options)


@dataclass(frozen=True, kw_only=True)
class Escalation:
    """The parts that keep deadlines, over one store and one live API."""

    pace: Pace
    budget: Budget
    faults: LiveFaults
    sender: Sender
    escalator: Escalator


MARGIN = Margin(at_least=timedelta(minutes=2), at_most=timedelta(hours=1))
MIN_WINDOW = timedelta(minutes=15)


def make_escalation(
    store: Store,
    live: LiveApi,
    clock: FakeClock,
    *,
    executor: Executor | None,
    classes: Mapping[str, LatencyClass],
    most: Decimal | None = None,
    by_class: Mapping[str, Decimal] | None = None,
    max_attempts: int = 3,
    concurrency: int = 32,
    requests_per_minute: float | None = None,
    lead: timedelta | None = None,
    restart_age: timedelta | None = None,
    on_settled: Callable[[], None] = lambda: None,
) -> Escalation:
    """The parts as `llmrouter.wiring` puts them together, with the policy's own numbers."""
    pacer = Pacer(concurrency=concurrency, requests_per_minute=requests_per_minute, share=0.8, ramp=RAMP)
    pace = Pace(pacer, clock)
    budget = Budget(store, clock, most=most, by_class=by_class or {})
    faults = LiveFaults(clock, max_attempts=max_attempts)
    sender = Sender(
        store,
        live,
        clock,
        pace,
        budget,
        faults,
        concurrency=concurrency,
        on_settled=on_settled,
        executor=executor,
    )
    escalator = Escalator(
        store,
        live,
        clock,
        pace,
        budget,
        sender,
        classes=classes,
        rules=rules_of(margin=MARGIN, min_window=MIN_WINDOW, ramp=RAMP),
        lead=lead,
        restart_age=restart_age,
    )
    return Escalation(pace=pace, budget=budget, faults=faults, sender=sender, escalator=escalator)


LEASE = timedelta(hours=1000)
GRACE = timedelta(minutes=2)
RETENTION = timedelta(days=29)

Items = list[dict[str, Any]]


class Bench:
    """A store, an API, a clock, and the engine's parts over them."""

    def __init__(
        self,
        *,
        store: Store | None = None,
        max_requests: int = 1000,
        max_attempts: int = 3,
        fixed_poll: bool = True,
        delete_after_collect: bool = False,
        **escalating: Any,
    ) -> None:
        """Makes a bench.

        Args:
            store: By default one in memory.
            max_requests: Of a batch.
            max_attempts: Of a request.
            fixed_poll: Every run of the collector looks at every batch.
            delete_after_collect: As the setting.
            escalating: For `make_escalation`.
        """
        self.clock = FakeClock()
        self.api = WireApi(self.clock)
        self.live = FakeLiveApi()
        self._escalating: dict[str, Any] = {
            "classes": {"daily": DAILY},
            "max_attempts": max_attempts,
            **escalating,
        }
        self.store: Store = store or MemoryStore()
        self.limits = {"daily": BatchLimits(max_requests=max_requests)}
        self._others = 0
        self._collecting = {
            "fixed_poll": fixed_poll,
            "max_attempts": max_attempts,
            "delete_after_collect": delete_after_collect,
        }
        self.lease = self._take_lease("tests")
        self.restart()

    def restart(self) -> None:
        """The process ends and begins anew: what its parts had in memory is gone. The lease stays."""
        self.flusher = Flusher(
            self.store, self.api, self.clock, self.limits, max_attempts=self._collecting["max_attempts"]
        )
        self.calls = Inline()
        parts = make_escalation(self.store, self.live, self.clock, executor=self.calls, **self._escalating)
        self.pace, self.budget, self.faults = parts.pace, parts.budget, parts.faults
        self.sender, self.escalator = parts.sender, parts.escalator
        self.collector = Collector(
            self.store, self.api, self.clock, leftover=self.escalator.leftover, **self._collecting
        )
        self.reconciler = Reconciler(
            self.store, self.api, self.clock, grace=GRACE, under_way=self.flusher.creator.under_way
        )
        self.canceller = Canceller(self.store, self.api, self.clock)
        self.janitor = Janitor(self.store, self.clock, RETENTION)

    def another_reconciler(self) -> Reconciler:
        """That of another process."""
        return Reconciler(self.store, self.api, self.clock, grace=GRACE)

    def enqueue(self, count: int = 1, **options: Any) -> list[QueuedRequest]:
        """Puts requests into the queue."""
        requests = [queued(**options) for _ in range(count)]
        self.store.enqueue(requests)
        return requests

    def accept(
        self, count: int = 1, window: timedelta = timedelta(hours=24), **options: Any
    ) -> list[QueuedRequest]:
        """Puts requests into the queue that are accepted now."""
        return self.enqueue(count, accepted_at=self.clock.now(), window=window, **options)

    def escalate(self) -> int:
        """Decides what is to be decided now."""
        return self.escalator.run_once(self.lease)

    def send(self, times: int = 20) -> None:
        """Makes the calls that may be made now, and writes their answers."""
        for _ in range(times):
            self.sender.run_once()

    def live_turn(self, passes: timedelta = timedelta(0)) -> int:
        """Lets time pass, decides, sends, and asks for cancels; answers with the decisions acted on."""
        self.clock.advance(passes)
        done = self.escalate()
        self.send()
        self.canceller.run_once(self.lease)
        return done

    def until(self, instant: datetime, step: timedelta = timedelta(seconds=10)) -> None:
        """Works until an instant, as a healthy process does."""
        while self.clock.now() < instant:
            self.live_turn(min(step, instant - self.clock.now()))
            self.collect()

    def tally(self, latency: str = "daily") -> ClassTally:
        """What was counted of a class."""
        return self.store.tally().get(latency, ClassTally())

    def waiting(self, lane: Lane = LANE, latency: str = "daily") -> Waiting:
        """The backlog of one lane and class."""
        found = [one for one in self.store.waiting() if (one.lane, one.latency) == (lane, latency)]
        return found[0]

    def flush(self, reason: FlushReason = FlushReason.SCHEDULED) -> int:
        """Flushes all that waits, one backlog after the other."""
        return sum(
            self.flusher.run_once(self.lease, Flush(waiting=waiting, reason=reason))
            for waiting in self.store.waiting()
        )

    def claim(self, batch_id: str = "batch_claimed", nonce: str = "n" * 10) -> Batch:
        """Writes an intent, as a process does that ends before the create is answered."""
        batch = self.store.claim(
            self.lease,
            self.waiting(),
            self.limits["daily"],
            batch_id=batch_id,
            nonce=nonce,
            now=self.clock.now(),
        )
        assert batch is not None
        return batch

    def collect(self) -> int:
        """Looks at the open batches whose turn it is: all of them, unless the poll is not fixed."""
        return self.collector.run_once(self.lease)

    def reconcile(self, *, passes: timedelta = timedelta(0)) -> int:
        """Lets time pass, then looks for the batches in doubt."""
        self.clock.advance(passes)
        return self.reconciler.run_once(self.lease)

    def outcomes(self, requests: Sequence[QueuedRequest]) -> dict[str, Outcome]:
        """How these requests ended, by id."""
        ids = [request.request_id for request in requests]
        return {outcome.request_id: outcome for outcome in self.store.outcomes(ids)}

    def kinds(self, requests: Sequence[QueuedRequest]) -> list[OutcomeKind | None]:
        """How each request ended, in order; None for those that have not."""
        outcomes = self.outcomes(requests)
        return [outcomes[one.request_id].kind if one.request_id in outcomes else None for one in requests]

    def states(self) -> list[BatchState]:
        """Of the open batches."""
        return [batch.state for batch in self.store.open_batches()]

    def queued_count(self) -> int:
        """How many requests wait."""
        return sum(waiting.request_count for waiting in self.store.waiting())

    def lose_lease(self) -> Lease:
        """Another process takes over; returns its lease."""
        self.clock.advance(LEASE * 2)
        return self.hand_over()

    def hand_over(self) -> Lease:
        """Another process takes over at once; returns its lease. Time stands still."""
        self._others += 1
        later = self.clock.now() + LEASE * 10 * self._others
        lease = self.store.acquire_lease(f"another {self._others}", later, LEASE)
        assert lease is not None
        assert lease.fence > self.lease.fence
        return lease

    def _take_lease(self, holder: str) -> Lease:
        lease = self.store.acquire_lease(holder, self.clock.now(), LEASE)
        assert lease is not None
        return lease


def make_engine(
    store: Store,
    api: BatchApi,
    clock: FakeClock,
    *classes: LatencyClass,
    live: LiveApi | None = None,
    executor: Executor | None = None,
) -> Engine:
    """An engine for a `Worker`; of the class `daily`, unless others are given.

    Its live calls are made by threads of its own, unless an executor is given.
    """
    by_name = {latency.name: latency for latency in classes or (DAILY,)}
    limits = {name: BatchLimits() for name in by_name}
    flusher = Flusher(store, api, clock, limits, max_attempts=3)
    live = live or FakeLiveApi()
    parts = make_escalation(store, live, clock, executor=executor, classes=by_name)
    return Engine(
        store=store,
        clock=clock,
        classes=by_name,
        limits=limits,
        limit_of=lambda latency, _: limits[latency.name],
        margin=MARGIN,
        keeper=LeaseKeeper(store),
        flusher=flusher,
        escalator=parts.escalator,
        sender=parts.sender,
        collector=Collector(
            store, api, clock, fixed_poll=True, max_attempts=3, leftover=parts.escalator.leftover
        ),
        reconciler=Reconciler(store, api, clock, grace=GRACE, under_way=flusher.creator.under_way),
        canceller=Canceller(store, api, clock),
        janitor=Janitor(store, clock, RETENTION),
    )


def refuse(status: int | None, **details: Any) -> Callable[[Items], None]:
    """An API that refuses every batch."""

    def before_create(_: Items) -> None:
        raise CreateRefusedError(f"HTTP {status}", status=status, **details)

    return before_create


def refuse_where(bad: set[str], **details: Any) -> Callable[[Items], None]:
    """An API that refuses a batch for certain requests in it, by our ids."""

    def before_create(items: Items) -> None:
        if any(item["custom_id"].rpartition("-")[0] in bad for item in items):
            raise CreateRefusedError(
                "HTTP 400 bad request", **{"status": 400, "blames_content": True, **details}
            )

    return before_create


def lose_answer(_: object) -> None:
    """No clear answer. As `before_create` the batch does not exist, as `after_create` it does."""
    raise CreateUnclearError("the connection was dropped")


def allow(_: object) -> None:
    """Nothing goes wrong."""


def unreachable(_: object = None) -> None:
    """The API could not be asked."""
    raise anthropic.APIConnectionError(request=httpx2.Request("GET", "http://api"))
