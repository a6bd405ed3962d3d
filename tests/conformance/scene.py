"""What the conformance tests work with: request ids, requests, and a store with an engine's lease."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

from llmrouter.domain.batches import API_MAX_BYTES, API_MAX_REQUESTS, Answer, custom_id
from llmrouter.domain.blocks import Reason
from llmrouter.domain.ledger import ClassTally
from llmrouter.domain.packing import BatchLimits
from llmrouter.domain.requests import (
    PAGE_SLOTS,
    Group,
    Lane,
    Outcome,
    OutcomeKind,
    QueuedRequest,
    RequestView,
    Waiting,
    format_request_id,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from decimal import Decimal

    from llmrouter.domain.batches import Batch
    from llmrouter.domain.ledger import Tally
    from llmrouter.ports import Lease, Store

START = datetime(2026, 11, 20, 12, tzinfo=UTC)
LEASE_LENGTH = timedelta(minutes=1)
MOMENT = timedelta(microseconds=1)

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


def lane_named(name: str) -> Lane:
    """A lane that differs from others by its credential."""
    return Lane(
        lane_id=f"lane-{name}",
        base_url="https://api.anthropic.com",
        credential=name,
        headers=(("anthropic-beta", "one"), ("anthropic-version", "2026-10-21")),
    )


MODEL = "claude-haiku"
LANE = lane_named("a")
OTHER_LANE = lane_named("b")


class RequestIds:
    """Gives out ids as a process does: slot after slot of a page of its own, then a newer page."""

    def __init__(self, *, seed: int, milliseconds: int = 1_795_176_000_000) -> None:
        self._random = random.Random(seed)
        self._milliseconds = milliseconds
        self._slot = PAGE_SLOTS
        self._page = ""

    def __call__(self) -> str:
        """The next id."""
        if self._slot == PAGE_SLOTS:
            self.turn_page()
        self._slot += 1
        return format_request_id(self._page, self._slot - 1)

    def turn_page(self, slot: int = 0) -> None:
        """Begins the next page, at one of its slots."""
        self._milliseconds += 1
        digits = [_ALPHABET[self._milliseconds >> shift & 31] for shift in range(45, -1, -5)]
        self._page = "".join(digits + self._random.choices(_ALPHABET, k=10))
        self._slot = slot


def body_of(size: int, text: str = "x") -> bytes:
    """A request body of exactly so many bytes."""
    frame = b'{"model":"m","note":"%s"}'
    filling = size - len(frame) + 2
    assert filling >= 0
    return frame % (text.encode() * (filling + 1))[:filling]


def framed(nonce: str, items: Iterable[tuple[str, bytes]]) -> bytes:
    """The body of a batch create, written down independently of the stores."""
    inner = b",".join(
        b'{"custom_id":"%s","params":%s}' % (custom_id(request_id, nonce).encode(), body)
        for request_id, body in items
    )
    return b'{"requests":[%s]}' % inner


def posted_ids(posted: bytes, nonce: str) -> list[str]:
    """The request ids in a posted body, in its order."""
    items = json.loads(posted)["requests"]
    assert all(item["custom_id"].endswith(f"-{nonce}") for item in items)
    return [item["custom_id"].removesuffix(f"-{nonce}") for item in items]


def answered(
    request_id: str, kind: OutcomeKind = OutcomeKind.SUCCEEDED, raw: bytes = b'{"result":{}}'
) -> Answer:
    """An answer that settles its request."""
    return Answer(request_id=request_id, kind=kind, raw=raw, retry=False)


def live(
    request_id: str,
    kind: OutcomeKind = OutcomeKind.SUCCEEDED,
    raw: bytes = b'{"live":{}}',
    paid_usd: Decimal | None = None,
) -> Answer:
    """What a live call gave."""
    return Answer(request_id=request_id, kind=kind, raw=raw, retry=False, paid_usd=paid_usd)


def again(request_id: str, kind: OutcomeKind = OutcomeKind.EXPIRED) -> Answer:
    """An answer after which its request is sent again."""
    return Answer(request_id=request_id, kind=kind, raw=b"", retry=True)


def outcome_of(store: Store, request_id: str) -> Outcome | None:
    """How one request ended, or None."""
    found = list(store.outcomes([request_id]))
    assert len(found) <= 1
    return found[0] if found else None


def cancel_queued(store: Store, *request_ids: str, now: datetime = START) -> int:
    """Cancels those that wait; how many did."""
    return store.cancel(request_ids, now, in_batches=False).canceled


def drain_log(store: Store, cursor: int) -> list[Outcome]:
    """Everything in the log from a cursor on, chunk after chunk."""
    outcomes: list[Outcome] = []
    while True:
        chunk, following = store.outcomes_since(cursor)
        if not chunk:
            assert following == store.outcome_cursor()
            assert store.outcomes_since(following) == ([], following)
            return outcomes
        assert following > cursor
        outcomes += chunk
        cursor = following


class Snapshot(NamedTuple):
    """Everything that readers can see of a store."""

    views: dict[str, RequestView | None]
    outcomes: dict[str, Outcome]
    waiting: dict[tuple[Lane, str, str], Waiting]
    open_batches: list[Batch]
    unsettled: dict[str, set[str]]
    closed_batches: list[Batch]
    log: list[Outcome]
    tally: Tally


class Scene:
    """A store, an engine's lease on it, and shorthands that stand for one call each.

    Attributes:
        store: The store that is tested, as the process has it open whose engine holds the lease.
        rival: The same store, as another process has it open.
        now: When the lease is asked for.
        new_id: Gives out request ids.
        log_start: The cursor of the empty log.
    """

    def __init__(self, opening: Callable[[], Store]) -> None:
        self._opening = opening
        self._opened: list[Store] = []
        self._batch_numbers = count(1)
        self._asked: list[str] = []
        self.store = self.open()
        self.rival = self.open()
        self.now = START
        self.new_id = RequestIds(seed=1)
        self.log_start = self.store.outcome_cursor()

    def open(self) -> Store:
        """Opens the same store once more, as another process would."""
        store = self._opening()
        self._opened.append(store)
        return store

    def reopen(self) -> Store:
        """Closes the store, opens it again, and asks for the lease again if it was held."""
        self.store.close()
        self.store = self.open()
        if "lease" in self.__dict__:
            self.lease = self.taken_lease(self.lease.holder)
        return self.store

    def hand_over(self) -> Store:
        """Lets the other process take the lease, once it has run out; work goes on there."""
        holder = "engine-2" if self.lease.holder == "engine-1" else "engine-1"
        self.store, self.rival = self.rival, self.store
        self.now += LEASE_LENGTH
        self.lease = self.taken_lease(holder)
        return self.store

    def close(self) -> None:
        """Closes everything that was opened."""
        for store in self._opened:
            store.close()

    @cached_property
    def lease(self) -> Lease:
        """The engine's lease, taken when it is first needed."""
        return self.taken_lease("engine-1")

    def taken_lease(self, holder: str) -> Lease:
        """A lease that nobody refuses."""
        lease = self.store.acquire_lease(holder, self.now, LEASE_LENGTH)
        assert lease is not None
        return lease

    def request(
        self,
        *,
        lane: Lane = LANE,
        latency: str = "daily",
        site: str = "jobs:nightly",
        model: str = MODEL,
        prefix: str = "",
        due: timedelta = timedelta(hours=24),
        size: int = 100,
        body: bytes | None = None,
        key: str | None = None,
        request_id: str | None = None,
        accepted_at: datetime = START,
    ) -> QueuedRequest:
        """A new request, due so long after START."""
        request_id = request_id or self.new_id()
        self._asked.append(request_id)
        return QueuedRequest(
            request_id=request_id,
            group=Group(lane=lane, latency=latency, site=site, model=model, prefix=prefix),
            accepted_at=accepted_at,
            deadline_at=START + due,
            body=body_of(size, request_id[-3:]) if body is None else body,
            key=key,
        )

    def enqueue(self, *requests: QueuedRequest) -> list[str]:
        """Enqueues in one call; the ids."""
        return [accepted.request_id for accepted in self.store.enqueue(requests)]

    def enqueue_alike(self, number: int, *, size: int = 100, latency: str = "daily") -> list[str]:
        """Enqueues a number of requests of one group in one call; their ids."""
        return self.enqueue(*(self.request(size=size, latency=latency) for _ in range(number)))

    def claim(
        self,
        *,
        lane: Lane = LANE,
        latency: str = "daily",
        model: str = MODEL,
        max_requests: int = API_MAX_REQUESTS,
        max_bytes: int = API_MAX_BYTES,
        one_fate: bool = False,
        now: datetime = START,
    ) -> Batch | None:
        """Claims a new batch, or None."""
        number = next(self._batch_numbers)
        return self.store.claim(
            self.lease,
            self.line(lane, latency, model),
            BatchLimits(max_requests=max_requests, max_bytes=max_bytes, one_fate=one_fate),
            batch_id=f"batch-{number}",
            nonce=f"{number:010d}",
            now=now,
        )

    def line(self, lane: Lane = LANE, latency: str = "daily", model: str = MODEL) -> Waiting:
        """A line of the backlog, as it is or as it might have been."""
        lines = [line for line in self.store.waiting() if line_of(line) == (lane, latency, model)]
        return lines[0] if lines else stale_waiting(lane, latency, model)

    def escalate_waiting(
        self,
        *,
        before: datetime = START + timedelta(days=9),
        lane: Lane = LANE,
        latency: str = "daily",
        model: str = MODEL,
        reason: Reason = Reason.LATEST_START,
        insured: bool = True,
        now: datetime = START,
    ) -> Batch | None:
        """Takes queued requests into a new ESCALATING batch, or None."""
        return self.store.escalate_waiting(
            self.lease,
            self.line(lane, latency, model),
            before,
            batch_id=f"live-{next(self._batch_numbers)}",
            reason=reason,
            insured=insured,
            now=now,
        )

    def escalate_batch(
        self,
        batch: Batch,
        *,
        reason: Reason = Reason.CANCEL_NOT_FINAL,
        insured: bool = True,
        now: datetime = START,
    ) -> Batch | None:
        """Moves what is in a batch into a new ESCALATING one, or None."""
        into = f"live-{next(self._batch_numbers)}"
        return self.store.escalate_batch(
            self.lease, batch.batch_id, into=into, reason=reason, insured=insured, now=now
        )

    def raced(self, batch: Batch, **how: Any) -> Batch:
        """The ESCALATING batch with what was in a batch of the API's; takes what `escalate_batch` takes."""
        new = self.escalate_batch(batch, **how)
        assert new is not None
        return new

    def going_live(self, **how: Any) -> Batch:
        """An ESCALATING batch with what was queued; takes what `escalate_waiting` takes."""
        batch = self.escalate_waiting(**how)
        assert batch is not None
        return batch

    def begun(self, batch: Batch, *request_ids: str) -> list[str]:
        """Begins live calls; the ids of those that may be made."""
        calls = self.store.begin_calls(self.lease, batch.batch_id, request_ids)
        return [call.request_id for call in calls]

    def tally_of(self, latency: str = "daily", store: Store | None = None) -> ClassTally:
        """What came of the requests of a class."""
        return (store or self.store).tally().get(latency, ClassTally())

    def claimed(self, **how: Any) -> Batch:
        """Claims a new batch, which must have something in it; takes what `claim` takes."""
        batch = self.claim(**how)
        assert batch is not None
        return batch

    def inside(self, batch: Batch) -> set[str]:
        """The requests that have not left a batch."""
        listed = list(self.store.unsettled(batch.batch_id))
        assert len(listed) == len(set(listed))
        return set(listed)

    def settle(
        self, batch: Batch, answers: Sequence[Answer], now: datetime = START
    ) -> tuple[int, int, int, int]:
        """Settles; how many outcomes, retried, repeated and unknown answers there were."""
        settled = self.store.settle(self.lease, batch.batch_id, answers, now)
        return settled.outcomes, settled.retried, settled.repeated, settled.unknown

    def settle_all(self, batch: Batch) -> None:
        """Lets all requests of a batch succeed, and finishes it."""
        self.settle(batch, [answered(request_id) for request_id in self.inside(batch)])
        self.store.finish(self.lease, batch)

    def settled(self, *requests: QueuedRequest) -> list[str]:
        """Enqueues requests and lets them succeed; their ids."""
        request_ids = self.enqueue(*requests)
        self.settle_all(self.claimed())
        return request_ids

    def posted(self, batch: Batch) -> bytes:
        """The whole body of a batch."""
        return b"".join(self.store.body(batch))

    def snapshot(self, store: Store | None = None) -> Snapshot:
        """Everything that can be seen of the requests that this scene has made."""
        store = store or self.store
        batches = store.open_batches()
        return Snapshot(
            views={request_id: store.find(request_id) for request_id in self._asked},
            outcomes={outcome.request_id: outcome for outcome in store.outcomes(self._asked)},
            waiting=sums_of(store.waiting()),
            open_batches=batches,
            unsettled={batch.batch_id: set(store.unsettled(batch.batch_id)) for batch in batches},
            closed_batches=store.closed_batches(100),
            log=drain_log(store, self.log_start),
            tally={latency: tally for latency, tally in store.tally().items() if tally != ClassTally()},
        )


def line_of(waiting: Waiting) -> tuple[Lane, str, str]:
    """What tells a line of the backlog from others."""
    return waiting.lane, waiting.latency, waiting.model


def sums_of(backlog: Iterable[Waiting]) -> dict[tuple[Lane, str, str], Waiting]:
    """The lines of a backlog by what tells them apart, without what is the store's choice."""
    return {line_of(line): replace(line, window=None, cohorts=()) for line in backlog}


def stale_waiting(lane: Lane, latency: str, model: str = MODEL) -> Waiting:
    """A line of a backlog that has gone since."""
    return Waiting(
        lane=lane,
        latency=latency,
        model=model,
        request_count=1,
        body_bytes=100,
        earliest_deadline_at=START,
    )
