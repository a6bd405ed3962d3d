"""What a status says: of what waits, of what is in flight, and of who works on it."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from llmrouter.domain.batches import BatchState
from llmrouter.domain.packing import BatchLimits
from llmrouter.domain.reporting import EngineReport, Hold, HoldCause
from llmrouter.reports.status import BatchStatus, RouterStatus, describe
from llmrouter.stores.memory import MemoryStore
from support.clocks import START
from support.requests import FOREIGN_LANE, LANE, OTHER_LANE, queued

if TYPE_CHECKING:
    from llmrouter.domain.batches import Batch
    from llmrouter.ports import Lease

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


def hold_until(instant: datetime, lane_id: str = LANE.lane_id) -> Hold:
    return Hold(
        lane_id=lane_id,
        since=START,
        until=instant,
        cause=HoldCause.SPENT,
        reason="credit balance is too low",
        refusals=1,
    )


def look(
    store: MemoryStore, now: datetime = START, *, working: bool = False, own: EngineReport | None = None
) -> RouterStatus:
    return describe(store, now, working=working, serves=lambda lane: lane != FOREIGN_LANE, own=own)


def lease_of(store: MemoryStore, length: timedelta = HOUR) -> Lease:
    lease = store.acquire_lease("host:7:ab", START, length)
    assert lease is not None
    return lease


def claim(store: MemoryStore, lease: Lease, **changes: Any) -> Batch:
    """A batch of what waits, changed."""
    batch = store.claim(
        lease, store.waiting()[0], BatchLimits(), batch_id="batch_1", nonce="n" * 10, now=START
    )
    assert batch is not None
    changed = replace(batch, **changes)
    store.update_batch(lease, changed)
    return changed


def only_batch(status: RouterStatus) -> BatchStatus:
    (batch,) = status.batches
    return batch


def test_an_empty_store_needs_nobody() -> None:
    """That nobody works on it is no problem."""
    status = look(MemoryStore())
    assert (status.engine, status.unattended, status.queued, status.in_batches) == (None, False, 0, 0)


def test_who_works_is_named() -> None:
    """With what it last said, for every process to see."""
    store = MemoryStore()
    store.enqueue([queued()])
    assert look(store).unattended
    lease = lease_of(store)
    silent_yet = look(store)
    said = EngineReport(at=START, holds=(hold_until(START + HOUR),), problems={"poll": "no network"})
    store.report(lease, said)
    status = look(store, START + timedelta(minutes=1))

    assert silent_yet.engine is not None
    assert silent_yet.engine.said_at is None
    assert status.engine is not None
    assert (status.engine.holder, status.engine.until) == ("host:7:ab", START + HOUR)
    assert (status.engine.said_at, status.engine.working_here, status.engine.silent) == (START, False, False)
    assert (status.holds, status.problems) == (said.holds, said.problems)
    assert not status.unattended


def test_a_holder_that_is_silent_is_told() -> None:
    """Its work is nobody's until another takes over."""
    store = MemoryStore()
    store.enqueue([queued()])
    lease_of(store)
    status = look(store, START + HOUR)

    assert status.engine is not None
    assert status.engine.silent
    assert status.unattended


def test_what_this_process_knows_is_fresher() -> None:
    """When it works. When it stands by, only its own problems are told beside the other's."""
    store = MemoryStore()
    store.enqueue([queued()])
    theirs = hold_until(START + HOUR)
    store.report(lease_of(store), EngineReport(at=START, holds=(theirs,), problems={"poll": "old"}))
    ours = hold_until(START + 2 * HOUR)
    own = EngineReport(at=START + HOUR / 2, holds=(ours,), problems={"lease": "the disk is full"})

    works = look(store, START + HOUR / 2, working=True, own=own)
    assert (works.holds, works.problems) == ((ours,), {"lease": "the disk is full"})
    assert works.engine is not None
    assert (works.engine.working_here, works.engine.said_at) == (True, START + HOUR / 2)
    stands_by = look(store, START + HOUR / 2, own=own)
    assert (stands_by.holds, stands_by.working) == ((theirs,), False)
    assert stands_by.problems == {"poll": "old", "lease": "the disk is full"}


