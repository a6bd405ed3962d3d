"""Live calls of the router's own: begun once each, written down whatever happens, and counted."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from llmrouter.domain.batches import BatchState
from llmrouter.domain.blocks import Hold, Reason
from llmrouter.domain.requests import OutcomeKind, Route
from llmrouter.errors import LeaseLostError, StoreBusyError
from support.engine import Bench, make_escalation
from support.live_api import (
    PRICE,
    FakeLiveApi,
    LostBeforeError,
    failed,
    limited,
    lost,
    not_connected,
    spent,
    unauthorized,
)
from support.requests import DAILY, LANE, OTHER_LANE, queued
from support.stores import FailingStore
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmrouter.domain.requests import QueuedRequest
    from support.engine import Escalation

SHORT = timedelta(minutes=10)
"""A window with which a request goes live at once."""
SUCCEEDED, ERRORED, CANCELED = OutcomeKind.SUCCEEDED, OutcomeKind.ERRORED, OutcomeKind.CANCELED
WAIT = timedelta(seconds=70)
"""After so long every failed call may be made again."""
LOCKED = StoreBusyError("locked")


def going(count: int = 1, bench: Bench | None = None, **options: Any) -> tuple[Bench, list[QueuedRequest]]:
    """Requests that were told to go live, and are not yet called."""
    bench = bench or Bench(**options)
    requests = bench.accept(count, SHORT)
    bench.escalate()
    return bench, requests


def ids(requests: list[QueuedRequest]) -> list[str]:
    """Their ids."""
    return [one.request_id for one in requests]


def test_each_request_is_called_once_and_its_batch_closed() -> None:
    """The outcome says which way it came, and what it cost is counted."""
    bench, requests = going(10)
    bench.send()

    assert bench.kinds(requests) == [SUCCEEDED] * 10
    assert sorted(bench.live.began) == sorted(ids(requests))
    assert {one.route for one in bench.outcomes(requests).values()} == {Route.ESCALATED}
    assert bench.store.open_batches() == []
    assert sum(bench.tally().live_usd.values()) == 10 * PRICE
    assert (bench.tally().wasted, bench.tally().resent) == (0, 0)


def test_what_the_api_refuses_for_good_ends_so() -> None:
    """The API's own error is the outcome."""
    bench, requests = going()
    bench.live.next.append(ERRORED)
    bench.send()

    assert bench.kinds(requests) == [ERRORED]
    assert len(bench.live.began) == 1


def test_no_more_calls_are_under_way_than_allowed() -> None:
    """The others wait for their turn."""
    bench, requests = going(20, concurrency=4)
    bench.calls.keeps = True
    bench.clock.advance(timedelta(minutes=10))
    for _ in range(5):
        bench.send(3)
        assert len(bench.calls.kept) <= 4
        bench.calls.let_go()
        bench.clock.advance(timedelta(minutes=1))
    bench.calls.keeps = False
    bench.send(40)

    assert bench.kinds(requests) == [SUCCEEDED] * 20


def test_the_most_urgent_is_called_first() -> None:
    """Whatever came first."""
    bench = Bench(concurrency=1)
    later = bench.accept(2, timedelta(minutes=14))
    bench.escalate()
    sooner = bench.accept(2, timedelta(minutes=5), latency="daily")
    bench.escalate()
    bench.send()

    assert bench.live.began == ids(sooner) + ids(later)


# Calls without an answer


def test_a_call_whose_answer_got_lost_is_made_again_and_counted() -> None:
    """Nobody can ask for that answer."""
    bench, requests = going()
    bench.live.next.append(lost())
    bench.send()
    assert len(bench.live.began) == 1, "at once, with an API that is not well"
    bench.clock.advance(WAIT)
    bench.send()

    assert bench.kinds(requests) == [SUCCEEDED]
    assert bench.live.charged[requests[0].request_id] == 2
    assert (bench.tally().resent, bench.tally().wasted) == (1, 0)


