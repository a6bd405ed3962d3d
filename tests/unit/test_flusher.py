"""Backlogs into batches: each created once, the refused ones narrowed down or held."""

from __future__ import annotations

import json
import logging
import math
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrouter.domain.batches import BatchState
from llmrouter.domain.requests import OutcomeKind
from llmrouter.domain.scheduling import Flush, FlushReason
from llmrouter.errors import CreateRefusedError, CreateUnclearError, LeaseLostError, StoreBusyError
from support.engine import Bench
from support.requests import FOREIGN_LANE, LANE, OTHER_LANE, body_of
from support.stores import FailingStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.batch_api import Posted

Items = list[dict[str, Any]]


def refuse(status: int | None, **details: Any) -> Callable[[Items], None]:
    """An API that refuses every batch."""

    def before_create(_: Items) -> None:
        raise CreateRefusedError(f"HTTP {status}", status=status, **details)

    return before_create


def refuse_where(bad: set[str]) -> Callable[[Items], None]:
    """An API that refuses a batch for certain requests in it, by our ids."""

    def before_create(items: Items) -> None:
        if any(item["custom_id"].rpartition("-")[0] in bad for item in items):
            raise CreateRefusedError("HTTP 400 bad request", status=400, blames_content=True)

    return before_create


def lose_answer(_: Posted) -> None:
    """The batch exists, and the answer does not come."""
    raise CreateUnclearError("the connection was dropped")


def allow(_: Any) -> None:
    """Nothing goes wrong."""


def states(bench: Bench) -> list[BatchState]:
    """Of the open batches."""
    return [batch.state for batch in bench.store.open_batches()]


def test_a_backlog_becomes_one_batch() -> None:
    """Posted as the stored bytes, under ids that lead back, and recorded with what the API said."""
    bench = Bench()
    requests = bench.enqueue(3)
    bodies: Items = []
    bench.api.before_create = bodies.extend

    assert bench.flush() == 1
    (posted,), (batch,) = bench.api.posted, bench.store.open_batches()
    assert posted.request_ids == [request.request_id for request in requests]
    assert [item["params"] for item in bodies] == [json.loads(request.body) for request in requests]
    assert (batch.state, batch.provider_batch_id) == (BatchState.IN_FLIGHT, posted.provider_batch_id)
    assert (batch.created_at, batch.expires_at) == (
        posted.created_at,
        posted.created_at + timedelta(hours=24),
    )
    assert bench.queued_count() == 0


def test_what_was_sent_is_not_sent_again() -> None:
    """However often it is flushed."""
    bench = Bench()
    bench.enqueue(3)

    assert [bench.flush() for _ in range(3)] == [1, 0, 0]
    assert len(bench.api.posted) == 1


def test_each_batch_has_a_nonce_of_its_own() -> None:
    """The same request in another batch has another custom_id."""
    bench = Bench(max_requests=1)
    bench.enqueue(20)
    bench.flush()
    names = [name.rpartition("-")[2] for posted in bench.api.posted for name in posted.custom_ids]

    assert len(set(names)) == 20


def test_a_large_backlog_becomes_full_batches_and_a_rest() -> None:
    """Earliest deadline first."""
    bench = Bench(max_requests=4)
    late = bench.enqueue(6, window=timedelta(hours=20))
    soon = bench.enqueue(4, window=timedelta(hours=2))

    assert bench.flush() == 3
    assert bench.api.sizes == [4, 4, 2]
    assert bench.api.posted[0].request_ids == [request.request_id for request in soon]
    assert {*bench.api.posted[1].request_ids, *bench.api.posted[2].request_ids} == {
        request.request_id for request in late
    }


def test_a_full_backlog_sends_only_full_batches() -> None:
    """What is left over waits for company, as it would have without the rest."""
    bench = Bench(max_requests=4)
    bench.enqueue(10)

    assert bench.flush(FlushReason.FULL) == 2
    assert bench.api.sizes == [4, 4]
    assert bench.queued_count() == 2


