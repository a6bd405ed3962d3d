"""What a store promises to owners who want no more: many cancels at once, giving up, and being told."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from conformance.scene import (
    MOMENT,
    START,
    Scene,
    again,
    answered,
    cancel_queued,
    drain_log,
    framed,
    outcome_of,
    posted_ids,
)
from llmrouter.domain.batches import Batch, BatchState, Canceled
from llmrouter.domain.requests import Outcome, OutcomeKind, RequestState

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmrouter.ports import Store

    Look = Work = Callable[[], Store]

LATER = START + timedelta(minutes=7, microseconds=3)


def give_up(store: Store, *request_ids: str) -> Canceled:
    """Cancels, in batches too."""
    return store.cancel(request_ids, LATER, in_batches=True)


class MassCancelContract:
    """`cancel` of many requests at once."""

    def test_each_is_counted_by_its_state(self, scene: Scene, look: Look) -> None:
        """Unknown ids are left out; an id that is named twice counts once."""
        done, claimed, *queued = scene.enqueue(
            *(scene.request(due=timedelta(hours=hour)) for hour in range(1, 6))
        )
        batch = scene.claimed(max_requests=2)
        scene.settle(batch, [answered(done)])
        asked = [*queued, queued[0], done, claimed, scene.new_id(), "req_zzzzzzzzzzzzzzzzzzzz000", "no", ""]
        assert look().cancel(asked, LATER, in_batches=False) == Canceled(canceled=3, asked=0, settled=1)
        assert look().cancel(asked, LATER, in_batches=False) == Canceled(canceled=0, asked=0, settled=4)
        assert scene.inside(batch) == {claimed}
        assert scene.store.waiting() == []

    def test_nothing_is_canceled_for_nothing(self, scene: Scene) -> None:
        """An empty call is allowed, and changes nothing."""
        scene.enqueue_alike(2)
        before = scene.snapshot()
        assert scene.store.cancel([], LATER, in_batches=True) == Canceled(canceled=0, asked=0, settled=0)
        assert scene.snapshot() == before

    def test_many_are_canceled_at_once(self, scene: Scene, look: Look) -> None:
        """Across pages, with and without keys; each has its own outcome, and the log has each once."""
        keyed = [scene.request(key=f"k{place}", size=60 + place % 3) for place in range(40)]
        request_ids = scene.enqueue(*keyed, *(scene.request(size=70) for _ in range(2400)))
        left = set(request_ids[::7])
        canceled = set(request_ids) - left
        assert scene.store.cancel(canceled, LATER, in_batches=False).canceled == len(canceled)
        store = look()
        log = drain_log(store, scene.log_start)
        assert {outcome.request_id for outcome in log} == canceled
        assert len(log) == len(canceled)
        assert {outcome.request_id: outcome for outcome in store.outcomes(request_ids)} == {
            outcome.request_id: outcome for outcome in log
        }
        keys = {request.request_id: request.key for request in keyed}
        assert all(outcome.key == keys.get(outcome.request_id) for outcome in log)
        assert [line.request_count for line in store.waiting()] == [len(left)]
        assert scene.inside(scene.claimed()) == left

    def test_a_cancel_between_two_claims_is_seen(self, scene: Scene) -> None:
        """Of another process, while the engine keeps its index: runs are cut, and their bodies stay exact."""
        requests = [scene.request(size=60 + place) for place in range(30)]
        scene.enqueue(*requests)
        bodies = {request.request_id: request.body for request in requests}
        left = [request.request_id for request in requests]
        for _ in range(3):
            batch = scene.claimed(max_requests=2)
            posted = scene.posted(batch)
            order = posted_ids(posted, batch.nonce)
            assert posted == framed(batch.nonce, [(one, bodies[one]) for one in order])
            left = [one for one in left if one not in order]
            gone = left[1::3]
            assert cancel_queued(scene.rival, *gone) == len(gone)
            left = [one for one in left if one not in gone]
            (line,) = scene.store.waiting()
            assert (line.request_count, line.body_bytes) == (len(left), sum(len(bodies[one]) for one in left))
        assert scene.inside(scene.claimed()) == set(left)
        assert scene.claim() is None

    def test_bodies_of_canceled_requests_are_swept(self, scene: Scene, work: Work) -> None:
        """Whoever canceled them, while the engine keeps its index."""
        request_ids = scene.enqueue_alike(6)
        assert [line.request_count for line in scene.store.waiting()] == [6]
        scene.store.sweep(scene.lease, 100)
        assert cancel_queued(scene.rival, *request_ids[:2]) == 2
        assert work().sweep(scene.lease, 100) in {0, 2}
        cancel_queued(scene.rival, *request_ids[2:])
        assert scene.store.sweep(scene.lease, 100) in {4, 6}


class GiveUpContract:
    """`cancel` of what is in a batch."""

    def test_a_given_up_request_stays_in_its_batch(self, scene: Scene, look: Look) -> None:
        """It is only marked; only the batch whose requests are all given up is wanted canceled."""
        one, two, other = scene.enqueue(*(scene.request(due=timedelta(hours=hour)) for hour in (1, 2, 3)))
        batch, second = scene.claimed(max_requests=2), scene.claimed()
        assert give_up(scene.store, one, other) == Canceled(canceled=0, asked=2, settled=0)
        assert look().open_batches() == [batch, replace(second, cancel_wanted=True)]
        assert scene.inside(batch) == {one, two}
        view = look().find(one)
        assert view is not None
        assert (view.state, view.batch_id, view.given_up) == (RequestState.CLAIMED, batch.batch_id, True)
        neighbour = look().find(two)
        assert neighbour is not None
        assert not neighbour.given_up
        assert outcome_of(look(), one) is None
        assert give_up(scene.rival, one, two) == Canceled(canceled=0, asked=2, settled=0)
        wanted = [replace(batch, cancel_wanted=True), replace(second, cancel_wanted=True)]
        assert look().open_batches() == wanted
        assert look().find_batch(batch.batch_id) == wanted[0]

    def test_those_that_have_left_do_not_count(self, scene: Scene) -> None:
        """A batch in which only given up ones are left is wanted canceled."""
        done, retried, left = scene.enqueue_alike(3)
        batch = scene.claimed()
        scene.settle(batch, [answered(done), again(retried)])
        give_up(scene.store, left)
        assert [batch.cancel_wanted for batch in scene.store.open_batches()] == [True]

    def test_an_answer_stays_the_outcome(self, scene: Scene, look: Look) -> None:
        """What the API has answered is paid: it is delivered."""
        (request_id,) = scene.enqueue_alike(1)
        batch = scene.claimed()
        give_up(scene.store, request_id)
        assert scene.settle(batch, [answered(request_id, raw=b"paid")]) == (1, 0, 0, 0)
        outcome = outcome_of(look(), request_id)
        assert outcome is not None
        assert (outcome.kind, outcome.raw) == (OutcomeKind.SUCCEEDED, b"paid")

    def test_a_retry_ends_it(self, scene: Scene, work: Work) -> None:
        """It is not queued again: it is settled as canceled, once, by the batch that gave no answer."""
        request = scene.request(key="k")
        other = scene.request()
        scene.enqueue(request, other)
        batch = scene.claimed()
        give_up(scene.rival, request.request_id)
        work()
        answers = [again(request.request_id), again(other.request_id)]
        assert scene.settle(batch, answers, LATER + MOMENT) == (1, 1, 0, 0)
        assert scene.settle(batch, answers, LATER + MOMENT) == (0, 0, 2, 0)
        expected = Outcome(
            request_id=request.request_id,
            kind=OutcomeKind.CANCELED,
            latency="daily",
            accepted_at=request.accepted_at,
            deadline_at=request.deadline_at,
            settled_at=LATER + MOMENT,
            attempts=1,
            batch_id=batch.batch_id,
            key="k",
            raw=b"",
        )
        assert drain_log(scene.store, scene.log_start) == [expected]
        assert outcome_of(scene.store, request.request_id) == expected
        scene.store.finish(scene.lease, batch)
        assert scene.inside(scene.claimed()) == {other.request_id}

    def test_a_release_ends_it(self, scene: Scene, work: Work) -> None:
        """The API never had it: no batch answered, and no attempt is counted. All are counted."""
        ids = scene.enqueue_alike(4)
        batch = scene.claimed()
        give_up(scene.rival, ids[0], ids[2])
        work()
        assert scene.store.release(scene.lease, batch.batch_id) == 4
        assert scene.store.release(scene.lease, batch.batch_id) == 0
        outcomes = {outcome.request_id: outcome for outcome in drain_log(scene.store, scene.log_start)}
        assert set(outcomes) == {ids[0], ids[2]}
        for outcome in outcomes.values():
            assert (outcome.kind, outcome.batch_id, outcome.attempts) == (OutcomeKind.CANCELED, None, 0)
            assert outcome.settled_at == LATER
        assert scene.inside(scene.claimed()) == {ids[1], ids[3]}

    def test_giving_up_ends_with_the_batch(self, scene: Scene) -> None:
        """A mark is of a request in its batch: what was queued again before is not given up."""
        (request_id,) = scene.enqueue_alike(1)
        scene.settle(scene.claimed(), [again(request_id)])
        assert give_up(scene.store, request_id) == Canceled(canceled=1, asked=0, settled=0)
        (request_id,) = scene.enqueue_alike(1)
        batch = scene.claimed()
        assert cancel_queued(scene.store, request_id) == 0
        scene.store.release(scene.lease, batch.batch_id)
        assert scene.inside(scene.claimed()) == {request_id}

    def test_the_engine_does_not_take_the_wish_back(self, scene: Scene, work: Work) -> None:
        """It writes what it knows of a batch; that its requests were given up is the store's to say."""
        scene.enqueue_alike(2)
        batch = scene.claimed()
        give_up(scene.rival, *scene.inside(batch))
        store = work()
        store.update_batch(scene.lease, replace(batch, state=BatchState.IN_DOUBT, in_doubt_at=START))
        wanted = replace(batch, state=BatchState.IN_DOUBT, in_doubt_at=START, cancel_wanted=True)
        assert store.open_batches() == [wanted]
        asked = replace(batch, state=BatchState.IN_FLIGHT, provider_batch_id="p", cancel_asked_at=LATER)
        assert store.record_created(asked)
        store.update_batch(scene.lease, asked)
        assert store.open_batches() == [replace(asked, cancel_wanted=True)]
        other = replace(asked, cancel_wanted=True)
        scene.enqueue_alike(1)
        second = scene.claimed()
        store.update_batch(scene.lease, replace(second, state=BatchState.IN_DOUBT, cancel_wanted=True))
        assert store.open_batches() == [other, replace(second, state=BatchState.IN_DOUBT)]