def test_answers_that_get_lost_again_and_again_end_it() -> None:
    """After `max_attempts` calls it is not paid for any more."""
    bench, requests = going(max_attempts=3)
    bench.live.next.extend([lost(), LostBeforeError(), lost(), None])
    for _ in range(6):
        bench.send()
        bench.clock.advance(WAIT)

    assert bench.kinds(requests) == [ERRORED]
    assert len(bench.live.began) == 3
    assert b"timeout_error" in bench.outcomes(requests)[requests[0].request_id].raw


def test_an_unforeseen_failure_may_have_been_paid_for() -> None:
    """It is not repeated for ever: each of its calls may have been done."""
    bench, requests = going(max_attempts=3)
    bench.live.down = KeyError("usage")
    for _ in range(20):
        bench.send()
        bench.clock.advance(WAIT)

    assert bench.kinds(requests) == [ERRORED]
    assert len(bench.live.began) == 3


def test_a_failure_while_the_api_answers_others_is_the_requests_own() -> None:
    """After `max_attempts` of them."""
    bench, (bad, *others) = going(12, max_attempts=3, concurrency=2)
    bench.live.of[bad.request_id].extend([failed()] * 10)
    for _ in range(12):
        bench.send(2)
        bench.clock.advance(WAIT)
        others += bench.accept(1, SHORT)
        bench.escalate()

    assert bench.kinds([bad]) == [ERRORED]
    assert bench.live.began.count(bad.request_id) <= 4
    assert bench.tally().resent == 0


def test_while_the_api_answers_nobody_everything_waits() -> None:
    """However often: when it is back, all are answered."""
    bench, requests = going(3)
    bench.live.down = failed(503)
    for _ in range(30):
        bench.send()
        bench.clock.advance(WAIT)
    assert bench.kinds(requests) == [None] * 3
    bench.live.down = None
    bench.send()

    assert bench.kinds(requests) == [SUCCEEDED] * 3
    assert bench.tally().resent == 0


def test_a_connection_that_cannot_be_made_is_no_fault_of_the_request() -> None:
    """Nothing was sent, and others that got through say nothing about it."""
    bench, (unlucky, *others) = going(12, max_attempts=3, concurrency=2)
    bench.live.of[unlucky.request_id].extend([not_connected()] * 6)
    for _ in range(12):
        bench.send(2)
        bench.clock.advance(WAIT)
        others += bench.accept(1, SHORT)
        bench.escalate()

    assert bench.kinds([unlucky]) == [SUCCEEDED]


@pytest.mark.parametrize("refusal", [limited(seconds=30), limited(), limited(status=529)])
def test_too_many_calls_wait_and_are_not_counted(refusal: Exception) -> None:
    """The API has not done them."""
    bench, requests = going(3)
    bench.live.next.append(refusal)
    bench.send()
    bench.clock.advance(WAIT)
    bench.send()

    assert bench.kinds(requests) == [SUCCEEDED] * 3
    assert len(bench.live.began) == 4
    assert bench.tally().resent == 0


@pytest.mark.parametrize("concurrency", [1, 32])
def test_one_that_is_always_limited_does_not_keep_the_others_from_their_turn(concurrency: int) -> None:
    """As a prompt that is larger than the limit of a minute, whether one may begin at a time or more."""
    bench = Bench(concurrency=concurrency)
    (huge,) = bench.accept(1, SHORT / 2)
    bench.escalate()
    others = bench.accept(3, SHORT)
    bench.escalate()
    bench.live.of[huge.request_id].extend([limited(seconds=1)] * 1000)
    for _ in range(15):
        bench.send(2)
        bench.clock.advance(timedelta(seconds=1))

    assert bench.kinds(others) == [SUCCEEDED] * 3


# What holds calls back


def test_a_spend_limit_stops_all_calls_until_its_end() -> None:
    """As the API names it; then one after the other goes on."""
    bench, requests = going(5)
    bench.live.down = spent(bench.clock.now() + timedelta(hours=2))
    bench.send()
    tried = len(bench.live.began)
    assert bench.sender.hold() == (Hold.SPEND_CAP, bench.clock.now() + timedelta(hours=2))
    bench.clock.advance(timedelta(hours=1))
    bench.send()
    assert len(bench.live.began) == tried
    bench.live.down = None
    bench.clock.advance(timedelta(hours=1))
    bench.send()

    assert bench.kinds(requests) == [SUCCEEDED] * 5
    assert bench.tally().resent == 0