def test_a_line_of_the_backlog_says_what_holds_it_back() -> None:
    """A pause or a hold, of its own class and lane only; a hold that is over is none."""
    store = MemoryStore()
    lanes = {lane.lane_id: queued(lane=lane) for lane in (LANE, OTHER_LANE, FOREIGN_LANE)}
    store.enqueue([*lanes.values(), queued(lane=LANE, latency="hourly")])
    store.pause("hourly", START)
    over = hold_until(START, OTHER_LANE.lane_id)
    own = EngineReport(at=START, holds=(hold_until(START + HOUR), over))
    status = look(store, working=True, own=own)
    lines = {(line.lane_id, line.latency): line for line in status.backlog}

    held, free = lines[LANE.lane_id, "daily"], lines[OTHER_LANE.lane_id, "daily"]
    assert (held.held_until, held.held_cause) == (START + HOUR, HoldCause.SPENT)
    assert held.held_reason == "credit balance is too low"
    assert (free.held_until, free.held_cause, free.held_reason) == (None, None, None)
    assert [lines[key].paused for key in sorted(lines)] == [False, True, False, False]
    assert not lines[FOREIGN_LANE.lane_id, "daily"].served
    assert status.paused == {"hourly": START}
    assert status.holds == (hold_until(START + HOUR),)


@pytest.mark.parametrize(
    ("window", "held_for", "paused", "late", "will_miss"),
    [
        (2 * HOUR, None, False, False, False),
        (2 * HOUR, HOUR, False, False, False),
        (2 * HOUR, 3 * HOUR, False, False, True),
        (2 * HOUR, None, True, False, True),
        (HOUR / 2, None, False, True, False),
        (HOUR / 2, 3 * HOUR, True, True, False),
    ],
)
def test_deadlines_that_pass_are_told(
    window: timedelta, held_for: timedelta | None, paused: bool, late: bool, will_miss: bool
) -> None:
    """Those that have, and those that will unless something changes."""
    store, now = MemoryStore(), START + HOUR / 2
    store.enqueue([queued(window=window), queued(window=DAY)])
    if paused:
        store.pause("daily", START)
    holds = () if held_for is None else (hold_until(START + held_for),)
    (line,) = look(store, now, working=True, own=EngineReport(at=now, holds=holds)).backlog

    assert (line.late, line.will_miss) == (late, will_miss)


def test_a_batch_in_doubt_names_its_candidates() -> None:
    """And since when it is in doubt."""
    store = MemoryStore()
    store.enqueue([queued(), queued()])
    lease = lease_of(store)
    claim(store, lease, state=BatchState.IN_DOUBT, in_doubt_at=START + HOUR, candidates=("msgbatch_1",))
    batch = only_batch(look(store))

    assert (batch.state, batch.in_doubt_at) == (BatchState.IN_DOUBT, START + HOUR)
    assert batch.candidates == ("msgbatch_1",)
    assert (batch.overdue, batch.results_until, batch.served) == (False, None, True)


def test_a_batch_that_is_given_up_says_so() -> None:
    """From the wish to the request."""
    store = MemoryStore()
    request = queued()
    store.enqueue([request])
    lease = lease_of(store)
    batch = claim(store, lease)
    flying = replace(batch, state=BatchState.IN_FLIGHT, provider_batch_id="msgbatch_1", created_at=START)
    store.record_created(flying)
    store.cancel([request.request_id], START, in_batches=True)
    wanted = only_batch(look(store))
    store.update_batch(lease, replace(flying, cancel_asked_at=START + HOUR))
    asked = only_batch(look(store))

    assert (wanted.cancel_wanted, wanted.cancel_asked_at) == (True, None)
    assert (asked.cancel_wanted, asked.cancel_asked_at) == (True, START + HOUR)


@pytest.mark.parametrize(("age", "overdue"), [(19 * DAY, False), (20 * DAY, True)])
def test_a_batch_that_is_not_collected_is_an_alarm(age: timedelta, overdue: bool) -> None:
    """From twenty days on, with the day on which its results will be gone."""
    store = MemoryStore()
    store.enqueue([queued()])
    batch = claim(store, lease_of(store))
    store.record_created(replace(batch, provider_batch_id="msgbatch_1", created_at=START))
    found = only_batch(look(store, START + age))

    assert (found.overdue, found.results_until) == (overdue, START + 29 * DAY)
    assert found.created_at == START