@pytest.mark.parametrize("reason", [FlushReason.SCHEDULED, FlushReason.DEADLINE, FlushReason.ASKED])
def test_every_other_reason_sends_all(reason: FlushReason) -> None:
    """The rest too."""
    bench = Bench(max_requests=4)
    bench.enqueue(10)

    assert bench.flush(reason) == 3
    assert bench.queued_count() == 0


def test_lanes_and_classes_travel_apart() -> None:
    """A batch has one credential, one set of headers, and one class."""
    bench = Bench()
    bench.enqueue(2)
    bench.enqueue(3, lane=OTHER_LANE)
    bench.enqueue(4, latency="nightly")

    assert bench.flush() == 3
    assert {(posted.lane.lane_id, len(posted.custom_ids)) for posted in bench.api.posted} == {
        (LANE.lane_id, 2),
        (OTHER_LANE.lane_id, 3),
        (LANE.lane_id, 4),
    }


def test_only_what_is_to_leave_is_sent() -> None:
    """The other lanes stay."""
    bench = Bench()
    bench.enqueue(2)
    bench.enqueue(3, lane=OTHER_LANE)
    flush = Flush(waiting=bench.waiting(OTHER_LANE), reason=FlushReason.SCHEDULED)

    assert bench.flusher.run_once(bench.lease, [flush]) == 1
    assert bench.queued_count() == 2


def test_a_lane_of_another_credential_waits() -> None:
    """And goes once a process that holds it works."""
    bench = Bench()
    bench.enqueue(2, lane=FOREIGN_LANE)

    assert bench.flush() == 0
    assert (bench.api.sizes, bench.queued_count()) == ([], 2)
    bench.api.credentials.add("credential-c")
    assert bench.flush() == 1


def test_an_unclear_create_is_in_doubt_and_never_made_again() -> None:
    """It may have been created: its requests are neither sent again nor given up."""
    bench = Bench()
    bench.enqueue(3)
    bench.api.after_create = lose_answer
    bench.flush()
    bench.api.after_create = allow

    assert states(bench) == [BatchState.IN_DOUBT]
    for _ in range(3):
        bench.clock.advance(timedelta(hours=1))
        assert bench.flush() == 0
    assert len(bench.api.posted) == 1
    assert bench.queued_count() == 0


def test_an_error_that_nobody_expected_leaves_a_doubt_too() -> None:
    """The create may have been under way."""
    bench = Bench()
    bench.enqueue(1)

    def break_down(_: Posted) -> None:
        raise RuntimeError("a bug")

    bench.api.after_create = break_down
    with pytest.raises(RuntimeError, match="a bug"):
        bench.flush()

    assert states(bench) == [BatchState.IN_DOUBT]
    assert bench.flush() == 0


@pytest.mark.parametrize("unclear", [False, True])
def test_a_create_that_the_store_cannot_record_is_recorded_later(unclear: bool) -> None:
    """The answer of the API is kept until the store can take it; it is not posted again."""
    store = FailingStore()
    bench = Bench(store=store)
    bench.enqueue(3)
    if unclear:
        bench.api.after_create = lose_answer
    store.failures = {"update_batch": [StoreBusyError("locked")]}
    with pytest.raises(StoreBusyError):
        bench.flush()
    assert states(bench) == [BatchState.CLAIMED]
    bench.flush()

    assert states(bench) == [BatchState.IN_DOUBT if unclear else BatchState.IN_FLIGHT]
    assert len(bench.api.posted) == 1


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 429, None])
def test_a_refusal_that_is_not_about_the_content_holds_the_lane(status: int | None) -> None:
    """The next batch would fare no better. Nothing was created, nothing is lost."""
    bench = Bench(max_requests=2)
    bench.enqueue(6)
    bench.api.before_create = refuse(status)

    assert bench.flush() == 0
    assert bench.api.sizes == [2]
    hold = bench.flusher.holds[LANE.lane_id]
    assert (hold.until - bench.clock.now(), hold.reason) == (timedelta(seconds=15), f"HTTP {status}")
    assert bench.queued_count() == 6
    assert states(bench) == []
    bench.flush()
    assert bench.api.sizes == [2]


