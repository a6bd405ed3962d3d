"""Backlogs into batches: each created once, the refused ones narrowed down or held."""

from __future__ import annotations

import contextlib
import json
import threading
from datetime import timedelta

import pytest

from llmrouter.domain.batches import BatchState
from llmrouter.domain.scheduling import Flush, FlushReason
from llmrouter.errors import CreateRefusedError, LeaseLostError, StoreBusyError
from support.engine import GRACE, LEASE, Bench, Items, allow, lose_answer, refuse
from support.requests import FOREIGN_LANE, LANE, OTHER_LANE, body_of
from support.stores import FailingStore


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

    assert bench.flusher.run_once(bench.lease, flush) == 1
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

    assert bench.states() == [BatchState.IN_DOUBT]
    for _ in range(3):
        bench.clock.advance(timedelta(hours=1))
        assert bench.flush() == 0
    assert len(bench.api.posted) == 1
    assert bench.queued_count() == 0


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 429, None])
def test_a_refusal_that_is_not_about_the_content_holds_the_lane(status: int | None) -> None:
    """The next batch would fare no better. Nothing was created, nothing is lost."""
    bench = Bench(max_requests=2)
    bench.enqueue(6)
    bench.api.before_create = refuse(status)

    assert bench.flush() == 0
    assert bench.api.sizes == [2]
    hold, brief = (
        bench.flusher.holds.all()[LANE.lane_id],
        CreateRefusedError("HTTP None", status=status).brief,
    )
    assert (hold.until - bench.clock.now(), hold.reason) == (timedelta(seconds=15), brief)
    assert bench.queued_count() == 6
    assert bench.states() == []
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
    assert bench.flusher.holds.all() == {}


def test_a_hold_holds_no_other_lane() -> None:
    """Another set of headers may be allowed."""
    bench = Bench()
    bench.enqueue(1)
    bench.enqueue(1, lane=OTHER_LANE)

    def refuse_lane(items: Items) -> None:
        if not bench.flusher.holds.all():
            raise CreateRefusedError("HTTP 403", status=403)

    bench.api.before_create = refuse_lane

    assert bench.flush() == 1
    assert bench.queued_count() == 1


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


def test_a_request_too_large_for_the_limit_still_leaves() -> None:
    """Alone; the API says what it thinks of it."""
    bench = Bench()
    bench.limits["daily"] = type(bench.limits["daily"])(max_bytes=10)
    bench.enqueue(2, text="x" * 100)

    assert len(body_of("x" * 100)) > 100
    assert bench.flush() == 2
    assert bench.api.sizes == [1, 1]


def test_a_paused_class_is_not_flushed() -> None:
    """Asked or not, whoever paused it; the others go, and it goes when it is resumed."""
    bench = Bench()
    bench.enqueue(2)
    bench.enqueue(3, latency="nightly")
    bench.store.pause("daily", bench.clock.now())

    assert bench.flush(FlushReason.ASKED) == 1
    assert bench.api.sizes == [3]
    bench.store.resume("daily")
    assert bench.flush() == 1
    assert bench.api.sizes == [3, 2]


def test_a_class_that_is_paused_on_its_way_stops_after_the_batch() -> None:
    """A long backlog does not have to leave as a whole."""
    bench = Bench(max_requests=2)
    bench.enqueue(6)
    bench.api.after_create = lambda _: bench.store.pause("daily", bench.clock.now())

    assert bench.flush() == 1
    assert bench.queued_count() == 4


def test_a_flusher_that_is_stopping_begins_no_batch() -> None:
    """What is under way is finished; the rest waits for the next process."""
    bench = Bench(max_requests=2)
    bench.enqueue(6)
    bench.api.after_create = lambda _: bench.flusher.stopping.set()

    assert bench.flush() == 1
    assert bench.queued_count() == 4
    assert bench.flush() == 0
    assert bench.states() == [BatchState.IN_FLIGHT]


def test_an_outage_puts_one_batch_in_doubt_not_all() -> None:
    """The lane waits after an unclear create; an asked flush does not end that."""
    bench = Bench(max_requests=1)
    bench.enqueue(5)
    bench.api.before_create = lose_answer

    assert bench.flush() == 1
    assert bench.flush(FlushReason.ASKED) == 0
    assert bench.states() == [BatchState.IN_DOUBT]
    assert bench.queued_count() == 4


