"""A Hypothesis state machine: a store, used by two processes, against the model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from conformance.model import HeldBatch, Model, check_choice, conflict_of
from conformance.running import LATE_CALLS
from conformance.scene import (
    LANE,
    LEASE_LENGTH,
    OTHER_LANE,
    START,
    RequestIds,
    body_of,
    drain_log,
    framed,
    posted_ids,
    stale_waiting,
)
from llmrouter.domain.batches import Answer, Batch, BatchState, wire_bytes
from llmrouter.domain.packing import BatchLimits
from llmrouter.domain.requests import Group, OutcomeKind, QueuedRequest, RequestState
from llmrouter.errors import KeyConflictError, LeaseLostError, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from llmrouter.ports import Lease, Store

HOLDERS = ("engine-0", "engine-1")
"""One in each process."""

NOBODY = "req_zzzzzzzzzzzzzzzzzzzz000"

PROCESSES = st.sampled_from([0, 1])
LANES = {"a": LANE, "b": OTHER_LANE}
LIMITS = st.builds(
    BatchLimits,
    max_requests=st.sampled_from([100_000, 1, 2, 5]),
    max_bytes=st.sampled_from([256_000_000, wire_bytes(2, 120), wire_bytes(4, 321), 1]),
)
ENDS = st.sampled_from(
    [(OutcomeKind.SUCCEEDED, False), (OutcomeKind.ERRORED, False), (OutcomeKind.EXPIRED, True)]
)


@dataclass(frozen=True)
class Ask:
    """What an application asks for, before it has ids."""

    lane: str
    latency: str
    hours: int
    size: int
    number: int
    """How many alike; those after the first have no key."""
    key: str | None
    conflict: bool
    """Whether it differs from all others with its key."""
    gap: bool
    """Whether the slot before it stays free."""


ASKS = st.builds(
    Ask,
    lane=st.sampled_from(sorted(LANES)),
    latency=st.sampled_from(["hourly", "daily"]),
    hours=st.integers(1, 3),
    size=st.sampled_from([60, 61, 200, 40_000]),
    number=st.integers(1, 4),
    key=st.sampled_from([None, None, *(f"k{number}" for number in range(8))]),
    conflict=st.sampled_from([False] * 15 + [True]),
    gap=st.booleans(),
)


class StoreMachine(RuleBasedStateMachine):
    """Does to a store whatever its callers may do, and compares it with the model after each step."""

    def __init__(self, opening: Callable[[], Store], *, durable: bool) -> None:
        """Begins with a new store that two processes have opened.

        Args:
            opening: Opens one and the same store each time.
            durable: Whether it may be closed and opened again.
        """
        super().__init__()
        self.opening, self.durable = opening, durable
        self.stores = [opening(), opening()]
        self.ids = [RequestIds(seed=seed) for seed in (1, 2)]
        self.model = Model()
        self.now = START
        self.looks = 0
        self.swept = 0
        self.paused: dict[str, datetime] = {}
        self.pruned: set[str] = set()
        self.claims = 0
        self.late: list[tuple[int, Lease]] = []
        self.lease = self.acquired(0)
        self.cursor = self.log_start = self.stores[0].outcome_cursor()
        self.read = 0

    @property
    def engine(self) -> Store:
        """The store as the process has it that holds the lease."""
        return self.stores[HOLDERS.index(self.lease.holder)]

    def teardown(self) -> None:
        """Closes the store."""
        for store in self.stores:
            store.close()

    @initialize(at=PROCESSES, asks=st.lists(ASKS, min_size=2, max_size=5))
    def begin(self, at: int, asks: list[Ask]) -> None:
        """With something to work on."""
        self.enqueue(at, asks)

    @rule(at=PROCESSES, asks=st.lists(ASKS, min_size=1, max_size=5))
    def enqueue(self, at: int, asks: list[Ask]) -> None:
        """Also with keys that are known, and with keys in conflict."""
        requests = [
            self.request_of(ask, ask.key if first == 0 else None, self.ids[at])
            for ask in asks
            for first in range(ask.number)
        ]
        conflict = conflict_of(self.model.answering(requests), requests)
        if conflict is None:
            assert self.stores[at].enqueue(requests) == self.model.enqueue(requests)
            return
        with pytest.raises(KeyConflictError) as caught:
            self.stores[at].enqueue(requests)
        assert caught.value.index == conflict
        assert all(self.stores[at].find(request.request_id) is None for request in requests)

    @precondition(lambda self: self.model.held)
    @rule(at=PROCESSES, data=st.data(), in_batches=st.booleans())
    def cancel(self, at: int, data: st.DataObject, in_batches: bool) -> None:
        """In any state, one or many at once."""
        drawn = data.draw(st.lists(st.sampled_from([*self.known_ids(), NOBODY]), min_size=1, max_size=6))
        canceled = self.stores[at].cancel(drawn, self.now, in_batches=in_batches)
        assert canceled == self.model.cancel(drawn, self.now, in_batches=in_batches)

    @precondition(lambda self: self.model.log)
    @rule(at=PROCESSES, data=st.data())
    def deliver(self, at: int, data: st.DataObject) -> None:
        """What has an outcome, and what has none yet."""
        ended = [outcome.request_id for outcome in self.model.log]
        mostly = st.sampled_from(ended * 3 + self.known_ids())
        drawn = ended if data.draw(st.booleans()) else data.draw(st.lists(mostly, max_size=6))
        self.stores[at].deliver(drawn)
        self.model.deliver(drawn)

    @precondition(lambda self: self.model.log)
    @rule(undelivered=st.booleans(), limit=st.sampled_from([1, 3, 1000]), ago=st.sampled_from([0, 1]))
    def prune(self, undelivered: bool, limit: int, ago: int) -> None:
        """Only what may go, and all of it when nothing is in the way; the rest is as it was."""
        before = self.now + timedelta(seconds=1) - ago * LEASE_LENGTH
        may_go = {
            request_id
            for request_id, held in self.model.held.items()
            if held.may_go(before, undelivered=undelivered)
        }
        count = 0
        while gone := self.engine.prune(self.lease, before, limit, undelivered=undelivered):
            count += gone
        lost = {request_id for request_id in self.model.held if self.engine.find(request_id) is None}
        assert lost <= may_go
        assert len(lost) == count
        if may_go == {outcome.request_id for outcome in self.model.log}:
            assert lost == may_go
        self.pruned |= lost
        self.read -= len([outcome for outcome in self.model.log[: self.read] if outcome.request_id in lost])
        self.model.forget(lost, before)

    @precondition(lambda self: self.model.batches)
    @rule(at=PROCESSES, data=st.data())
    def record_created(self, at: int, data: st.DataObject) -> None:
        """By any process, of any batch it has heard of: the answer came late."""
        known = self.drawn_batch(data)
        said = self.in_flight(known.batch)
        taken = known.batch.state is not BatchState.RELEASED and (
            known.batch.state in (BatchState.CLAIMED, BatchState.IN_DOUBT)
            or known.batch.provider_batch_id == said.provider_batch_id
        )
        assert self.stores[at].record_created(said) is taken
        if known.batch.state in (BatchState.CLAIMED, BatchState.IN_DOUBT):
            known.batch = replace(said, cancel_wanted=known.batch.cancel_wanted)

    @rule(at=PROCESSES, latency=st.sampled_from(["hourly", "daily"]), on=st.booleans())
    def pause(self, at: int, latency: str, on: bool) -> None:
        """Or resume; every process sees it."""
        if on:
            self.stores[at].pause(latency, self.now)
            self.paused.setdefault(latency, self.now)
        else:
            assert self.stores[at].resume(latency) is (self.paused.pop(latency, None) is not None)
        assert dict(self.look().paused()) == self.paused

    @precondition(lambda self: self.model.waiting())
    @rule(data=st.data(), limits=LIMITS, ends=st.none() | ENDS)
    def claim(self, data: st.DataObject, limits: BatchLimits, ends: tuple[OutcomeKind, bool] | None) -> None:
        """The store chooses among what is equally due; the model checks its choice. Some end at once."""
        waiting = self.model.waiting()
        names = {f"{latency} of {lane.lane_id}": (lane, latency) for lane, latency in waiting}
        lane, latency = names[data.draw(st.sampled_from(sorted(names)))]
        self.claims += 1
        number = self.claims
        batch = self.engine.claim(
            self.lease,
            waiting[lane, latency],
            limits,
            batch_id=f"batch-{number}",
            nonce=f"{number:010d}",
            now=self.now,
        )
        assert batch is not None
        queue = self.model.queue(lane, latency)
        inside = set(self.engine.unsettled(batch.batch_id))
        taken = [held for held in queue if held.request.request_id in inside]
        assert len(taken) == len(inside)
        check_choice(taken, [held for held in queue if held not in taken], limits)
        assert batch == Batch(
            batch_id=f"batch-{number}",
            lane=lane,
            latency=latency,
            nonce=f"{number:010d}",
            state=BatchState.CLAIMED,
            request_count=len(taken),
            body_bytes=sum(len(held.request.body) for held in taken),
            claimed_at=self.now,
            fence=self.lease.fence,
            attempts={held.request.request_id: held.attempts for held in taken if held.attempts},
        )
        self.check_body(batch, inside)
        known = self.model.claim(batch, inside)
        if ends is not None:
            self.end(known, *ends)

    @precondition(lambda self: self.model.batches)
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        """Some of a batch's requests, some that have left it, some that were never in it."""
        known = self.drawn_batch(data)
        mostly = st.sampled_from(sorted(known.members) * 3 + self.known_ids() + [NOBODY])
        drawn = data.draw(st.lists(st.tuples(mostly, ENDS), min_size=1, max_size=8))
        answers = [
            Answer(request_id=request_id, kind=kind, raw=f"{kind} {place}\n".encode(), retry=retry)
            for place, (request_id, (kind, retry)) in enumerate(drawn)
        ]
        if known.closed:
            with pytest.raises(StoreError):
                self.engine.settle(self.lease, known.batch.batch_id, answers, self.now)
        else:
            settled = self.engine.settle(self.lease, known.batch.batch_id, answers, self.now)
            assert settled == self.model.settle(known, answers, self.now)

    @precondition(lambda self: self.model.open_batches())
    @rule(data=st.data(), ends=ENDS)
    def collect(self, data: st.DataObject, ends: tuple[OutcomeKind, bool]) -> None:
        """All that is left in a batch, which ends it."""
        batch_id = data.draw(st.sampled_from([known.batch.batch_id for known in self.model.open_batches()]))
        self.end(self.model.batches[batch_id], *ends)

    @precondition(lambda self: self.model.batches)
    @rule(data=st.data(), what=st.sampled_from(["release", "finish", "in doubt", "in flight"]))
    def hear(self, data: st.DataObject, what: str) -> None:
        """News of a batch. Of one that is closed there is none, and only an empty one can be finished."""
        known = self.drawn_batch(data)
        if what == "release":
            assert self.engine.release(self.lease, known.batch.batch_id) == self.model.release(known)
        elif known.closed or (what == "finish" and known.inside):
            with pytest.raises(StoreError):
                self.tell(known, what)
        else:
            self.tell(known, what)

    @rule(limit=st.sampled_from([1, 3, 1000]))
    def sweep(self, limit: int) -> None:
        """No more bodies than there are settled requests; claims show that the others are there."""
        self.swept += self.engine.sweep(self.lease, limit)
        assert self.swept <= len(self.model.log) + len(self.pruned)

    @rule(what=st.sampled_from(["flush", "prolong", "take over", "give back", "give up"]))
    def move_on(self, what: str) -> None:
        """The holder asks again in time, or is late, or gives back what one of the two takes."""
        at = HOLDERS.index(self.lease.holder)
        if what == "flush":
            self.flush(self.look())
        elif what == "prolong":
            self.now += LEASE_LENGTH / 2
            assert self.acquired(at) == self.lease
        elif what == "take over":
            for late_at, lease in self.late:
                self.stores[late_at].release_lease(lease)
            assert self.stores[1 - at].acquire_lease(HOLDERS[1 - at], self.now, LEASE_LENGTH) is None
            self.now += LEASE_LENGTH
            self.hand_over(1 - at)
        else:
            self.engine.release_lease(self.lease)
            assert self.look().engine() is None
            self.hand_over(at if what == "give back" else 1 - at)

    @precondition(lambda self: self.late and self.model.batches)
    @rule(data=st.data(), call=st.sampled_from(sorted(LATE_CALLS)))
    def write_late(self, data: st.DataObject, call: str) -> None:
        """A process that does not know yet that it has lost the lease."""
        at, lease = data.draw(st.sampled_from(self.late))
        known = self.drawn_batch(data)
        members = sorted(known.members)
        with pytest.raises(LeaseLostError):
            LATE_CALLS[call](self.stores[at], lease, known.batch, [members[0], members[-1]])

    @precondition(lambda self: self.durable)
    @rule(at=PROCESSES)
    def reopen(self, at: int) -> None:
        """A process ends, and another one begins under its name."""
        self.stores[at].close()
        self.stores[at] = self.opening()
        if HOLDERS[at] == self.lease.holder:
            self.hand_over(at)

    @invariant()
    def every_request_is_in_the_models_state(self) -> None:
        """In exactly one, with its attempts and its batch."""
        store = self.look()
        for request_id, held in self.model.held.items():
            view = store.find(request_id)
            assert view is not None
            assert (view.state, view.attempts, view.key) == (held.state, held.attempts, held.request.key)
            if held.state is not RequestState.SETTLED:
                assert view.batch_id == held.batch_id

    @invariant()
    def every_key_leads_to_its_request(self) -> None:
        """In whatever state."""
        store = self.look()
        keys = {held.request.key: request_id for request_id, held in self.model.held.items()}
        assert all(store.find_key(key) == request_id for key, request_id in keys.items() if key is not None)

    @invariant()
    def every_outcome_is_there_once(self) -> None:
        """In the log, in the order of settling, and by request."""
        store = self.look()
        assert drain_log(store, self.log_start) == self.model.log
        outcomes = list(store.outcomes(self.known_ids()))
        assert len(outcomes) == len(self.model.log)
        assert {outcome.request_id: outcome for outcome in outcomes} == {
            outcome.request_id: outcome for outcome in self.model.log
        }

    @invariant()
    def a_reader_misses_none(self) -> None:
        """It goes on from its cursor, a chunk after each step, in either process."""
        chunk, self.cursor = self.look().outcomes_since(self.cursor)
        assert chunk == self.model.log[self.read : self.read + len(chunk)]
        assert chunk or self.read == len(self.model.log)
        self.read += len(chunk)

    @invariant()
    def the_backlog_adds_up(self) -> None:
        """To the model's sums."""
        waiting = self.look().waiting()
        assert {(line.lane, line.latency): line for line in waiting} == self.model.waiting()
        assert len(waiting) == len(self.model.waiting())

    @invariant()
    def open_batches_hold_what_has_not_left_them(self) -> None:
        """And closed ones nothing."""
        store = self.look()
        assert store.open_batches() == [known.batch for known in self.model.open_batches()]
        for batch_id, known in self.model.batches.items():
            assert sorted(store.unsettled(batch_id)) == sorted(known.inside)

    @invariant()
    def batches_are_known_until_they_are_pruned(self) -> None:
        """By both ids, open or closed."""
        store = self.look()
        by_name = {f"batch-{number}": None for number in range(1, self.claims + 1)} | {
            batch_id: known.batch for batch_id, known in self.model.batches.items()
        }
        names = {known.batch.provider_batch_id: known.batch for known in self.model.batches.values()}
        names.pop(None, None)
        assert {name: store.find_batch(name) for name in [*by_name, *names]} == by_name | names
        asked = [f"msg{name}" for name in by_name]
        assert store.known_batches(asked) == set(names)

    def look(self) -> Store:
        """The store as seen by both processes in turns."""
        self.looks += 1
        return self.stores[self.looks % 2]

    def acquired(self, at: int) -> Lease:
        """A lease that nobody refuses."""
        lease = self.stores[at].acquire_lease(HOLDERS[at], self.now, LEASE_LENGTH)
        assert lease is not None
        return lease

    def hand_over(self, at: int) -> None:
        """Lets a process take the lease. A holder that closed and asks again gets the one it had."""
        was, self.lease = self.lease, self.acquired(at)
        if was.holder != self.lease.holder:
            assert self.lease.fence > was.fence
        if was.fence != self.lease.fence:
            self.late.append((HOLDERS.index(was.holder), was))
        view = self.look().engine()
        assert view is not None
        assert (view.holder, view.until) == (self.lease.holder, self.now + LEASE_LENGTH)

    def request_of(self, ask: Ask, key: str | None, new_id: RequestIds) -> QueuedRequest:
        """A request with a new id; those with the same key have the same body and class."""
        latency = ask.latency if key is None else "daily"
        body = body_of(ask.size if key is None else 64, key or "x")
        if key is not None and ask.conflict:
            latency, body = ("hourly", body) if ask.size == 60 else (latency, body_of(ask.size, "y"))
        if ask.gap:
            new_id()
        return QueuedRequest(
            request_id=new_id(),
            group=Group(lane=LANES[ask.lane], latency=latency, site=f"s:{ask.hours % 2}", model="m"),
            accepted_at=self.now,
            deadline_at=START + timedelta(hours=ask.hours),
            body=body,
            key=key,
        )

    def drawn_batch(self, data: st.DataObject) -> HeldBatch:
        """A batch, mostly an open one."""
        opened = [known.batch.batch_id for known in self.model.open_batches()]
        return self.model.batches[data.draw(st.sampled_from(opened * 3 + list(self.model.batches)))]

    def flush(self, asking: Store) -> None:
        """Asked for by any process, taken once by the engine. Where nothing waits, nothing is claimed."""
        assert self.engine.take_flush_request(self.lease) is False
        asking.request_flush()
        assert self.engine.take_flush_request(self.lease) is True
        nothing, limits = stale_waiting(LANE, "weekly"), BatchLimits()
        ids = {"batch_id": "none", "nonce": "0000000000"}
        assert self.engine.claim(self.lease, nothing, limits, **ids, now=self.now) is None

    def tell(self, known: HeldBatch, what: str) -> None:
        """Finishes a batch or updates it."""
        if what == "finish":
            self.engine.finish(self.lease, replace(known.batch, ended_at=self.now))
            known.batch = replace(known.batch, ended_at=self.now, state=BatchState.ENDED)
            known.closed = True
            return
        doubted = replace(known.batch, state=BatchState.IN_DOUBT, in_doubt_at=self.now, candidates=("x", "y"))
        batch = doubted if what == "in doubt" else self.in_flight(known.batch)
        self.engine.update_batch(self.lease, replace(batch, cancel_wanted=False))
        if what == "in flight" or known.batch.state is not BatchState.IN_FLIGHT:
            known.batch = batch

    def in_flight(self, batch: Batch) -> Batch:
        """A batch after its create was answered."""
        return replace(
            batch,
            state=BatchState.IN_FLIGHT,
            provider_batch_id=f"msg{batch.batch_id}",
            created_at=batch.created_at or self.now,
            candidates=(),
        )

    def known_ids(self) -> list[str]:
        """Ids of requests that are there, and of some that were pruned."""
        return sorted(self.model.held) + sorted(self.pruned)[:5]

    def end(self, known: HeldBatch, kind: OutcomeKind, retry: bool) -> None:
        """Settles what is in a batch, all alike, and finishes it."""
        answers = [
            Answer(request_id=request_id, kind=kind, raw=request_id.encode(), retry=retry)
            for request_id in sorted(known.inside)
        ]
        settled = self.engine.settle(self.lease, known.batch.batch_id, answers, self.now)
        assert settled == self.model.settle(known, answers, self.now)
        self.engine.finish(self.lease, known.batch)
        known.batch = replace(known.batch, state=BatchState.ENDED)
        known.closed = True

    def check_body(self, batch: Batch, inside: set[str]) -> None:
        """The posted bytes are those of the requests, in a frame."""
        body = self.engine.body(batch)
        posted = b"".join(body)
        order = posted_ids(posted, batch.nonce)
        assert sorted(order) == sorted(inside)
        assert len(posted) == body.content_length
        assert posted == framed(
            batch.nonce, [(request_id, self.model.held[request_id].request.body) for request_id in order]
        )