class DeliverContract:
    """`deliver`: only `prune` can tell, see there; nothing else changes."""

    def test_a_delivered_request_is_found_as_before(self, scene: Scene, look: Look) -> None:
        """By id, by key, in the log; told again, swept."""
        ids = scene.settled(*(scene.request(key=f"k{place}") for place in range(3)))
        (canceled, queued) = scene.enqueue_alike(2)
        cancel_queued(scene.store, canceled)
        before = scene.snapshot()
        for _ in range(2):
            look().deliver([*ids[:2], canceled, queued, scene.new_id(), "no", ""])
            assert scene.snapshot(look()) == before
        assert look().find_key("k0") == ids[0]
        assert give_up(look(), *ids, canceled) == Canceled(canceled=0, asked=0, settled=4)
        assert scene.store.sweep(scene.lease, 10) in {3, 4}
        assert scene.snapshot(look()) == before

    def test_what_is_not_settled_is_not_delivered(self, scene: Scene) -> None:
        """A request that is noted too early is not pruned when it has its outcome."""
        (request_id,) = scene.enqueue_alike(1)
        scene.store.deliver([request_id])
        batch = scene.claimed()
        scene.store.deliver([request_id])
        scene.settle(batch, [answered(request_id)])
        assert scene.store.prune(scene.lease, START + MOMENT, 10, undelivered=False) == 0
        assert scene.store.find(request_id) is not None

    def test_delivering_nothing_is_allowed(self, scene: Scene) -> None:
        """No ids, no change."""
        scene.store.deliver([])


