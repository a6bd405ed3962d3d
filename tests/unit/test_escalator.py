"""Deadlines are kept: what is recalled when, what goes live, what stays, and what is said of it."""

from __future__ import annotations

import logging
from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from llmrouter.domain.batches import BatchState
from llmrouter.domain.blocks import Hold, Leftover, Reason
from llmrouter.domain.ledger import MissCause
from llmrouter.domain.requests import OutcomeKind, Route
from llmrouter.errors import LeaseLostError, StoreBusyError
from llmrouter.stores import framing
from support.batch_api import line
from support.engine import GRACE, Bench, lose_answer
from support.live_api import PRICE, limited, lost, spent, unauthorized
from support.requests import FOREIGN_LANE, LANE, OTHER_LANE
from support.stores import FailingStore

if TYPE_CHECKING:
    from llmrouter.domain.requests import QueuedRequest

HOUR, DAY, MINUTE, SECOND = (
    timedelta(hours=1),
    timedelta(days=1),
    timedelta(minutes=1),
    timedelta(seconds=1),
)
SUCCEEDED, ERRORED, CANCELED = OutcomeKind.SUCCEEDED, OutcomeKind.ERRORED, OutcomeKind.CANCELED
SHORT = timedelta(minutes=10)
MARGIN, LEAD = timedelta(minutes=5), timedelta(minutes=5)
"""Of an hourly request: kept before its deadline, and before that, for the cancel."""


def flying(count: int = 3, window: timedelta = HOUR, **options: Any) -> tuple[Bench, list[QueuedRequest]]:
    """A batch at the API, which takes its time."""
    bench = Bench(**options)
    requests = bench.accept(count, window)
    assert bench.flush() == 1
    return bench, requests


def routes(bench: Bench, requests: list[QueuedRequest]) -> set[Route]:
    """The ways their outcomes came."""
    return {one.route for one in bench.outcomes(requests).values()}


def on_time(bench: Bench, requests: list[QueuedRequest]) -> bool:
    """Whether all of them were."""
    outcomes = bench.outcomes(requests).values()
    return len(outcomes) == len(requests) and all(one.settled_at <= one.deadline_at for one in outcomes)


# What waits


def test_what_has_too_little_time_for_a_batch_goes_live_at_once() -> None:
    """It was accepted so."""
    bench = Bench()
    requests = bench.accept(3, SHORT)
    assert bench.live_turn() == 1

    assert bench.kinds(requests) == [SUCCEEDED] * 3
    assert {one.reason for one in bench.outcomes(requests).values()} == {Reason.SHORT_WINDOW}


def test_what_has_time_waits_for_its_batch() -> None:
    """Nothing is done about it."""
    bench = Bench()
    bench.accept(3, HOUR)

    assert bench.live_turn() == 0
    assert (bench.queued_count(), bench.live.began) == (3, [])


def test_a_group_that_waited_too_long_goes_live_and_the_later_ones_wait_on() -> None:
    """Each with those that are due at about the same time."""
    bench = Bench()
    sooner, later = bench.accept(2, HOUR), bench.accept(2, DAY)
    bench.live_turn(timedelta(minutes=48))

    assert bench.kinds([*sooner, *later]) == [SUCCEEDED, SUCCEEDED, None, None]
    assert bench.queued_count() == 2


def test_groups_that_go_live_together_keep_their_own_reasons() -> None:
    """And each its own batch, the most urgent first."""
    bench = Bench(concurrency=1)
    short = bench.accept(1, timedelta(minutes=14))
    shorter = bench.accept(1, timedelta(minutes=4))
    bench.clock.advance(SECOND)
    assert bench.escalate() == 2
    bench.send()

    assert bench.live.began == [one.request_id for one in (*shorter, *short)]


def test_a_class_that_is_paused_stays_whatever_its_deadline() -> None:
    """Until it is resumed; then it goes live."""
    bench = Bench()
    requests = bench.accept(2, HOUR)
    bench.store.pause("daily", bench.clock.now())
    bench.live_turn(2 * HOUR)
    assert bench.kinds(requests) == [None, None]
    bench.store.resume("daily")
    bench.live_turn(SECOND)

    assert bench.kinds(requests) == [SUCCEEDED] * 2
    assert sum(bench.tally().missed.values()) == 2