@pytest.mark.parametrize("hours", [-48, 48])
@pytest.mark.parametrize("trouble", [spent(), unauthorized()])
def test_a_clock_that_is_set_makes_no_hold_longer(hours: int, trouble: Exception) -> None:
    """Two days for an hour, or for five minutes."""
    bench, requests = going()
    bench.live.next.append(trouble)
    bench.send()
    bench.clock.set(bench.clock.now() + timedelta(hours=hours))
    bench.clock.advance(timedelta(hours=1))
    bench.send()

    assert bench.kinds(requests) == [SUCCEEDED]


def test_a_key_that_is_not_accepted_holds_its_lane_only() -> None:
    """For some minutes; those of other lanes go on."""
    bench = Bench()
    mine, other = bench.accept(1, SHORT, lane=LANE), bench.accept(1, SHORT, lane=OTHER_LANE)
    bench.live.of[mine[0].request_id].append(unauthorized())
    bench.escalate()
    bench.send()
    assert bench.kinds([*mine, *other]) == [None, SUCCEEDED]
    assert bench.sender.lane_hold(LANE.lane_id) is Hold.CREDENTIAL
    bench.clock.advance(timedelta(minutes=5))
    bench.send()

    assert bench.kinds(mine) == [SUCCEEDED]


def test_a_budget_that_is_used_up_begins_no_call() -> None:
    """Those that are under way may take it over."""
    bench, requests = going(20, most=2 * PRICE)
    bench.send(1)
    began = len(bench.live.began)
    bench.send()

    assert len(bench.live.began) == began < 20
    assert sum(bench.tally().live_usd.values()) == began * PRICE
    bench.clock.advance(timedelta(days=1))
    bench.send(1)
    assert len(bench.live.began) > began
    assert len(requests) == 20


def test_what_is_given_up_while_calls_are_held_ends() -> None:
    """A spend limit may last for weeks."""
    bench, requests = going(2)
    bench.live.down = spent(bench.clock.now() + timedelta(days=20))
    bench.send()
    bench.store.cancel(ids(requests), bench.clock.now(), in_batches=True)
    bench.live_turn(timedelta(seconds=2))

    assert bench.kinds(requests) == [CANCELED] * 2
    assert bench.store.open_batches() == []


def test_what_is_given_up_is_not_called() -> None:
    """It ends as canceled; the others go on."""
    bench, (unwanted, wanted) = going(2)
    bench.store.cancel([unwanted.request_id], bench.clock.now(), in_batches=True)
    bench.send()

    assert bench.kinds([unwanted, wanted]) == [CANCELED, SUCCEEDED]
    assert bench.live.began == [wanted.request_id]


# The store and the lease


def test_an_answer_is_kept_until_the_store_has_it() -> None:
    """However often that is tried."""
    store = FailingStore()
    bench, requests = going(3, store=store)
    store.failures = {"answer": [LOCKED] * 3}
    for _ in range(3):
        with pytest.raises(StoreBusyError):
            bench.send(2)
    bench.send()

    assert bench.kinds(requests) == [SUCCEEDED] * 3
    assert sorted(bench.live.charged.values()) == [1, 1, 1]
    assert bench.tally().resent == 0


@pytest.mark.parametrize(
    "call", ["begin_calls", "check_lease", "answer", "end_calls", "unsettled", "find_batch", "finish"]
)
@pytest.mark.parametrize("times", [1, 3])
def test_a_store_that_is_busy_costs_nothing(call: str, times: int) -> None:
    """At any call of the sender's: nothing is lost, paid twice, or counted as if it were."""
    store = FailingStore()
    bench, requests = going(6, store=store, concurrency=2)
    bench.live.next.extend([limited(seconds=1), None, limited()])
    store.failures = {call: [LOCKED] * times}
    for _ in range(60):
        with contextlib.suppress(StoreBusyError):
            bench.send(1)
        bench.clock.advance(timedelta(seconds=10))
    if call == "unsettled":
        bench.escalate()

    assert not store.failures[call], "it was never asked"
    assert bench.kinds(requests) == [SUCCEEDED] * 6
    assert set(bench.live.charged.values()) == {1}
    assert (bench.tally().resent, bench.tally().wasted) == (0, 0)
    assert bench.store.open_batches() == []


