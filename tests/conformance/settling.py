"""What a store promises of batches: how requests leave them, and what the log of outcomes says."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from conformance.scene import START, Scene, again, answered, cancel_queued, drain_log, outcome_of
from llmrouter.domain.batches import BatchState
from llmrouter.domain.requests import Outcome, OutcomeKind, RequestState
from llmrouter.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmrouter.ports import Store

    Look = Work = Callable[[], Store]


class SettleContract:
    """`settle` and `unsettled`."""

    @pytest.mark.parametrize("kind", list(OutcomeKind))
    def test_an_answer_is_written_as_the_outcome(self, scene: Scene, look: Look, kind: OutcomeKind) -> None:
        """Once settled, every process reads the outcome, and the request is SETTLED."""
        request = scene.request(key="k", due=timedelta(hours=2), latency="hourly")
        scene.enqueue(request)
        batch = scene.claimed(latency="hourly")
        raw = '{"custom_id":"…","result":{"text":"\u2028 \\n"}}'.encode()
        at = START + timedelta(hours=1, microseconds=3)
        assert scene.settle(batch, [answered(request.request_id, kind, raw)], at) == (1, 0, 0, 0)
        store = look()
        assert outcome_of(store, request.request_id) == Outcome(
            request_id=request.request_id,
            kind=kind,
            latency="hourly",
            accepted_at=request.accepted_at,
            deadline_at=request.deadline_at,
            settled_at=at,
            attempts=1,
            batch_id=batch.batch_id,
            key="k",
            raw=raw,
        )
        view = store.find(request.request_id)
        assert view is not None
        assert (view.state, view.attempts, view.batch_id) == (RequestState.SETTLED, 0, None)

    @pytest.mark.parametrize("raw", [b"", b"\n", b"\x00\xff\n\n{", b"[1]" * 100_000])
    def test_the_result_line_is_kept_byte_for_byte(self, scene: Scene, look: Look, raw: bytes) -> None:
        """Whatever is in it, between others."""
        request_ids = scene.enqueue_alike(3)
        scene.settle(scene.claimed(), [answered(request_id, raw=raw) for request_id in request_ids])
        assert [outcome.raw for outcome in look().outcomes(request_ids)] == [raw] * 3

    def test_a_retry_queues_again(self, scene: Scene, look: Look) -> None:
        """One attempt later, without an outcome; when it is answered, all its batches count."""
        (request_id,) = scene.enqueue_alike(1)
        assert scene.settle(scene.claimed(), [again(request_id)]) == (0, 1, 0, 0)
        view = look().find(request_id)
        assert view is not None
        assert (view.state, view.attempts, view.batch_id) == (RequestState.QUEUED, 1, None)
        assert outcome_of(look(), request_id) is None
        scene.settle(scene.claimed(), [again(request_id, OutcomeKind.ERRORED)])
        batch = scene.claimed()
        scene.settle(batch, [answered(request_id)])
        outcome = outcome_of(look(), request_id)
        assert outcome is not None
        assert (outcome.attempts, outcome.batch_id) == (3, batch.batch_id)

    def test_settling_again_changes_nothing(self, scene: Scene, work: Work) -> None:
        """The same answers read a second time are counted as repeated."""
        done, retried = scene.enqueue_alike(2)
        batch = scene.claimed()
        answers = [answered(done), again(retried)]
        assert scene.settle(batch, answers) == (1, 1, 0, 0)
        work()
        before = scene.snapshot()
        assert scene.settle(batch, answers, START + timedelta(hours=1)) == (0, 0, 2, 0)
        assert scene.settle(batch, [again(done), answered(retried)]) == (0, 0, 2, 0)
        assert scene.snapshot() == before

    def test_the_first_of_two_answers_counts(self, scene: Scene) -> None:
        """Also when both stand in one call."""
        one, two = scene.enqueue_alike(2)
        answers = [answered(one, raw=b"1"), again(two), answered(one, raw=b"2"), answered(two), again(one)]
        assert scene.settle(scene.claimed(), answers) == (1, 1, 3, 0)
        outcome = outcome_of(scene.store, one)
        assert outcome is not None
        assert outcome.raw == b"1"
        assert outcome_of(scene.store, two) is None

    def test_answers_for_others_are_unknown(self, scene: Scene) -> None:
        """An answer for a request that was never in the batch changes nothing and is counted."""
        (mine,) = scene.enqueue_alike(1)
        batch = scene.claimed()
        (elsewhere,) = scene.enqueue_alike(1)
        scene.claimed()
        (queued,) = scene.enqueue_alike(1)
        strangers = [
            elsewhere,
            queued,
            scene.new_id(),
            "req_zzzzzzzzzzzzzzzzzzzz000",
            "",
            "no-request",
            "req_",
        ]
        before = scene.snapshot()
        assert scene.settle(batch, [answered(request_id) for request_id in strangers]) == (0, 0, 0, 7)
        assert scene.settle(batch, [again(request_id) for request_id in strangers]) == (0, 0, 0, 7)
        assert scene.snapshot() == before
        assert scene.settle(batch, [answered(queued), answered(mine), answered(mine)]) == (1, 0, 1, 1)

    def test_no_answers_change_nothing(self, scene: Scene) -> None:
        """An empty call is allowed."""
        scene.enqueue_alike(1)
        assert scene.settle(scene.claimed(), []) == (0, 0, 0, 0)

    def test_a_batch_is_settled_in_parts(self, scene: Scene, work: Work) -> None:
        """`unsettled` lists what is still in it, each once."""
        request_ids = scene.enqueue_alike(9)
        batch = scene.claimed()
        for place in (4, 0, 8, 5):
            work()
            scene.settle(batch, [answered(request_ids[place])])
        left = [request_ids[place] for place in (1, 2, 3, 6, 7)]
        assert sorted(scene.rival.unsettled(batch.batch_id)) == left
        assert sorted(work().unsettled(batch.batch_id)) == left
        scene.settle(batch, [again(request_id) for request_id in left])
        assert list(scene.rival.unsettled(batch.batch_id)) == []
        scene.store.finish(scene.lease, batch)
        assert scene.inside(scene.claimed()) == set(left)

    def test_thousands_of_answers_in_one_call(self, scene: Scene, look: Look) -> None:
        """Answers come in any order, across pages."""
        request_ids = scene.enqueue_alike(2300)
        batch = scene.claimed()
        answers = [
            (again if place % 3 == 0 else answered)(request_id)
            for place, request_id in reversed(list(enumerate(request_ids)))
        ]
        assert scene.settle(batch, answers) == (1533, 767, 0, 0)
        scene.store.finish(scene.lease, batch)
        store = look()
        assert [line.request_count for line in store.waiting()] == [767]
        written = sorted(outcome.request_id for outcome in store.outcomes(request_ids))
        assert written == sorted(answer.request_id for answer in answers if not answer.retry)
        assert scene.claimed().attempts == dict.fromkeys(request_ids[::3], 1)

    def test_a_requeued_request_is_answered_by_its_new_batch_only(self, scene: Scene) -> None:
        """A late answer of the batch that it has left does not settle it."""
        (request_id,) = scene.enqueue_alike(1)
        first = scene.claimed()
        scene.settle(first, [again(request_id)])
        second = scene.claimed()
        assert scene.settle(first, [answered(request_id, raw=b"late")]) == (0, 0, 1, 0)
        assert scene.inside(second) == {request_id}
        assert scene.settle(second, [answered(request_id, raw=b"new")]) == (1, 0, 0, 0)
        assert [outcome.raw for outcome in drain_log(scene.store, scene.log_start)] == [b"new"]


class OutcomesContract:
    """`outcomes`."""

    def test_those_that_have_ended_are_answered(self, scene: Scene, look: Look) -> None:
        """Whatever else is asked for: what waits, what is claimed, what was never there."""
        ids = scene.enqueue(*(scene.request(due=timedelta(hours=hour)) for hour in range(1, 7)))
        batch = scene.claimed(max_requests=4)
        scene.settle(batch, [answered(ids[2]), again(ids[0]), answered(ids[1])])
        cancel_queued(scene.store, ids[4])
        asked = [*ids, scene.new_id(), "req_zzzzzzzzzzzzzzzzzzzz000", "no-request", ""]
        outcomes = list(look().outcomes(asked))
        assert {outcome.request_id for outcome in outcomes} == {ids[1], ids[2], ids[4]}
        assert len(outcomes) == 3

    def test_only_those_that_were_asked_for(self, scene: Scene, look: Look) -> None:
        """Not the others that were settled with them; nothing for nothing."""
        request_ids = scene.settled(*(scene.request() for _ in range(6)))
        assert {outcome.request_id for outcome in look().outcomes(set(request_ids[1:3]))} == set(
            request_ids[1:3]
        )
        assert list(look().outcomes([])) == []

    def test_thousands_are_found(self, scene: Scene, look: Look) -> None:
        """Settled in many calls, asked for in one."""
        request_ids = scene.enqueue_alike(1500)
        batch = scene.claimed()
        for place in range(60):
            scene.settle(batch, [answered(request_id) for request_id in request_ids[place::60]])
        found = [outcome.request_id for outcome in look().outcomes(frozenset(request_ids))]
        assert sorted(found) == sorted(request_ids)


class BatchContract:
    """`update_batch`, `release` and `finish`."""

    def test_an_update_is_recorded(self, scene: Scene, look: Look) -> None:
        """State, the API's id and the API's instants; the rest of the batch stays."""
        scene.enqueue_alike(4)
        batch, other = scene.claimed(max_requests=2), scene.claimed(max_requests=2)
        in_doubt = replace(batch, state=BatchState.IN_DOUBT)
        scene.store.update_batch(scene.lease, in_doubt)
        assert look().open_batches() == [in_doubt, other]
        in_flight = replace(
            batch,
            state=BatchState.IN_FLIGHT,
            provider_batch_id="msgbatch_1",
            created_at=START + timedelta(seconds=1),
            expires_at=START + timedelta(days=1, seconds=1),
            ended_at=START + timedelta(hours=1, microseconds=9),
        )
        scene.store.update_batch(scene.lease, in_flight)
        scene.store.update_batch(scene.lease, in_flight)
        assert look().open_batches() == [in_flight, other]
        assert len(scene.inside(batch)) == 2

    def test_a_release_queues_what_is_left(self, scene: Scene, look: Look) -> None:
        """What has left the batch stays where it is; attempts do not grow."""
        done, retried, one, two = scene.enqueue_alike(4)
        batch = scene.claimed()
        scene.settle(batch, [answered(done), again(retried)])
        assert scene.store.release(scene.lease, batch.batch_id) == 2
        store = look()
        views = {request_id: store.find(request_id) for request_id in (done, retried, one, two)}
        assert {
            request_id: (view.state, view.attempts, view.batch_id)
            for request_id, view in views.items()
            if view
        } == {
            done: (RequestState.SETTLED, 0, None),
            retried: (RequestState.QUEUED, 1, None),
            one: (RequestState.QUEUED, 0, None),
            two: (RequestState.QUEUED, 0, None),
        }
        assert store.open_batches() == []
        assert list(store.unsettled(batch.batch_id)) == []

    def test_a_release_is_the_same_twice(self, scene: Scene) -> None:
        """The second one changes nothing, also when the requests are in another batch by then."""
        request_ids = scene.enqueue_alike(3)
        first = scene.claimed()
        assert scene.store.release(scene.lease, first.batch_id) == 3
        before = scene.snapshot()
        assert scene.store.release(scene.lease, first.batch_id) == 0
        assert scene.snapshot() == before
        second = scene.claimed()
        assert scene.store.release(scene.lease, first.batch_id) == 0
        assert scene.inside(second) == set(request_ids)

    @pytest.mark.parametrize("way_out", ["finish", "release"])
    def test_a_closed_batch_stays_closed(self, scene: Scene, work: Work, way_out: str) -> None:
        """It takes no answers, no news and no end, wherever its requests are now."""
        queued, claimed, done = scene.enqueue(
            *(scene.request(due=timedelta(hours=hours)) for hours in (2, 1, 3))
        )
        batch = scene.claimed()
        scene.settle(batch, [answered(done)])
        if way_out == "finish":
            scene.settle(batch, [again(queued), again(claimed)])
            scene.store.finish(scene.lease, batch)
        else:
            scene.store.release(scene.lease, batch.batch_id)
        scene.claimed(max_requests=1)
        store = work()
        before = scene.snapshot()
        with pytest.raises(StoreError):
            store.settle(scene.lease, batch.batch_id, [answered(queued), again(claimed)], START)
        with pytest.raises(StoreError):
            store.update_batch(scene.lease, replace(batch, state=BatchState.IN_FLIGHT))
        with pytest.raises(StoreError):
            store.finish(scene.lease, batch)
        assert store.release(scene.lease, batch.batch_id) == 0
        assert list(store.unsettled(batch.batch_id)) == []
        assert scene.snapshot() == before

    @pytest.mark.parametrize("state", [BatchState.ENDED, BatchState.RELEASED])
    def test_an_update_does_not_close(self, scene: Scene, state: BatchState) -> None:
        """`release` and `finish` are the ways out."""
        scene.enqueue_alike(1)
        batch = scene.claimed()
        with pytest.raises(StoreError):
            scene.store.update_batch(scene.lease, replace(batch, state=state))
        assert scene.store.open_batches() == [batch]

    def test_a_batch_with_requests_in_it_is_not_finished(self, scene: Scene, look: Look) -> None:
        """`finish` refuses, and changes nothing, until every request has left."""
        done, left = scene.enqueue_alike(2)
        batch = scene.claimed()
        scene.settle(batch, [answered(done)])
        before = scene.snapshot()
        with pytest.raises(StoreError):
            scene.store.finish(scene.lease, batch)
        assert scene.snapshot(look()) == before
        scene.settle(batch, [again(left)])
        scene.store.finish(scene.lease, replace(batch, ended_at=START))
        assert look().open_batches() == []


class LogContract:
    """`outcomes_since` and `outcome_cursor`."""

    def test_a_new_log_is_empty(self, scene: Scene) -> None:
        """Nothing new is an empty chunk and the same cursor, as often as one asks."""
        scene.enqueue_alike(2)
        cursor = scene.store.outcome_cursor()
        assert scene.store.outcomes_since(cursor) == ([], cursor)
        assert scene.store.outcomes_since(cursor) == ([], cursor)
        assert cursor == scene.log_start

    def test_every_outcome_is_in_the_log_once(self, scene: Scene, look: Look) -> None:
        """In the order of settling, cancels among them, as `outcome` has it; no retries, no repetitions."""
        ids = scene.enqueue(*(scene.request(due=timedelta(hours=hour)) for hour in range(1, 8)))
        batch = scene.claimed(max_requests=6)
        scene.settle(batch, [answered(ids[3]), again(ids[0]), answered(ids[1])])
        cancel_queued(scene.store, ids[6])
        scene.settle(batch, [answered(ids[2]), answered(ids[3]), answered(ids[5])])
        cancel_queued(scene.store, ids[0])
        store = look()
        log = drain_log(store, scene.log_start)
        assert [outcome.request_id for outcome in log] == [ids[place] for place in (3, 1, 6, 2, 5, 0)]
        assert log == [outcome_of(store, outcome.request_id) for outcome in log]

    def test_a_reader_goes_on_from_its_cursor(self, scene: Scene, look: Look) -> None:
        """It misses none and sees none twice, whatever came between its readings."""
        cursor, read = scene.log_start, []
        expected = []
        for number in (1, 3, 0, 2):
            expected += scene.settled(*(scene.request() for _ in range(number))) if number else []
            chunk, cursor = look().outcomes_since(cursor)
            read += [outcome.request_id for outcome in chunk]
        read += [outcome.request_id for outcome in drain_log(scene.store, cursor)]
        assert sorted(read) == sorted(expected)

    def test_a_late_reader_starts_at_the_end(self, scene: Scene, look: Look) -> None:
        """`outcome_cursor` is after the newest outcome: what came before it is not delivered."""
        scene.settled(scene.request(), scene.request())
        cursor = look().outcome_cursor()
        assert look().outcomes_since(cursor) == ([], cursor)
        (late,) = scene.settled(scene.request())
        assert [outcome.request_id for outcome in drain_log(look(), cursor)] == [late]

    def test_a_cursor_is_good_in_every_process(self, scene: Scene) -> None:
        """Two instances see one log, and may read each other's cursors."""
        other = scene.open()
        assert other.outcome_cursor() == scene.log_start
        first = scene.settled(scene.request(), scene.request())
        chunk, cursor = other.outcomes_since(scene.log_start)
        assert {outcome.request_id for outcome in chunk} == set(first)
        (queued,) = scene.enqueue_alike(1)
        cancel_queued(other, queued)
        assert [outcome.request_id for outcome in drain_log(scene.store, cursor)] == [queued]
        assert other.outcome_cursor() == scene.store.outcome_cursor()

    def test_a_long_log_comes_in_chunks(self, scene: Scene, look: Look) -> None:
        """Thousands of outcomes are read to the end, in their order."""
        request_ids = scene.enqueue_alike(2300)
        batch = scene.claimed()
        for start in range(0, 2300, 575):
            scene.settle(batch, [answered(request_id) for request_id in request_ids[start : start + 575]])
        log = drain_log(look(), scene.log_start)
        assert [outcome.request_id for outcome in log] == request_ids


__all__ = ["BatchContract", "LogContract", "OutcomesContract", "SettleContract"]