def test_a_held_lane_goes_again_when_its_time_is_over() -> None:
    """And is not held any more once a batch of it was created."""
    bench = Bench()
    bench.enqueue(3)
    bench.api.before_create = refuse(429)
    bench.flush()
    bench.api.before_create = allow
    bench.clock.advance(timedelta(seconds=14.9))
    assert bench.flush() == 0
    bench.clock.advance(timedelta(seconds=0.1))

    assert bench.flush() == 1
    assert bench.flusher.holds == {}


def test_a_hold_holds_no_other_lane() -> None:
    """Another set of headers may be allowed."""
    bench = Bench()
    bench.enqueue(1)
    bench.enqueue(1, lane=OTHER_LANE)

    def refuse_lane(items: Items) -> None:
        if not bench.flusher.holds:
            raise CreateRefusedError("HTTP 403", status=403)

    bench.api.before_create = refuse_lane

    assert bench.flush() == 1
    assert bench.queued_count() == 1


def test_a_lane_is_held_longer_with_each_refusal() -> None:
    """Doubling from 15 seconds to 15 minutes; a batch that goes well begins anew."""
    bench = Bench()
    bench.enqueue(1)
    bench.api.before_create = refuse(429)
    waits = []
    for _ in range(9):
        bench.flush()
        hold = bench.flusher.holds[LANE.lane_id]
        waits.append((hold.until - bench.clock.now()).total_seconds())
        bench.clock.advance(hold.until - bench.clock.now())
    bench.api.before_create = allow
    bench.flush()
    bench.enqueue(1)
    bench.api.before_create = refuse(429)
    bench.flush()

    assert waits == [15, 30, 60, 120, 240, 480, 900, 900, 900]
    assert bench.flusher.holds[LANE.lane_id].until - bench.clock.now() == timedelta(seconds=15)


def test_the_api_may_say_how_long_to_wait() -> None:
    """`retry-after` is kept to."""
    bench = Bench()
    bench.enqueue(1)
    bench.api.before_create = refuse(429, retry_after=timedelta(seconds=77))
    bench.flush()

    assert bench.flusher.holds[LANE.lane_id].until - bench.clock.now() == timedelta(seconds=77)


@pytest.mark.parametrize("place", [0, 1, 333, 500, 998, 999])
def test_one_bad_request_is_narrowed_down_and_its_neighbours_go_out(place: int) -> None:
    """In halves, so that the number of creates grows with the logarithm."""
    bench = Bench(max_requests=1000)
    requests = bench.enqueue(1000)
    bad = requests[place].request_id
    bench.api.before_create = refuse_where({bad})

    for _ in range(3):
        bench.flush()

    sent = [one for posted in bench.api.posted for one in posted.request_ids]
    assert sorted(sent) == sorted(request.request_id for request in requests if request.request_id != bad)
    outcomes = bench.outcomes(requests)
    assert set(outcomes) == {bad}
    assert outcomes[bad].kind is OutcomeKind.ERRORED
    assert bench.queued_count() == 0
    assert bench.flusher.holds == {}
    assert len(bench.api.sizes) <= 4 * math.log2(1000)


def test_a_limit_that_looks_like_bad_content_fails_one_request_at_most() -> None:
    """Refused alone twice in a row it may be the account: a spend limit is a 400 like any other."""
    bench = Bench()
    requests = bench.enqueue(20)
    bench.api.before_create = refuse(400, blames_content=True)
    bench.flush()

    assert len(bench.outcomes(requests)) == 1
    assert bench.queued_count() == 19
    assert LANE.lane_id in bench.flusher.holds
    bench.api.before_create = allow
    bench.clock.advance(timedelta(seconds=15))
    for _ in range(3):
        bench.flush()
    assert bench.queued_count() == 0


def test_a_bad_request_does_not_wait_for_the_next_slot() -> None:
    """Nor do its neighbours: one flush narrows it down."""
    bench = Bench()
    requests = bench.enqueue(64)
    bench.api.before_create = refuse_where({requests[20].request_id})
    bench.flush()

    assert bench.queued_count() == 0


def test_a_lane_that_was_held_before_narrows_down_as_well() -> None:
    """A hold whose time is over is over."""
    bench = Bench()
    requests = bench.enqueue(64)
    bench.api.before_create = refuse(429)
    bench.flush()
    bench.clock.advance(timedelta(minutes=1))
    bench.api.before_create = refuse_where({requests[20].request_id})
    bench.flush()

    assert bench.queued_count() == 0