def test_an_answer_is_written_though_the_lease_is_lost() -> None:
    """It is a fact, and was paid for; no other call begins."""
    bench, requests = going(8, concurrency=2)
    bench.calls.keeps = True
    bench.send(1)
    under_way = len(bench.calls.kept)
    bench.calls.keeps = False
    bench.sender.run_once()
    checked = list(bench.calls.kept)
    assert under_way == 1
    # Its call passed the look at the lease before that was lost.
    check, bench.store.check_lease = bench.store.check_lease, lambda _: None  # type: ignore[method-assign]
    bench.hand_over()
    bench.calls.let_go()
    bench.store.check_lease = check  # type: ignore[method-assign]
    for _ in range(3):
        try:
            bench.send(1)
        except LeaseLostError:
            continue

    assert len(checked) == len(bench.live.began) == 1
    assert bench.kinds(requests).count(SUCCEEDED) == 1


def test_a_call_that_has_not_begun_is_not_made_when_the_lease_is_lost() -> None:
    """Another process makes it; what came before is written in the same run."""
    bench, requests = going(4, concurrency=2)
    bench.clock.advance(timedelta(minutes=5))
    bench.calls.keeps = True
    bench.send(1)
    bench.clock.advance(timedelta(minutes=4))
    bench.send(1)
    assert len(bench.calls.kept) == 2
    bench.calls.let_go(1)
    bench.hand_over()
    bench.calls.let_go()
    with pytest.raises(LeaseLostError):
        bench.sender.run_once()

    assert len(bench.live.began) == 1
    assert bench.kinds(requests).count(SUCCEEDED) == 1


def test_whoever_takes_over_calls_again_and_counts_it() -> None:
    """The call of the other process may have been paid for."""
    bench, requests = going()
    bench.calls.keeps = True
    bench.send(1)
    bench.lease = bench.hand_over()
    bench.restart()
    bench.live_turn()

    assert bench.kinds(requests) == [SUCCEEDED]
    assert bench.tally().resent == 1


def test_a_lease_that_comes_back_goes_on_with_what_was_not_begun() -> None:
    """A slow call of before does not keep the others waiting, and is not made again."""
    bench, requests = going(3, concurrency=2)
    bench.calls.keeps = True
    bench.send(1)
    assert len(bench.calls.kept) == 1
    slow = bench.calls.kept[0]
    other = bench.hand_over()
    bench.clock.advance(timedelta(minutes=3))
    with pytest.raises(LeaseLostError):
        bench.send(1)
    bench.store.release_lease(other)
    again = bench.store.acquire_lease("tests", bench.clock.now(), timedelta(hours=1))
    assert again is not None
    bench.lease = again
    bench.calls.kept.clear()
    bench.calls.keeps = False
    bench.clock.advance(timedelta(seconds=30))
    bench.live_turn()
    assert bench.kinds(requests).count(SUCCEEDED) == 2
    assert len(bench.live.began) == 2

    fn, args, options = slow
    fn(*args, **options)
    for _ in range(3):
        try:
            bench.live_turn(WAIT)
        except LeaseLostError:
            continue
    assert bench.kinds(requests) == [SUCCEEDED] * 3
    assert len(bench.live.began) == 3


def test_a_call_counts_as_under_way_before_its_intent_is_written() -> None:
    """Else what goes back to the queue could be in a call."""
    store = FailingStore()
    bench, _ = going(store=store)
    seen: list[int] = []
    begin = store.begin_calls

    def begin_calls(*args: Any) -> Any:
        seen.append(bench.sender.under_way())
        return begin(*args)

    store.begin_calls = begin_calls  # type: ignore[method-assign]
    bench.send(1)

    assert seen == [1]


