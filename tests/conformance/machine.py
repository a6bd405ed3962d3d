"""A Hypothesis state machine: a store, used by two processes, against the model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from conformance.machine_ground import CLASSES, HOLDERS, NOBODY, PROCESSES, old_copy
from conformance.machine_live import REASONS, LiveRules, live_answer
from conformance.model import HeldBatch, check_choice, conflict_of
from conformance.running import LATE_CALLS
from conformance.scene import (
    LANE,
    LEASE_LENGTH,
    OTHER_LANE,
    START,
    RequestIds,
    body_of,
    framed,
    posted_ids,
    stale_waiting,
)
from llmrouter.domain.batches import Answer, Batch, BatchState, wire_bytes
from llmrouter.domain.packing import BatchLimits
from llmrouter.domain.requests import Group, OutcomeKind, QueuedRequest
from llmrouter.errors import KeyConflictError, LeaseLostError, StoreError

if TYPE_CHECKING:
    from llmrouter.ports import Store

LANES = {"a": LANE, "b": OTHER_LANE}
LIMITS = st.builds(
    BatchLimits,
    max_requests=st.sampled_from([100_000, 1, 2, 5]),
    max_bytes=st.sampled_from([256_000_000, wire_bytes(2, 120), wire_bytes(4, 321), 1]),
    one_fate=st.booleans(),
)
ENDS = st.sampled_from(
    [(OutcomeKind.SUCCEEDED, False), (OutcomeKind.ERRORED, False), (OutcomeKind.EXPIRED, True)]
)


@dataclass(frozen=True)
class Ask:
    """What an application asks for, before it has ids."""

    lane: str
    latency: str
    model: str
    prefix: str
    minutes: int
    """From the start of everything to its deadline."""
    hours: int
    """From its acceptance to its deadline."""
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
    latency=st.sampled_from(CLASSES),
    model=st.sampled_from(["m", "m", "n"]),
    prefix=st.sampled_from(["", "p", "q"]),
    minutes=st.sampled_from([0, 2, 3, 60, 61, 120, 180]),
    hours=st.sampled_from([1, 24, 200]),
    size=st.sampled_from([60, 61, 200, 40_000]),
    number=st.integers(1, 4),
    key=st.sampled_from([None, None, *(f"k{number}" for number in range(8))]),
    conflict=st.sampled_from([False] * 15 + [True]),
    gap=st.booleans(),
)


class StoreMachine(LiveRules):
    """Does to a store whatever its callers may do, and compares it with the model after each step."""

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
        said = replace(known.batch, **self.created(known.batch))
        taken = known.batch.state is not BatchState.RELEASED and (
            known.batch.state in (BatchState.CLAIMED, BatchState.IN_DOUBT)
            or known.batch.provider_batch_id == said.provider_batch_id
        )
        assert self.stores[at].record_created(old_copy(said)) is taken
        if known.batch.state in (BatchState.CLAIMED, BatchState.IN_DOUBT):
            known.batch = said

    @rule(at=PROCESSES, latency=st.sampled_from(CLASSES), on=st.booleans())
    def pause(self, at: int, latency: str, on: bool) -> None:
        """Or resume; every process sees it."""
        if on:
            self.stores[at].pause(latency, self.now)
            self.paused.setdefault(latency, self.now)
        else:
            assert self.stores[at].resume(latency) is (self.paused.pop(latency, None) is not None)
        assert dict(self.look().paused()) == self.paused

    @precondition(lambda self: self.model.backlog())
    @rule(data=st.data(), limits=LIMITS, then=st.sampled_from(["nothing", "end", "race"]))
    def claim(self, data: st.DataObject, limits: BatchLimits, then: str) -> None:
        """The store chooses among what is equally due; the model checks its choice.

        Some end at once, and what is in some goes live at once.
        """
        line, queue = self.drawn_line(data)
        number = self.batch_number()
        batch = self.engine.claim(
            self.lease, line, limits, batch_id=f"batch-{number}", nonce=f"{number:010d}", now=self.now
        )
        assert batch is not None
        inside = set(self.engine.unsettled(batch.batch_id))
        taken = [held for held in queue if held.request.request_id in inside]
        assert len(taken) == len(inside)
        check_choice(taken, [held for held in queue if held not in taken], limits)
        assert batch == Batch(
            batch_id=f"batch-{number}",
            lane=line.lane,
            latency=line.latency,
            model=line.model,
            nonce=f"{number:010d}",
            state=BatchState.CLAIMED,
            request_count=len(taken),
            body_bytes=sum(len(held.request.body) for held in taken),
            claimed_at=self.now,
            fence=self.lease.fence,
            attempts={held.request.request_id: held.attempts for held in taken if held.attempts},
            deadline_at=min(held.request.deadline_at for held in taken),
            window=self.first_window(batch, taken),
        )
        self.check_body(batch, inside)
        known = self.model.take_in(batch, inside)
        if then == "end":
            self.end(known, *data.draw(ENDS))
        elif then == "race":
            self.race(data, known, reason=data.draw(REASONS), insured=data.draw(st.booleans()))

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
        if known.closed or known.goes_live:
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
        elif known.closed or (known.inside if what == "finish" else known.goes_live):
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

    def request_of(self, ask: Ask, key: str | None, new_id: RequestIds) -> QueuedRequest:
        """A request with a new id; those with the same key have the same body and class."""
        latency = ask.latency if key is None else "daily"
        body = body_of(ask.size if key is None else 64, key or "x")
        if key is not None and ask.conflict:
            latency, body = ("hourly", body) if ask.size == 60 else (latency, body_of(ask.size, "y"))
        if ask.gap:
            new_id()
        deadline_at = START + timedelta(minutes=ask.minutes)
        return QueuedRequest(
            request_id=new_id(),
            group=Group(
                lane=LANES[ask.lane],
                latency=latency,
                site=f"s:{ask.hours % 3}",
                model=ask.model,
                prefix=ask.prefix,
            ),
            accepted_at=deadline_at - timedelta(hours=ask.hours),
            deadline_at=deadline_at,
            body=body,
            key=key,
        )

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
        copy = old_copy(known.batch)
        if what == "finish":
            said = replace(copy, ended_at=self.now, wasted=len(known.moved))
            self.engine.finish(self.lease, said)
            self.model.finish(known, said)
            return
        doubted = {"state": BatchState.IN_DOUBT, "in_doubt_at": self.now, "candidates": ("x", "y")}
        news = doubted if what == "in doubt" else self.created(known.batch)
        self.engine.update_batch(self.lease, replace(copy, **news))
        if what == "in flight" or known.batch.state is not BatchState.IN_FLIGHT:
            known.batch = replace(known.batch, **news)

    def end(self, known: HeldBatch, kind: OutcomeKind, retry: bool) -> None:
        """Settles what is in a batch, all alike, and finishes it. What goes live is answered, or released."""
        if known.goes_live:
            if retry:
                assert self.engine.release(self.lease, known.batch.batch_id) == self.model.release(known)
                return
            answers = [replace(live_answer(one), kind=kind) for one in sorted(known.inside)]
            self.write_answers(len(answers) % 2, answers)
            self.tell(known, "finish")
            return
        answers = [
            Answer(request_id=request_id, kind=kind, raw=request_id.encode(), retry=retry)
            for request_id in sorted(known.inside)
        ]
        settled = self.engine.settle(self.lease, known.batch.batch_id, answers, self.now)
        assert settled == self.model.settle(known, answers, self.now)
        self.tell(known, "finish")

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
