"""What the rules of the store's state machine stand on: two processes, the model, and what must be so."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant

from conformance.lines import check_line
from conformance.model import HeldBatch, Model
from conformance.scene import LEASE_LENGTH, START, RequestIds, drain_log, line_of
from llmrouter.domain.batches import Batch, BatchState
from llmrouter.domain.ledger import ClassTally
from llmrouter.domain.requests import RequestState

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from llmrouter.ports import Lease, Store

HOLDERS = ("engine-0", "engine-1")
"""One in each process."""

NOBODY = "req_zzzzzzzzzzzzzzzzzzzz000"

CLASSES = ["hourly", "daily"]
PROCESSES = st.sampled_from([0, 1])


class Ground(RuleBasedStateMachine):
    """A store that two processes have open, and invariants that compare it with the model after each step."""

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

    @invariant()
    def every_request_is_in_the_models_state(self) -> None:
        """In exactly one, with its attempts and its batch."""
        store = self.look()
        for request_id, held in self.model.held.items():
            view = store.find(request_id)
            assert view is not None
            assert (view.state, view.attempts, view.key) == (held.state, held.attempts, held.request.key)
            if held.state is not RequestState.SETTLED:
                assert (view.batch_id, view.given_up) == (held.batch_id, held.given_up)

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
        """To the model's sums, however it is cut."""
        waiting = self.look().waiting()
        backlog = self.model.backlog()
        assert len(waiting) == len(backlog)
        assert {line_of(line) for line in waiting} == set(backlog)
        for line in waiting:
            requests = [held.request for held in backlog[line_of(line)]]
            check_line(line, requests)
            for prefix in ("p", "q"):
                bodies = {request.body for request in requests if request.group.prefix == prefix}
                assert self.look().sample(line, prefix) in (bodies or {None})

    @invariant()
    def every_request_is_in_one_place(self) -> None:
        """It waits, or is in one open batch, or has its outcome: none is lost, none is in two places.

        That the model is where the store is, the other invariants say.
        """
        waits = [held.request.request_id for queue in self.model.backlog().values() for held in queue]
        batched = [one for known in self.model.open_batches() for one in known.inside]
        settled = [outcome.request_id for outcome in self.model.log]
        assert sorted(waits + batched + settled) == sorted(self.model.held)

    @invariant()
    def the_tally_adds_up(self) -> None:
        """To all outcomes that there ever were, waste and second calls beside."""
        tally = self.look().tally()
        assert set(tally) <= set(CLASSES)
        for latency in CLASSES:
            assert tally.get(latency, ClassTally()) == self.model.tally(latency)

    @invariant()
    def open_batches_hold_what_has_not_left_them(self) -> None:
        """And closed ones nothing."""
        store = self.look()
        assert store.open_batches() == [known.batch for known in self.model.open_batches()]
        for batch_id, known in self.model.batches.items():
            assert sorted(store.unsettled(batch_id)) == sorted(known.inside)
        limit = 2 if self.looks % 3 else 1000
        assert store.closed_batches(limit) == self.model.closed_batches()[:limit]

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

    def drawn_batch(self, data: st.DataObject) -> HeldBatch:
        """A batch, mostly an open one."""
        opened = [known.batch.batch_id for known in self.model.open_batches()]
        return self.model.batches[data.draw(st.sampled_from(opened * 3 + list(self.model.batches)))]

    def batch_number(self) -> int:
        """Of the next batch."""
        self.claims += 1
        return self.claims

    def created(self, batch: Batch) -> dict[str, Any]:
        """What is known of a batch when its create was answered."""
        return {
            "state": BatchState.IN_FLIGHT,
            "provider_batch_id": f"msg{batch.batch_id}",
            "created_at": batch.created_at or self.now,
            "candidates": (),
        }

    def known_ids(self) -> list[str]:
        """Ids of requests that are there, and of some that were pruned."""
        return sorted(self.model.held) + sorted(self.pruned)[:5]


def old_copy(batch: Batch) -> Batch:
    """What somebody knows of a batch who read it before anything was decided."""
    return replace(
        batch,
        cancel_wanted=False,
        reason=None,
        insured=True,
        recalled_at=None,
        escalated_at=None,
        raced=None,
    )