def test_a_lane_of_another_credential_is_left_alone() -> None:
    """What waits, and what flies."""
    bench = Bench()
    bench.api.credentials.add("credential-c")
    bench.accept(2, HOUR, lane=FOREIGN_LANE)
    bench.flush()
    bench.accept(2, HOUR, lane=FOREIGN_LANE)
    bench.live_turn(2 * HOUR)

    assert bench.states() == [BatchState.IN_FLIGHT]
    assert bench.queued_count() == 2
    assert bench.api.cancels == []


# What is in a batch


def test_a_batch_is_recalled_in_time_and_the_rest_goes_live() -> None:
    """What it had done by then is taken from it."""
    bench, requests = flying(3)
    bench.until(requests[0].deadline_at - MARGIN - LEAD - MINUTE)
    assert bench.api.cancels == []
    bench.until(requests[0].deadline_at - MARGIN - LEAD)
    assert bench.api.cancels == ["msgbatch_0"]
    posted = bench.api.posted[0]
    posted.lines = [line(posted.custom_ids[0]), *(line(one, "canceled") for one in posted.custom_ids[1:])]
    bench.api.end()
    bench.collect()
    bench.live_turn()

    assert bench.kinds(requests) == [SUCCEEDED] * 3
    assert on_time(bench, requests)
    assert sorted(one.route for one in bench.outcomes(requests).values()) == ["batch", *["escalated"] * 2]
    assert len(bench.live.began) == 2
    assert bench.tally().wasted == bench.tally().resent == 0
    assert bench.store.open_batches() == []


def test_a_batch_whose_cancel_is_not_final_is_raced() -> None:
    """Its answers still count, once."""
    bench, requests = flying(3)
    bench.until(requests[0].deadline_at)

    assert bench.kinds(requests) == [SUCCEEDED] * 3
    assert on_time(bench, requests)
    assert {one.reason for one in bench.outcomes(requests).values()} == {Reason.CANCEL_NOT_FINAL}
    assert bench.states() == [BatchState.IN_FLIGHT]
    bench.api.posted[0].canceled_at = None
    bench.api.end()
    bench.collect()
    assert bench.tally().wasted == 3
    assert bench.store.open_batches() == []


def test_a_leftover_that_has_time_is_batched_again() -> None:
    """As of a batch that expired."""
    bench, requests = flying(2, timedelta(hours=30))
    bench.until(bench.clock.now() + DAY, step=HOUR)
    posted = bench.api.posted[0]
    posted.lines = [line(one, "expired") for one in posted.custom_ids]
    bench.api.end()
    bench.live_turn()
    assert bench.escalator.leftover(bench.store.open_batches()[0]) is Leftover.BATCH
    bench.collect()

    assert bench.queued_count() == 2
    assert bench.outcomes(requests) == {}


@pytest.mark.parametrize("state", [BatchState.CLAIMED, BatchState.IN_DOUBT])
def test_what_is_in_doubt_goes_live_at_its_latest_start(state: BatchState) -> None:
    """What its batch answers all the same is not lost."""
    bench = Bench()
    requests = bench.accept(2, HOUR)
    if state is BatchState.CLAIMED:
        bench.claim()
    else:
        bench.api.after_create = lose_answer
        bench.flush()
    assert bench.states() == [state]
    bench.until(requests[0].deadline_at)

    assert bench.kinds(requests) == [SUCCEEDED] * 2
    assert on_time(bench, requests)
    assert routes(bench, requests) == {Route.ESCALATED}