def test_classes_of_one_lane_leave_side_by_side() -> None:
    """A create that hangs keeps only its own lane and class from leaving."""
    bench = Bench()
    bench.enqueue(2)
    bench.enqueue(1, latency="nightly")
    hanging, answer = threading.Event(), threading.Event()

    def hang(items: Items) -> None:
        if len(items) == 2:
            hanging.set()
            assert answer.wait(30)

    bench.api.before_create = hang
    flushes = [Flush(waiting=one, reason=FlushReason.SCHEDULED) for one in bench.store.waiting()]
    daily, nightly = sorted(flushes, key=lambda flush: flush.waiting.latency)
    leaving = threading.Thread(target=bench.flusher.run_once, args=(bench.lease, daily))
    leaving.start()
    try:
        assert hanging.wait(10)
        assert bench.flusher.run_once(bench.lease, nightly) == 1
    finally:
        answer.set()
        leaving.join(10)
    assert bench.states() == [BatchState.IN_FLIGHT] * 2


def test_one_lane_and_class_leaves_in_one_thread_at_a_time() -> None:
    """The second waits for its turn, and finds nothing left."""
    bench = Bench()
    bench.enqueue(2)
    flush = Flush(waiting=bench.waiting(), reason=FlushReason.SCHEDULED)
    hanging, answer = threading.Event(), threading.Event()
    created: list[int] = []

    def hang(_: Items) -> None:
        hanging.set()
        assert answer.wait(30)

    bench.api.before_create = hang
    threads = [
        threading.Thread(target=lambda: created.append(bench.flusher.run_once(bench.lease, flush)))
        for _ in range(3)
    ]
    threads[0].start()
    assert hanging.wait(10)
    for thread in threads[1:]:
        thread.start()
    answer.set()
    for thread in threads:
        thread.join(10)

    assert sorted(created) == [0, 0, 1]
    assert bench.api.sizes == [2]


@pytest.mark.parametrize("call", ["release", "settle", "finish", "unsettled"])
@pytest.mark.parametrize(
    "details", [{}, {"blames_content": True}, {"blames_content": True, "names_request": True}]
)
def test_a_refusal_that_the_store_cannot_deal_with_now_is_dealt_with_later(
    call: str, details: dict[str, bool]
) -> None:
    """Nothing stays claimed: the next tidying queues what was never sent."""
    store = FailingStore()
    bench = Bench(store=store)
    bench.enqueue(1)
    bench.api.before_create = refuse(400, **details)
    store.failures = {call: [StoreBusyError("locked")]}
    with contextlib.suppress(StoreBusyError):
        bench.flush()
    store.failures = {}
    bench.flusher.creator.tidy(bench.lease)

    assert bench.states() == []
    assert bench.flusher.creator.under_way() == frozenset()


def test_a_lease_lost_during_a_refusal_leaves_nothing_claimed_for_ever() -> None:
    """The same process works again later; what it had claimed is put in doubt like any orphan."""
    bench = Bench()
    bench.enqueue(2)
    taken = []
    bench.api.on_piece = lambda _: taken.append(bench.hand_over()) if not taken else None
    with pytest.raises(LeaseLostError):
        bench.flush()
    assert bench.states() == [BatchState.CLAIMED]
    assert bench.api.sizes == []
    bench.store.release_lease(taken[0])
    bench.lease = bench.store.acquire_lease("tests", bench.clock.now(), LEASE)

    assert bench.flusher.creator.under_way() == frozenset()
    bench.reconcile()
    assert bench.states() == [BatchState.IN_DOUBT]
    bench.reconcile(passes=GRACE)
    assert bench.queued_count() == 2


def test_a_refused_request_that_another_process_dealt_with_is_left_to_it() -> None:
    """It took over during the create, and queued the request again."""
    bench = Bench()
    bench.enqueue(1)

    def overtaken(_: object) -> None:
        later = bench.hand_over()
        (batch,) = bench.store.open_batches()
        bench.store.release(later, batch.batch_id)
        raise CreateRefusedError("no", status=400, blames_content=True)

    bench.api.before_create = overtaken
    with pytest.raises(LeaseLostError):
        bench.flush()
    assert bench.queued_count() == 1
    assert bench.flusher.creator.under_way() == frozenset()