@given(st.sets(st.integers(0, 39), max_size=6), st.integers(1, 60))
@settings(max_examples=60, deadline=None)
def test_any_number_of_bad_requests_fail_alone(places: set[int], max_requests: int) -> None:
    """Each with the API's error; all others are sent exactly once."""
    logging.disable()
    try:
        bench = Bench(max_requests=max_requests)
        requests = bench.enqueue(40)
        bad = {requests[place].request_id for place in places}
        bench.api.before_create = refuse_where(bad)
        for _ in range(len(places) + 1):
            bench.flush()
            bench.clock.advance(timedelta(minutes=15))
    finally:
        logging.disable(logging.NOTSET)

    sent = [one for posted in bench.api.posted for one in posted.request_ids]
    assert sorted(sent) == sorted({request.request_id for request in requests} - bad)
    assert set(bench.outcomes(requests)) == bad
    assert bench.queued_count() == 0


def test_after_narrowing_down_batches_grow_to_their_size_again() -> None:
    """One bad request must not make small batches for ever."""
    bench = Bench(max_requests=64)
    requests = bench.enqueue(64)
    bench.api.before_create = refuse_where({requests[0].request_id})
    bench.flush()
    bench.enqueue(640)
    bench.flush()
    before = len(bench.api.sizes)
    bench.enqueue(64)
    bench.flush()

    assert bench.api.sizes[before:] == [64]


def test_a_refused_request_fails_with_what_the_api_said() -> None:
    """Its outcome holds the API's own error, in the form of a result line."""
    bench = Bench()
    (request,) = bench.enqueue(1)
    envelope = {"type": "error", "error": {"type": "request_too_large", "message": "too large"}}
    bench.api.before_create = refuse(413, envelope=envelope, blames_content=True)
    bench.flush()
    (outcome,) = bench.outcomes([request]).values()

    assert json.loads(outcome.raw)["result"] == {"type": "errored", "error": envelope}
    assert (outcome.attempts, outcome.batch_id is not None) == (1, True)


def test_a_refused_request_without_an_envelope_still_fails_with_the_reason() -> None:
    """As an invalid request."""
    bench = Bench()
    (request,) = bench.enqueue(1)
    bench.api.before_create = refuse(400, blames_content=True)
    bench.flush()
    (outcome,) = bench.outcomes([request]).values()
    error = json.loads(outcome.raw)["result"]["error"]["error"]

    assert error == {"type": "invalid_request_error", "message": "HTTP 400"}


def test_a_refused_batch_costs_its_requests_no_attempt() -> None:
    """The API never had them."""
    bench = Bench()
    bench.enqueue(2)
    bench.api.before_create = refuse(429)
    bench.flush()
    bench.clock.advance(timedelta(minutes=1))
    bench.api.before_create = allow
    bench.flush()

    assert dict(bench.store.open_batches()[0].attempts) == {}


def test_a_lost_lease_ends_the_flush_and_posts_nothing() -> None:
    """Another process works on the store now."""
    bench = Bench()
    bench.enqueue(2)
    bench.lose_lease()

    with pytest.raises(LeaseLostError):
        bench.flush()
    assert bench.api.sizes == []


def test_a_lease_lost_during_a_create_is_left_to_the_other_process() -> None:
    """It finds the intent, and does not send it again."""
    bench = Bench()
    bench.enqueue(2)
    bench.api.after_create = lambda _: bench.lose_lease() and None
    with pytest.raises(LeaseLostError):
        bench.flush()

    assert states(bench) == [BatchState.CLAIMED]
    assert bench.queued_count() == 0


def test_a_request_too_large_for_the_limit_still_leaves() -> None:
    """Alone; the API says what it thinks of it."""
    bench = Bench()
    bench.limits["daily"] = type(bench.limits["daily"])(max_bytes=10)
    bench.enqueue(2, text="x" * 100)

    assert len(body_of("x" * 100)) > 100
    assert bench.flush() == 2
    assert bench.api.sizes == [1, 1]