class FindKeysContract:
    """`find_keys`."""

    @pytest.mark.parametrize(
        ("pattern", "places"),
        [("*", [0, 1, 2, 3, 4]), ("job-?", [0, 1, 2]), ("job-[12]", [1, 2]), ("JOB-*", []), ("no", [])],
    )
    def test_keys_match_a_shell_pattern(
        self, scene: Scene, look: Look, pattern: str, places: list[int]
    ) -> None:
        """Whole keys, case included."""
        keys = ["job-0", "job-1", "job-2", "job-33", "é*"]
        ids = scene.enqueue(*(scene.request(key=key, size=70) for key in keys), scene.request())
        assert sorted(look().find_keys(pattern)) == sorted(ids[place] for place in places)

    def test_only_unsettled_ones_are_found(self, scene: Scene, look: Look) -> None:
        """Queued and claimed ones; not those that ended, swept or not."""
        requests = [scene.request(key=f"k{hour}", due=timedelta(hours=hour)) for hour in range(1, 7)]
        ids = scene.enqueue(*requests)
        scene.settle_all(scene.claimed(max_requests=2))
        scene.store.sweep(scene.lease, 1)
        scene.claimed(max_requests=1)
        cancel_queued(scene.store, ids[5])
        assert sorted(look().find_keys("k*")) == ids[2:5]


class PauseContract:
    """`pause`, `resume` and `paused`."""

    def test_nothing_is_paused_at_first(self, scene: Scene) -> None:
        """And there is nothing to resume."""
        assert dict(scene.store.paused()) == {}
        assert scene.store.resume("daily") is False

    def test_a_pause_is_seen_by_all(self, scene: Scene, look: Look) -> None:
        """With its first instant, until somebody takes it back."""
        scene.store.pause("daily", START)
        scene.rival.pause("daily", LATER)
        scene.rival.pause("a-class-of-mine", LATER)
        assert dict(look().paused()) == {"daily": START, "a-class-of-mine": LATER}
        assert look().resume("daily") is True
        assert look().resume("daily") is False
        assert dict(look().paused()) == {"a-class-of-mine": LATER}

    def test_a_store_does_not_obey_by_itself(self, scene: Scene) -> None:
        """What is paused is still taken in and may be claimed: the engine decides."""
        scene.store.pause("daily", START)
        scene.enqueue_alike(1)
        assert isinstance(scene.claim(), Batch)


__all__ = ["DeliverContract", "FindKeysContract", "GiveUpContract", "MassCancelContract", "PauseContract"]