@pytest.mark.parametrize("piece", [0, 1])
def test_what_goes_live_during_its_create_is_not_created_any_more(
    piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would all be paid twice; and its bodies may have been dropped."""
    monkeypatch.setattr(framing, "PIECE_BYTES", 100)
    bench = Bench()
    requests = bench.accept(2, HOUR)

    def late(number: int) -> None:
        if number == piece and bench.states() == [BatchState.CLAIMED]:
            bench.live_turn(HOUR - timedelta(minutes=4))
            bench.janitor.run_once(bench.lease)

    bench.api.on_piece = late
    bench.flush()

    assert bench.kinds(requests) == [SUCCEEDED] * 2
    assert bench.api.posted == []
    assert (bench.store.open_batches(), bench.queued_count()) == ([], 0)
    assert bench.tally().wasted == 0


def test_a_batch_in_doubt_that_was_raced_is_canceled_when_it_is_found() -> None:
    """And what it had done is counted as wasted."""
    bench = Bench()
    requests = bench.accept(2, HOUR)
    bench.api.after_create = lose_answer
    bench.flush()
    bench.until(requests[0].deadline_at)
    bench.api.end()
    bench.reconcile(passes=GRACE)
    bench.canceller.run_once(bench.lease)
    bench.collect()

    assert bench.api.cancels == ["msgbatch_0"]
    assert bench.tally().wasted == 2
    assert bench.store.open_batches() == []


def test_a_batch_in_doubt_that_was_raced_and_never_was_is_released() -> None:
    """Nothing of it is queued again."""
    bench = Bench()
    requests = bench.accept(2, HOUR)
    bench.api.before_create = lose_answer
    bench.flush()
    bench.until(requests[0].deadline_at)
    bench.reconcile(passes=GRACE)
    bench.reconcile(passes=GRACE)

    assert bench.kinds(requests) == [SUCCEEDED] * 2
    assert (bench.store.open_batches(), bench.queued_count()) == ([], 0)
    assert bench.tally().wasted == 0


def test_a_batch_that_everybody_gave_up_is_left_to_its_cancel() -> None:
    """No word about it, and no capacity for it, however late it is."""
    bench, requests = flying(2)
    bench.store.cancel([one.request_id for one in requests], bench.clock.now(), in_batches=True)
    done = [bench.live_turn(step) for step in (HOUR, SECOND, SECOND)]

    assert done == [0, 0, 0]
    assert bench.states() == [BatchState.IN_FLIGHT]
    assert bench.live.began == []


def test_a_raced_batch_that_ends_canceled_does_not_end_what_goes_live() -> None:
    """Also on the last attempt, when its line would be the outcome else."""
    bench, requests = flying(2, max_attempts=1)
    bench.calls.keeps = True
    bench.until(requests[0].deadline_at - MINUTE)
    assert BatchState.ESCALATING in bench.states()
    posted = bench.api.posted[0]
    posted.lines = [line(posted.custom_ids[0], "expired"), line(posted.custom_ids[1], "errored", "api_error")]
    bench.api.end()
    bench.collect()
    bench.calls.let_go()
    bench.send()

    assert bench.kinds(requests) == [SUCCEEDED] * 2


def test_a_raced_batch_whose_results_are_cut_is_read_again() -> None:
    """What it answered is an outcome, or counted as wasted."""
    bench, requests = flying(3)
    bench.calls.keeps = True
    bench.until(requests[0].deadline_at - MINUTE)
    assert BatchState.ESCALATING in bench.states()
    bench.api.posted[0].canceled_at = None
    bench.api.end()
    bench.api.read = lambda _, lines: lines[:1]
    bench.collect()
    bench.calls.let_go()
    bench.send()
    bench.api.read = lambda _, lines: lines
    bench.collect()

    charged = sum(bench.live.charged.values()) + 3
    assert bench.kinds(requests) == [SUCCEEDED] * 3
    assert bench.tally().wasted == charged - 3
    assert bench.store.open_batches() == []


# What holds it back


@pytest.mark.parametrize("hold", [Hold.SPEND_CAP, Hold.BUDGET, Hold.BATCH_ONLY])
def test_what_must_not_go_live_stays_in_its_batch_and_is_told_once(
    hold: Hold, caplog: pytest.LogCaptureFixture
) -> None:
    """Its miss has a name, and its batch is not canceled in vain."""
    bench, requests = flying(2, **({"most": Decimal(0)} if hold is Hold.BUDGET else {}))
    bench.clock.advance(timedelta(minutes=40))
    if hold is Hold.BATCH_ONLY:
        bench.live.batch_only.add(LANE.lane_id)
    elif hold is Hold.SPEND_CAP:
        bench.live.down = spent(bench.clock.now() + DAY)
        bench.accept(1, SHORT)
        bench.live_turn()
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="llmrouter.engine"):
        for _ in range(120):
            bench.live_turn(30 * SECOND)
    told = [one for one in caplog.records if "stay" in one.message]

    assert bench.api.cancels == []
    assert len(told) == 1
    assert bench.store.find_batch(bench.store.open_batches()[0].batch_id).reason == hold.value
    bench.clock.set(max(bench.clock.now(), requests[0].deadline_at + SECOND))
    bench.api.end()
    bench.collect()
    assert bench.kinds(requests) == [SUCCEEDED] * 2
    assert bench.tally().missed == {MissCause(hold.value): 2}


def test_a_key_that_is_not_accepted_keeps_batches_of_its_lane_where_they_are() -> None:
    """While that is held against it; other lanes go live."""
    bench = Bench()
    mine, others = bench.accept(2, HOUR), bench.accept(2, HOUR, lane=OTHER_LANE)
    bench.flush()
    bench.clock.advance(timedelta(minutes=49, seconds=30))
    bench.accept(1, SHORT)
    bench.live.next.append(unauthorized())
    bench.live_turn()
    assert bench.sender.lane_hold(LANE.lane_id) is Hold.CREDENTIAL
    bench.live_turn(28 * SECOND)
    held, free = sorted(bench.store.open_batches(), key=lambda one: one.lane.lane_id != LANE.lane_id)[-2:]

    assert (held.reason, free.reason) != (None, None)
    assert bench.api.cancels == ["msgbatch_1"]
    assert bench.kinds([*mine, *others]) == [None] * 4


def test_a_backlog_that_must_not_go_live_is_told_once_though_it_grows(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """By the second, perhaps."""
    bench = Bench(most=Decimal(0))
    with caplog.at_level(logging.WARNING, logger="llmrouter.engine"):
        for _ in range(10):
            bench.accept(1, SHORT)
            bench.live_turn(SECOND)

    assert len([one for one in caplog.records if "stay" in one.message]) == 1
    assert bench.queued_count() == 10


def test_what_was_to_go_live_is_batched_when_the_budget_is_used_up() -> None:
    """As soon as none of its calls is under way; on the next day there is a budget again."""
    bench = Bench(most=2 * PRICE)
    requests = bench.accept(20, SHORT)
    bench.escalate()
    bench.calls.keeps = True
    bench.send(1)
    under_way = len(bench.calls.kept)
    bench.calls.let_go(2)
    bench.send(1)
    bench.escalate()
    assert bench.states() == [BatchState.ESCALATING], "some calls are under way"
    bench.calls.let_go()
    bench.calls.keeps = False
    bench.send(1)
    bench.escalate()

    assert bench.states() == []
    assert bench.queued_count() == 20 - under_way
    bench.flush()
    bench.api.end()
    bench.collect()
    assert bench.kinds(requests) == [SUCCEEDED] * 20
    assert bench.tally().wasted == 0


def test_what_races_a_batch_is_not_given_back_before_that_is_closed() -> None:
    """Else it would be in two batches."""
    bench, requests = flying(3, most=PRICE, concurrency=1)
    bench.clock.advance(timedelta(minutes=56))
    for _ in range(5):
        bench.live_turn(SECOND)
    assert bench.budget.is_used_up()
    assert bench.states() == [BatchState.IN_FLIGHT, BatchState.ESCALATING]
    assert (bench.queued_count(), len(bench.live.began)) == (0, 1)
    posted = bench.api.posted[0]
    posted.lines = [line(one, "canceled") for one in posted.custom_ids]
    bench.api.end()
    bench.collect()
    bench.escalate()

    assert bench.states() == []
    assert bench.queued_count() == 2
    assert bench.kinds(requests).count(SUCCEEDED) == 1


def test_a_budget_of_a_class_holds_that_class_only() -> None:
    """Others go live."""
    bench = Bench(by_class={"hourly": Decimal(0)})
    mine, others = bench.accept(1, SHORT, latency="hourly"), bench.accept(1, SHORT)
    bench.live_turn()

    assert bench.kinds([*mine, *others]) == [None, SUCCEEDED]


def test_lanes_that_only_a_batch_can_carry_never_go_live() -> None:
    """Others of the same class do."""
    bench = Bench()
    bench.live.batch_only.add(OTHER_LANE.lane_id)
    stays, goes = bench.accept(1, SHORT, lane=OTHER_LANE), bench.accept(1, SHORT)
    bench.live_turn()

    assert bench.kinds([*stays, *goes]) == [None, SUCCEEDED]
    assert bench.queued_count() == 1


# What cannot be insured


def test_what_cannot_be_insured_is_told_once_and_reported(caplog: pytest.LogCaptureFixture) -> None:
    """When it is accepted, though more of it comes."""
    bench = Bench(requests_per_minute=1)
    bench.accept(200, HOUR)
    with caplog.at_level(logging.WARNING, logger="llmrouter.engine"):
        for _ in range(5):
            bench.live_turn(SECOND)
            bench.accept(1, HOUR)
    told = [one for one in caplog.records if "cannot be insured" in one.message]

    assert len(told) == 1
    report = bench.escalator.report
    assert report is not None
    assert [(one.latency, one.request_count) for one in report.uninsured] == [("daily", 204)]


def test_what_cannot_be_insured_takes_nothing_from_the_others() -> None:
    """Those make their deadlines."""
    bench = Bench(requests_per_minute=6)
    many = bench.accept(400, HOUR)
    bench.flush()
    few = bench.accept(4, 2 * HOUR)
    bench.flush()
    while bench.clock.now() < few[0].deadline_at:
        bench.clock.advance(10 * SECOND)
        bench.escalate()
        bench.send(2)

    assert on_time(bench, few)
    assert not on_time(bench, many)
    assert bench.tally().missed.keys() == {MissCause.NOT_INSURED}


def test_a_report_says_what_goes_on() -> None:
    """Calls, holds and waits."""
    bench = Bench()
    bench.accept(5, SHORT)
    bench.calls.keeps = True
    bench.live_turn()
    bench.live_turn()
    report = bench.escalator.report

    assert report is not None
    assert report.going == 5
    assert report.under_way == len(bench.calls.kept) > 0
    assert (report.storm, report.hold, report.uninsured) == (False, None, ())


# Overtaken batches


def test_an_overtaken_batch_is_sent_again_where_that_is_switched_on() -> None:
    """And ends well, however often that happens."""
    bench = Bench(restart_age=timedelta(minutes=20), max_attempts=2)
    requests = bench.accept(2, DAY)
    bench.flush()
    for _ in range(4):
        mine = bench.api.posted[-1]
        for _ in range(3):
            bench.clock.advance(MINUTE)
            bench.accept(1, 2 * DAY)
            bench.flush()
            bench.api.end(bench.api.posted[-1])
            bench.collect()
        bench.live_turn(timedelta(minutes=25))
        assert bench.api.cancels[-1] == mine.provider_batch_id
        mine.lines = [line(one, "canceled") for one in mine.custom_ids]
        bench.api.end(mine)
        bench.collect()
        assert bench.queued_count() == 2
        bench.flush()
    bench.api.end(bench.api.posted[-1])
    bench.collect()

    assert bench.kinds(requests) == [SUCCEEDED] * 2


def test_a_paused_class_is_not_sent_again() -> None:
    """It could not leave the queue."""
    bench = Bench(restart_age=timedelta(minutes=20))
    bench.accept(2, DAY)
    bench.flush()
    for _ in range(3):
        bench.clock.advance(MINUTE)
        bench.accept(1, 2 * DAY)
        bench.flush()
        bench.api.end(bench.api.posted[-1])
        bench.collect()
    bench.store.pause("daily", bench.clock.now())
    bench.live_turn(timedelta(minutes=25))

    assert bench.api.cancels == []


# The store, the lease, the process


CALLS = [
    "open_batches",
    "paused",
    "waiting",
    "tally",
    "closed_batches",
    "escalate_waiting",
    "escalate_batch",
    "note_decision",
    "unsettled",
    "release",
]


@pytest.mark.parametrize("call", CALLS)
def test_a_store_that_is_busy_for_a_moment_costs_a_moment(call: str) -> None:
    """At any call of the escalator's; it is made up for in the next run."""
    store = FailingStore()
    bench, flown = flying(2, store=store, most=Decimal(100))
    live = bench.accept(2, timedelta(minutes=59), latency="hourly")
    kept = bench.accept(1, SHORT)
    bench.store.cancel([kept[0].request_id], bench.clock.now(), in_batches=True)
    failed = 0
    deadline = flown[0].deadline_at
    while bench.clock.now() < deadline:
        bench.clock.advance(10 * SECOND)
        if not failed and call != "release":
            store.failures = {call: [StoreBusyError("locked")]}
        try:
            bench.escalate()
        except StoreBusyError:
            failed += 1
        store.failures = {}
        bench.send(4)
        bench.canceller.run_once(bench.lease)

    assert failed or call == "release"
    assert bench.kinds([*flown, *live]) == [SUCCEEDED] * 4
    assert on_time(bench, [*flown, *live])
    assert set(bench.live.charged.values()) == {1}


@pytest.mark.parametrize("minutes", [10, 55])
def test_a_lost_lease_changes_nothing(minutes: int) -> None:
    """Whatever was to be decided."""
    bench, _ = flying(2)
    bench.accept(1, timedelta(minutes=minutes))
    bench.clock.advance(timedelta(minutes=56))
    bench.hand_over()
    before = bench.store.open_batches()
    with pytest.raises(LeaseLostError):
        bench.escalate()

    assert bench.store.open_batches() == before
    assert bench.queued_count() == 1


def test_a_decision_whose_note_failed_is_noted_the_next_time() -> None:
    """Else the miss would have no name."""
    store = FailingStore()
    bench, _ = flying(1, store=store, most=Decimal(0))
    bench.clock.advance(timedelta(minutes=56))
    store.failures = {"note_decision": [StoreBusyError("locked")]}
    with pytest.raises(StoreBusyError):
        bench.escalate()
    bench.escalate()

    assert bench.store.open_batches()[0].reason is Reason.BUDGET


def test_another_process_goes_on_with_what_goes_live() -> None:
    """Also with what one before it had begun to call."""
    bench = Bench()
    requests = bench.accept(6, SHORT)
    bench.escalate()
    bench.calls.keeps = True
    bench.send(1)
    begun = len(bench.calls.kept)
    bench.lease = bench.hand_over()
    bench.restart()
    bench.live_turn()

    assert bench.kinds(requests) == [SUCCEEDED] * 6
    assert bench.tally().resent == begun


def test_troubles_of_the_live_api_are_ridden_out_by_the_margin() -> None:
    """Refusals and lost answers for some minutes."""
    bench, requests = flying(10)
    bench.live.next.extend([limited(seconds=20), lost(), limited(), None, limited(status=529), lost()])
    bench.until(requests[0].deadline_at, step=SECOND)

    assert on_time(bench, requests)
    assert bench.tally().resent == 2
    assert sum(bench.live.charged.values()) == 12


def test_what_nobody_looked_at_in_time_is_called_so() -> None:
    """Not uninsurable: no process worked when it should have gone live."""
    bench = Bench()
    requests = bench.accept(2, HOUR)
    bench.flush()
    bench.clock.advance(3 * HOUR)
    for _ in range(5):
        bench.live_turn(SECOND)

    assert {one.reason for one in bench.outcomes(requests).values()} == {Reason.TOO_LATE}
    assert bench.store.tally()["daily"].missed == {MissCause.UNATTENDED: 2}


def test_after_a_hold_what_goes_live_already_tries_first() -> None:
    """A batch that may still answer is not given up before a call has shown that the hold is over."""
    bench = Bench()
    bench.accept(2, HOUR)
    bench.flush()
    bench.clock.advance(timedelta(minutes=49, seconds=30))
    probe = bench.accept(1, SHORT)
    bench.live.next.append(unauthorized())
    bench.live_turn()
    bench.live_turn(31 * SECOND)
    assert bench.sender.lane_hold(LANE.lane_id) is Hold.CREDENTIAL
    assert bench.api.cancels == []

    for _ in range(10):
        bench.live_turn(SECOND)
    assert bench.kinds(probe) == [OutcomeKind.SUCCEEDED]
    assert bench.sender.lane_hold(LANE.lane_id) is None
    assert len(bench.api.cancels) == 1