def test_what_its_batch_answers_first_is_not_called() -> None:
    """Its batch was canceled too late, or still runs."""
    bench, requests = raced(2)
    bench.api.end()
    bench.collect()
    bench.send()

    assert bench.kinds(requests) == [SUCCEEDED] * 2
    assert bench.live.began == []
    assert bench.store.open_batches() == []


def test_what_its_batch_answered_is_let_go_of_while_calls_are_held() -> None:
    """Nobody has to wait for the end of the hold."""
    bench, _ = raced(2)
    bench.live.down = spent(bench.clock.now() + timedelta(days=20))
    bench.send()
    bench.api.end()
    bench.collect()
    bench.clock.advance(timedelta(seconds=2))
    bench.send()

    assert bench.store.open_batches() == []


def raced(count: int, **options: Any) -> tuple[Bench, list[QueuedRequest]]:
    """Requests in a batch that goes on, and about to be called."""
    bench = Bench(**options)
    requests = bench.accept(count, timedelta(hours=1))
    bench.flush()
    bench.clock.advance(timedelta(minutes=55, seconds=1))
    bench.escalate()
    assert bench.states() == [BatchState.IN_FLIGHT, BatchState.ESCALATING]
    assert bench.store.open_batches()[1].reason in (Reason.LATEST_START, Reason.CANCEL_NOT_FINAL)
    return bench, requests


def test_the_first_answer_wins_and_the_second_is_counted_once() -> None:
    """The live one came first; the batch's were paid in vain."""
    bench, requests = raced(3)
    bench.send()
    bench.api.end()
    for _ in range(3):
        bench.collect()

    assert {one.route for one in bench.outcomes(requests).values()} == {Route.ESCALATED}
    assert bench.tally().wasted == 3
    assert bench.tally().resent == 0
    assert bench.store.open_batches() == []


def test_the_batch_answers_while_a_call_is_under_way() -> None:
    """Its answer is the outcome, and the call's is counted as wasted."""
    bench, requests = raced(1)
    bench.calls.keeps = True
    bench.send()
    bench.api.end()
    bench.collect()
    bench.calls.let_go()
    bench.send()

    assert bench.outcomes(requests)[requests[0].request_id].route is Route.BATCH
    assert bench.tally().wasted == 1
    assert bench.tally().live_usd[bench.clock.now().date()] == PRICE
    assert bench.store.open_batches() == []


# With threads of its own


@pytest.fixture
def threaded() -> Iterator[tuple[Bench, Escalation]]:
    """A sender that makes its calls in threads."""
    bench = Bench(store=FailingStore())
    parts = make_escalation(bench.store, bench.live, bench.clock, executor=None, classes={"daily": DAILY})
    yield bench, parts
    bench.live.let_go()
    parts.sender.stop()


def test_threads_make_the_calls_and_write_the_answers(threaded: tuple[Bench, Escalation]) -> None:
    """Nobody has to ask for it."""
    bench, parts = threaded
    requests = bench.accept(10, SHORT)
    parts.escalator.run_once(bench.lease)

    wait_until(lambda: bench.kinds(requests) == [SUCCEEDED] * 10, what="the answers")
    wait_until(lambda: bench.store.open_batches() == [], what="the batch to be closed")
    assert set(bench.live.charged.values()) == {1}


def test_stop_waits_for_calls_that_are_under_way(threaded: tuple[Bench, Escalation]) -> None:
    """They were paid for; what has not begun is left for the next process."""
    bench, parts = threaded
    bench.live.slow = True
    requests = bench.accept(40, SHORT)
    parts.escalator.run_once(bench.lease)
    wait_until(lambda: bench.live.began, what="a call")
    parts.sender.stop_soon()
    stopping = threading.Thread(target=parts.sender.stop)
    stopping.start()
    assert bench.kinds(requests).count(SUCCEEDED) == 0
    began = list(bench.live.began)
    bench.live.let_go()
    stopping.join(30)

    assert not stopping.is_alive()
    assert set(began) <= set(bench.live.began)
    assert bench.kinds(requests).count(SUCCEEDED) == len(bench.live.began) < 40


