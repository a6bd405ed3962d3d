"""What a status says: of what waits, of what is in flight, and of who works on it."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from llmrouter.domain.batches import Answer, BatchState
from llmrouter.domain.blocks import Hold as LiveHold
from llmrouter.domain.blocks import Reason
from llmrouter.domain.ledger import MissCause
from llmrouter.domain.packing import BatchLimits
from llmrouter.domain.reporting import EngineReport, Hold, HoldCause, LiveReport, Uninsured
from llmrouter.domain.requests import OutcomeKind
from llmrouter.reports.status import BatchStatus, RouterStatus, describe
from llmrouter.reports.warnings import merge_backlog, warnings_of
from llmrouter.stores.memory import MemoryStore
from support.clocks import START
from support.requests import FOREIGN_LANE, LANE, MODEL, OTHER_LANE, queued

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
    store: MemoryStore,
    now: datetime = START,
    *,
    working: bool = False,
    own: EngineReport | None = None,
    budgets: dict[str, Decimal] | None = None,
) -> RouterStatus:
    return describe(
        store,
        now,
        working=working,
        serves=lambda lane: lane != FOREIGN_LANE,
        carries=lambda lane: lane != OTHER_LANE,
        own=own,
        budgets=budgets or {},
    )


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


LIVE = LiveReport(
    requests_per_minute=250.0,
    going=12,
    under_way=3,
    storm=False,
    hold=None,
    hold_until=None,
    waits_until=None,
    uninsured=(),
)


def look_live(live: LiveReport, now: datetime = START, store: MemoryStore | None = None) -> RouterStatus:
    """The status of a store whose engine, in this process, says that of live calls."""
    store = store or MemoryStore()
    lease_of(store, 2 * DAY)
    return look(store, now, working=True, own=EngineReport(at=START, live=live))


def succeeded(request_id: str, paid_usd: str | None = None) -> Answer:
    return Answer(
        request_id=request_id,
        kind=OutcomeKind.SUCCEEDED,
        raw=b"{}",
        retry=False,
        paid_usd=None if paid_usd is None else Decimal(paid_usd),
    )


def go_live(store: MemoryStore, lease: Lease, batch_id: str = "batch_live") -> Batch:
    """All that waits in the first line of the backlog, on its way."""
    batch = store.escalate_waiting(
        lease,
        store.waiting()[0],
        START + 100 * DAY,
        batch_id=batch_id,
        reason=Reason.LATEST_START,
        insured=True,
        now=START,
    )
    assert batch is not None
    return batch


def test_requests_that_go_live_are_in_no_batch() -> None:
    """They are told apart, with the reason, and not counted among those at the API."""
    store = MemoryStore()
    store.enqueue([queued(), queued()])
    go_live(store, lease_of(store))
    status = look(store)
    batch = only_batch(status)

    assert (batch.state, batch.escalating, batch.reason) == (BatchState.ESCALATING, True, Reason.LATEST_START)
    assert (batch.model, batch.deadline_at, batch.escalated_at) == (MODEL, START + DAY, START)
    assert (status.queued, status.in_batches, status.going_live, status.api_batches) == (0, 0, 2, ())


def test_a_race_is_told_once_for_each_side() -> None:
    """The batch may still answer; its requests are counted where they go live, not twice."""
    store = MemoryStore()
    store.enqueue([queued(), queued()])
    lease = lease_of(store)
    store.record_created(replace(claim(store, lease), provider_batch_id="msgbatch_1", created_at=START))
    store.note_decision(lease, "batch_1", reason=Reason.STORM, insured=False, recalled_at=START)
    store.escalate_batch(
        lease, "batch_1", into="batch_2", reason=Reason.CANCEL_NOT_FINAL, insured=False, now=START + HOUR
    )
    status = look(store)
    old, new = status.batches

    assert (old.recalled_at, old.escalated_at, old.insured) == (START, START + HOUR, False)
    assert (new.escalating, new.raced, new.reason) == (True, "batch_1", Reason.CANCEL_NOT_FINAL)
    assert (status.in_batches, status.going_live, status.api_batches) == (0, 2, (old,))


def end_batch(store: MemoryStore, lease: Lease, number: int, minutes: float) -> None:
    """A batch of one request that took so long."""
    request = queued()
    store.enqueue([request])
    batch = store.claim(
        lease, store.waiting()[0], BatchLimits(), batch_id=f"batch_{number}", nonce="n" * 10, now=START
    )
    assert batch is not None
    flying = replace(batch, state=BatchState.IN_FLIGHT, provider_batch_id=f"msg_{number}", created_at=START)
    store.record_created(flying)
    store.settle(lease, batch.batch_id, [succeeded(request.request_id)], START + HOUR)
    store.finish(lease, replace(flying, ended_at=START + timedelta(minutes=minutes)))


def test_how_long_batches_take_is_told() -> None:
    """Of all models; of one model once it has enough of its own. Few batches make a guess."""
    store, lease = MemoryStore(), None
    lease = lease_of(store)
    (none,) = look(store, START + HOUR).turnaround
    for number in range(4):
        end_batch(store, lease, number, 10)
    (few,) = look(store, START + HOUR).turnaround
    for number in range(4, 100):
        end_batch(store, lease, number, 10 if number % 20 else 50)
    everything, own = look(store, START + HOUR).turnaround

    assert (none.ended, none.guess, none.model) == (0, True, None)
    assert (few.ended, few.guess) == (4, True)
    assert (everything.ended, everything.guess, everything.model) == (100, False, None)
    assert everything.p50 is not None
    assert everything.p90 is not None
    assert timedelta(minutes=9) < everything.p50 <= timedelta(minutes=10) <= everything.p90
    assert everything.p90 < timedelta(minutes=15)
    assert own == replace(everything, model=MODEL)


def test_batches_in_flight_count_as_far_as_they_have_come() -> None:
    """Ten that have not come back for hours make the estimate longer."""
    store = MemoryStore()
    lease = lease_of(store)
    for number in range(10):
        end_batch(store, lease, number, 5)
    (before,) = look(store, START + 5 * HOUR).turnaround
    for number in range(10):
        store.enqueue([queued()])
        batch = store.claim(
            lease, store.waiting()[0], BatchLimits(), batch_id=f"slow_{number}", nonce="n" * 10, now=START
        )
        assert batch is not None
        store.record_created(replace(batch, provider_batch_id=f"slow_msg_{number}", created_at=START))
    (after,) = look(store, START + 5 * HOUR).turnaround

    assert before.p90 is not None
    assert after.p90 is not None
    assert before.p90 < HOUR < 5 * HOUR < after.p90


def test_what_came_of_all_requests_is_told_by_class() -> None:
    """By route, with what it cost and what was missed; today is by UTC."""
    store = MemoryStore()
    lease = lease_of(store)
    requests = [queued(), queued(), queued(window=HOUR)]
    store.enqueue(requests)
    go_live(store, lease)
    one, two, late = (request.request_id for request in requests)
    store.answer([succeeded(one, "0.5"), succeeded(two, "0.25")], START)
    store.answer([succeeded(one, "0.5")], START)
    store.answer([succeeded(late, "1")], START + DAY)
    today, tomorrow = look(store), look(store, START + DAY)
    (line,) = today.tally

    assert (line.latency, line.by_batch, line.escalated, line.wasted, line.resent) == ("daily", 0, 3, 1, 0)
    assert line.missed == {MissCause.LIVE_API: 1}
    assert (line.escalation_usd_today, line.escalation_usd) == (Decimal("1.25"), Decimal("2.25"))
    assert tomorrow.tally[0].escalation_usd_today == Decimal(1)


def test_a_class_is_eventful_when_something_went_live_or_wrong() -> None:
    """Also where no price is known; batches that answered in time are nothing to tell."""
    store = MemoryStore()
    lease = lease_of(store)
    end_batch(store, lease, 1, 10)
    (quiet,) = look(store).tally
    request = queued()
    store.enqueue([request])
    go_live(store, lease)
    store.answer([succeeded(request.request_id)], START)
    (loud,) = look(store).tally

    assert (quiet.by_batch, quiet.eventful) == (1, False)
    assert (loud.escalated, loud.escalation_usd, loud.eventful) == (1, Decimal(0), True)


def test_classes_whose_budget_is_used_up_are_named() -> None:
    """From the first dollar that reaches it until the day is over; none may go live with a budget of 0."""
    store = MemoryStore()
    lease = lease_of(store)
    request = queued()
    store.enqueue([request])
    go_live(store, lease)
    store.answer([succeeded(request.request_id, "2")], START)
    reached, more, none = Decimal(2), Decimal("2.01"), Decimal(0)

    assert look(store, budgets={"daily": reached, "hourly": none}).used_up == ("daily", "hourly")
    assert look(store, budgets={"daily": more}).used_up == ()
    assert look(store, START + DAY, budgets={"daily": reached}).used_up == ()


def test_what_is_said_of_live_calls_holds_as_long_as_it_lasts() -> None:
    """A hold that is over is none, nor is a wait; a risk whose deadline has passed is a fact by then."""
    risk = Uninsured(latency="hourly", model=MODEL, request_count=500, deadline_at=START + HOUR)
    said = replace(
        LIVE,
        hold=LiveHold.SPEND_CAP,
        hold_until=START + HOUR,
        waits_until=START + HOUR,
        uninsured=(risk,),
    )
    unending = replace(said, hold=LiveHold.BUDGET, hold_until=None)

    assert look_live(said).live == said
    assert look_live(said, START + HOUR).live == LIVE
    over = look_live(unending, START + HOUR).live
    assert over is not None
    assert over.hold is LiveHold.BUDGET


def test_nothing_is_said_of_live_calls_when_nobody_works() -> None:
    """The last words of a process that is silent say nothing of now."""
    store = MemoryStore()
    assert look(store).live is None
    lease = lease_of(store)
    store.report(lease, EngineReport(at=START, live=LIVE))
    assert look(store).live == LIVE
    assert look(store, START + HOUR).live is None


def test_a_lane_that_is_held_back_makes_its_deadlines_live() -> None:
    """What the API refuses as a batch for now goes live in time, unless live calls are refused as well."""
    held = replace(hold_until(START + 3 * HOUR), cause=HoldCause.LIMITED)
    store = MemoryStore()
    store.enqueue([queued(window=2 * HOUR)])
    only_batches = replace(held, lane_id=OTHER_LANE.lane_id)
    stopped = replace(LIVE, hold=LiveHold.BUDGET)

    def will_miss(hold: Hold, live: LiveReport | None = None, store: MemoryStore = store) -> bool:
        lease_of(store)
        own = EngineReport(at=START, holds=(hold,), live=live)
        return look(store, working=True, own=own).backlog[0].will_miss

    assert not will_miss(held, LIVE)
    assert will_miss(held, stopped)
    assert will_miss(replace(held, cause=HoldCause.CREDENTIAL), LIVE)
    other = MemoryStore()
    other.enqueue([queued(lane=OTHER_LANE, window=2 * HOUR)])
    assert will_miss(only_batches, LIVE, other)


def test_the_backlog_of_a_lane_and_class_is_one_line_for_people() -> None:
    """Programs get it by model. The first deadline counts, and whatever is late."""
    store = MemoryStore()
    for model, window in (("a", 2 * HOUR), ("b", HOUR), ("c", DAY)):
        request = queued(window=window)
        store.enqueue([replace(request, group=replace(request.group, model=model))])
    store.enqueue([queued(lane=FOREIGN_LANE), queued(latency="weekly", window=7 * DAY)])
    status = look(store, START + HOUR)
    lines = merge_backlog(status.backlog)

    assert [line.model for line in status.backlog if line.lane_id == LANE.lane_id] == ["a", "b", "c", MODEL]
    assert [(line.latency, line.lane_id, line.request_count) for line in lines] == [
        ("daily", LANE.lane_id, 3),
        ("daily", FOREIGN_LANE.lane_id, 1),
        ("weekly", LANE.lane_id, 1),
    ]
    assert (lines[0].late, lines[0].earliest_deadline_at) == (True, START + HOUR)
    assert lines[0].body_bytes == sum(line.body_bytes for line in status.backlog[:3])


def test_what_somebody_should_know_is_a_line_each() -> None:
    """What cannot be insured, what stops live calls, and what the API asks for."""
    risk = Uninsured(latency="hourly", model=MODEL, request_count=500, deadline_at=START + HOUR)
    capped = replace(LIVE, hold=LiveHold.SPEND_CAP, hold_until=START + DAY)
    waits = replace(LIVE, waits_until=START + timedelta(seconds=20), uninsured=(risk,))

    no_money = (
        "Nothing goes live before 2026-11-21 12:00:00 UTC, in 24.0 h: a spend limit of the account was"
        " reached; what no batch answers in time will be late."
    )
    too_much = (
        f"500 requests of class hourly ({MODEL}), due in 60 min, cannot be insured: 250 live requests a"
        " minute do not suffice should their batches not be back in time."
    )
    patience = "The API asks to wait with live calls for 20 s more."

    assert list(warnings_of(look_live(LIVE))) == []
    assert list(warnings_of(look_live(capped))) == [no_money]
    assert list(warnings_of(look_live(waits))) == [patience, too_much]
    assert list(warnings_of(look(MemoryStore(), budgets={"daily": Decimal(0)}))) == [
        "daily: its max_escalation_usd is used up today; what no batch answers in time will be late."
    ]


def test_what_should_go_live_and_cannot_is_told() -> None:
    """How many requests of which class, until when, and why."""
    store = MemoryStore()
    store.enqueue([queued(), queued()])
    lease = lease_of(store)
    claim(store, lease)
    store.note_decision(lease, "batch_1", reason=Reason.LATEST_START, insured=True, recalled_at=START)
    assert list(warnings_of(look(store))) == []
    store.note_decision(lease, "batch_1", reason=Reason.BUDGET, insured=False, recalled_at=None)

    assert list(warnings_of(look(store))) == [
        "2 requests of class daily, due in 24.0 h, should go live and cannot: max_escalation_usd was used up."
    ]