def test_stop_waits_out_a_store_that_is_busy(threaded: tuple[Bench, Escalation]) -> None:
    """However long the last call takes, and whatever the store said meanwhile."""
    bench, parts = threaded
    store = bench.store
    assert isinstance(store, FailingStore)
    bench.live.slow = True
    requests = bench.accept(1, SHORT)
    parts.escalator.run_once(bench.lease)
    wait_until(lambda: bench.live.began, what="a call")
    parts.sender.stop_soon()
    bench.clock.advance(timedelta(minutes=9))
    store.failures = {"answer": [LOCKED]}
    bench.live.let_go()
    wait_until(lambda: not store.failures["answer"], what="the store to be asked")
    parts.sender.stop()

    assert bench.kinds(requests) == [SUCCEEDED]


def test_stop_ends_though_the_store_is_gone_for_good(threaded: tuple[Bench, Escalation]) -> None:
    """After half a minute of it."""
    bench, parts = threaded
    store = bench.store
    assert isinstance(store, FailingStore)
    bench.accept(1, SHORT)
    store.failures = {"answer": [LOCKED] * 1000}
    parts.escalator.run_once(bench.lease)
    wait_until(lambda: parts.sender.problem, what="the problem")
    stopping = threading.Thread(target=parts.sender.stop)
    stopping.start()
    while stopping.is_alive():
        bench.clock.advance(timedelta(seconds=10))
        stopping.join(0.1)
    store.failures.clear()


def test_a_call_that_breaks_off_wholly_does_not_keep_stop_waiting(
    threaded: tuple[Bench, Escalation], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a thread dies of."""
    bench, parts = threaded

    def call(self: FakeLiveApi, *_: object) -> None:
        raise SystemExit

    monkeypatch.setattr(FakeLiveApi, "call", call)
    bench.accept(1, SHORT)
    parts.escalator.run_once(bench.lease)
    stopping = threading.Thread(target=parts.sender.stop, daemon=True)
    wait_until(lambda: parts.faults, what="it to begin")
    stopping.start()
    stopping.join(20)

    assert not stopping.is_alive()


def test_a_lost_lease_ends_no_thread(threaded: tuple[Bench, Escalation]) -> None:
    """Whoever gets it back goes on."""
    bench, parts = threaded
    bench.live.slow = True
    requests = bench.accept(40, SHORT)
    parts.escalator.run_once(bench.lease)
    wait_until(lambda: bench.live.began, what="a call")
    other = bench.hand_over()
    bench.live.let_go()
    wait_until(lambda: parts.sender.under_way() == 0, what="the calls to end")
    bench.store.release_lease(other)
    again = bench.store.acquire_lease("tests", bench.clock.now(), timedelta(hours=1))
    assert again is not None

    def all_answered() -> bool:
        bench.clock.advance(timedelta(seconds=5))
        parts.escalator.run_once(again)
        return bench.kinds(requests) == [SUCCEEDED] * 40

    wait_until(all_answered, what="the answers")


def test_a_sender_whose_thread_cannot_begin_can_be_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter ends."""
    bench = Bench()
    parts = make_escalation(bench.store, bench.live, bench.clock, executor=None, classes={"daily": DAILY})
    bench.accept(1, SHORT)

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        with pytest.raises(RuntimeError):
            parts.escalator.run_once(bench.lease)
    parts.sender.stop()


def test_a_call_that_cannot_be_made_any_more_is_no_fault_of_the_request() -> None:
    """This process is stopping; the next one makes it."""
    executor = ThreadPoolExecutor(1)
    executor.shutdown()
    bench = Bench(max_attempts=1)
    parts = make_escalation(
        bench.store, bench.live, bench.clock, executor=executor, classes={"daily": DAILY}, max_attempts=1
    )
    (request,) = bench.accept(1, SHORT)
    parts.escalator.run_once(bench.lease)
    other = queued()
    parts.faults.judge(LANE, request.request_id, failed())
    parts.faults.forgive(other.request_id)
    for _ in range(3):
        bench.clock.advance(WAIT)
        parts.sender.run_once()
    parts.sender.run_once()

    assert bench.kinds([request]) == [None]
    bench.live_turn()
    assert bench.tally().resent == 0
    assert bench.tally().live_usd == {bench.clock.now().date(): Decimal("0.5")}
