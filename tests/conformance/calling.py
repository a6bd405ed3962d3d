"""What a store promises of ESCALATING batches, and of the calls that are made for what is in them."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from conformance.escalating import LATER, OPEN_AT_THE_API, brought_to, give_up, raced_in_flight
from conformance.recording import answered_create
from conformance.scene import (
    MOMENT,
    START,
    Scene,
    again,
    answered,
    cancel_queued,
    live,
    outcome_of,
)
from llmrouter.domain.batches import BatchState
from llmrouter.domain.blocks import Reason
from llmrouter.domain.requests import OutcomeKind, RequestState
from llmrouter.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmrouter.ports import Store

    Look = Work = Callable[[], Store]

HOUR = timedelta(hours=1)


class EscalatingContract:
    """An ESCALATING batch, as far as it is a batch."""

    @pytest.mark.parametrize("state", OPEN_AT_THE_API)
    def test_it_is_not_updated(self, scene: Scene, state: BatchState) -> None:
        """There is no news of it, and it never becomes one of the API's."""
        scene.enqueue_alike(1)
        batch = scene.going_live()
        before = scene.snapshot()
        with pytest.raises(StoreError):
            scene.store.update_batch(scene.lease, replace(batch, state=state, provider_batch_id="p"))
        with pytest.raises(StoreError):
            scene.store.update_batch(scene.lease, replace(batch, wasted=1))
        assert scene.rival.record_created(answered_create(batch)) is False
        assert scene.snapshot() == before

    @pytest.mark.parametrize("state", OPEN_AT_THE_API)
    def test_no_batch_of_the_apis_becomes_one(self, scene: Scene, look: Look, state: BatchState) -> None:
        """It may exist there: its requests would be paid twice."""
        scene.enqueue_alike(1)
        batch = brought_to(scene, scene.claimed(), state)
        with pytest.raises(StoreError):
            scene.store.update_batch(scene.lease, replace(batch, state=BatchState.ESCALATING))
        assert look().open_batches() == [batch]

    def test_it_is_not_settled(self, scene: Scene) -> None:
        """Its answers come by `answer`, and what has none leaves it by a release."""
        one, two = scene.enqueue_alike(2)
        batch = scene.going_live()
        before = scene.snapshot()
        for answers in ([answered(one), again(two)], []):
            with pytest.raises(StoreError):
                scene.store.settle(scene.lease, batch.batch_id, answers, START)
        assert scene.snapshot() == before

    def test_it_is_finished_when_it_is_empty(self, scene: Scene, look: Look) -> None:
        """Also with a copy from before a decision."""
        one, two = scene.enqueue_alike(2)
        batch = scene.going_live()
        scene.store.note_decision(
            scene.lease, batch.batch_id, reason=Reason.BUDGET, insured=False, recalled_at=None
        )
        scene.store.answer([live(one)], START)
        with pytest.raises(StoreError):
            scene.store.finish(scene.lease, batch)
        assert scene.inside(batch) == {two}
        scene.store.answer([live(two)], START)
        scene.store.finish(scene.lease, batch)
        ended = replace(batch, state=BatchState.ENDED, reason=Reason.BUDGET, insured=False)
        assert look().open_batches() == []
        assert look().find_batch(batch.batch_id) == ended
        assert look().closed_batches(10) == []

    def test_a_release_gives_back_what_it_holds(self, scene: Scene, work: Work) -> None:
        """Attempts do not grow; what was given up ends as canceled; answered ones stay answered."""
        done, dropped, begun, left = scene.enqueue_alike(4)
        batch = scene.going_live()
        scene.begun(batch, begun, dropped)
        scene.store.answer([live(done)], START)
        give_up(scene.rival, dropped)
        work()
        assert scene.store.release(scene.lease, batch.batch_id) == 3
        assert scene.store.release(scene.lease, batch.batch_id) == 0
        assert scene.store.find_batch(batch.batch_id) == replace(batch, state=BatchState.RELEASED)
        for request_id in (begun, left):
            view = scene.store.find(request_id)
            assert view is not None
            assert (view.state, view.attempts, view.batch_id) == (RequestState.QUEUED, 0, None)
        outcome = outcome_of(scene.store, dropped)
        assert outcome is not None
        assert (outcome.kind, outcome.settled_at, outcome.batch_id) == (OutcomeKind.CANCELED, LATER, None)
        assert (outcome.reason, outcome.insured, outcome.attempts) == (None, True, 0)
        assert scene.inside(scene.claimed()) == {begun, left}

    def test_a_release_forgets_the_intents(self, scene: Scene, work: Work) -> None:
        """When they go live again, the call is a first one; so it is when they come from a batch.

        That the earlier ones may have been paid for was counted when they were forgotten.
        """
        (request_id,) = scene.enqueue_alike(1)
        batch = scene.going_live()
        scene.begun(batch, request_id)
        scene.store.release(scene.lease, batch.batch_id)
        work()
        batch = scene.going_live()
        (call,) = scene.store.begin_calls(scene.lease, batch.batch_id, [request_id])
        assert call.again is False
        scene.store.release(scene.lease, batch.batch_id)
        new = scene.raced(scene.claimed())
        (call,) = scene.store.begin_calls(scene.lease, new.batch_id, [request_id])
        assert call.again is False
        assert scene.tally_of().resent == 2

    def test_what_is_in_it_can_be_given_up(self, scene: Scene, look: Look) -> None:
        """It is marked; when all are, the batch says so."""
        one, two = scene.enqueue_alike(2)
        batch = scene.going_live()
        assert cancel_queued(scene.rival, one) == 0
        give_up(scene.rival, one)
        assert look().open_batches() == [batch]
        view = look().find(one)
        assert view is not None
        assert (view.state, view.batch_id, view.given_up) == (RequestState.CLAIMED, batch.batch_id, True)
        scene.begun(batch, two)
        view = look().find(two)
        assert view is not None
        assert not view.given_up
        give_up(scene.store, one, two)
        assert look().open_batches() == [replace(batch, cancel_wanted=True)]

    def test_its_requests_keep_their_keys(self, scene: Scene, look: Look) -> None:
        """They are found, and not taken in again."""
        request = scene.request(key="k1")
        scene.enqueue(request, scene.request(key="k2", due=HOUR))
        scene.going_live(before=START + 2 * HOUR)
        batch = scene.going_live()
        assert look().find_key("k1") == request.request_id
        assert len(list(look().find_keys("k*"))) == 2
        (accepted,) = look().enqueue([scene.request(key="k1", body=request.body)])
        assert (accepted.request_id, accepted.duplicate) == (request.request_id, True)
        assert scene.inside(batch) == {request.request_id}

    def test_a_race_is_there_for_the_next_process(self, scene: Scene, look: Look) -> None:
        """Both batches, where each request is, what came of some, and what was counted."""
        ids, batch, new = raced_in_flight(scene, 5)
        scene.begun(new, *ids[:3])
        scene.begun(new, ids[0])
        scene.store.answer([live(ids[1])], LATER)
        scene.settle(batch, [answered(ids[2]), answered(ids[1])])
        give_up(scene.store, ids[3])
        before = scene.snapshot()
        assert scene.snapshot(look()) == before
        assert before.tally["daily"].resent == 1
        assert before.unsettled == {batch.batch_id: set(), new.batch_id: {ids[0], ids[3], ids[4]}}

    def test_it_is_pruned_with_its_requests(self, scene: Scene, look: Look) -> None:
        """When it has ended, and all of them are gone; an open one stays."""
        one, two = scene.enqueue(scene.request(due=HOUR), scene.request(due=2 * HOUR))
        ended = scene.going_live(before=START + 2 * HOUR)
        opened = scene.going_live()
        scene.store.answer([live(one), live(two)], START)
        scene.store.finish(scene.lease, replace(ended, ended_at=START))
        while scene.store.prune(scene.lease, START + MOMENT, 10, undelivered=True):
            pass
        assert look().find(one) is None
        assert look().find_batch(ended.batch_id) is None
        assert look().open_batches() == [opened]


class BeginCallsContract:
    """`begin_calls` and `end_calls`."""

    def test_calls_have_the_stored_bodies(self, scene: Scene, work: Work) -> None:
        """Byte for byte, in the order asked for, each once; others are left out."""
        requests = [scene.request(size=60 + 9000 * place) for place in range(6)]
        ids = scene.enqueue(*requests)
        batch = scene.going_live()
        (elsewhere,) = scene.enqueue_alike(1)
        scene.store.answer([live(ids[4])], START)
        work()
        asked = [ids[3], "no", ids[0], elsewhere, ids[3], ids[4], scene.new_id(), ids[5], ""]
        calls = scene.store.begin_calls(scene.lease, batch.batch_id, asked)
        assert [(call.request_id, call.body, call.again) for call in calls] == [
            (ids[place], requests[place].body, False) for place in (3, 0, 5)
        ]
        assert scene.inside(batch) == {*ids} - {ids[4]}
        assert scene.store.begin_calls(scene.lease, batch.batch_id, []) == []

    def test_a_body_is_there_after_its_neighbours_were_swept(self, scene: Scene, work: Work) -> None:
        """Of one call some are answered and swept, the others go live, later, and exact."""
        requests = [scene.request(size=60 + place) for place in range(5)]
        ids = scene.enqueue(*requests)
        batch = scene.going_live()
        scene.store.answer([live(ids[0]), live(ids[2])], START)
        work()
        scene.store.sweep(scene.lease, 10)
        calls = scene.store.begin_calls(scene.lease, batch.batch_id, ids)
        assert [(call.request_id, call.body) for call in calls] == [
            (ids[place], requests[place].body) for place in (1, 3, 4)
        ]
        scene.store.answer([live(request_id) for request_id in ids[1:]], START)
        assert work().sweep(scene.lease, 10) in {3, 5}

    def test_a_call_that_is_made_again_is_counted(self, scene: Scene, work: Work) -> None:
        """Whoever noted the first intent; not what was clearly not done."""
        ids = scene.enqueue_alike(3)
        batch = scene.going_live()
        scene.begun(batch, *ids[:2])
        work()
        scene.store.end_calls(scene.lease, batch.batch_id, [ids[1], ids[2], "no"])
        assert scene.inside(batch) == set(ids)
        calls = scene.store.begin_calls(scene.lease, batch.batch_id, ids)
        assert [call.again for call in calls] == [True, False, False]
        assert scene.tally_of().resent == 1
        work()
        assert all(call.again for call in scene.store.begin_calls(scene.lease, batch.batch_id, ids))
        assert scene.tally_of(store=scene.rival).resent == 4

    @pytest.mark.parametrize("begun", [False, True])
    def test_what_was_given_up_is_not_called(self, scene: Scene, work: Work, begun: bool) -> None:
        """It ends as canceled when it would be sent, at the instant of the cancel."""
        dropped, kept = scene.enqueue_alike(2)
        batch = scene.going_live(reason=Reason.STORM, insured=False)
        if begun:
            scene.begun(batch, dropped)
        give_up(scene.rival, dropped)
        work()
        assert scene.begun(batch, dropped, kept) == [kept]
        outcome = outcome_of(scene.store, dropped)
        assert outcome is not None
        assert (outcome.kind, outcome.raw, outcome.settled_at) == (OutcomeKind.CANCELED, b"", LATER)
        assert (outcome.batch_id, outcome.attempts, outcome.route) == (None, 0, "batch")
        assert (outcome.reason, outcome.insured) == (None, True)
        assert scene.inside(batch) == {kept}
        assert scene.tally_of().resent == 0
        settled = scene.rival.answer([live(dropped)], LATER)
        assert (settled.outcomes, settled.repeated, settled.wasted) == (0, 1, 1)
        assert outcome_of(scene.store, dropped) == outcome

    def test_a_batch_of_the_apis_has_no_live_calls(self, scene: Scene) -> None:
        """Nothing is sent live that is in one."""
        (request_id,) = scene.enqueue_alike(1)
        batch = scene.claimed()
        before = scene.snapshot()
        with pytest.raises(StoreError):
            scene.begun(batch, request_id)
        assert scene.snapshot() == before

    @pytest.mark.parametrize("way_out", ["finish", "release", "never"])
    def test_in_a_closed_batch_there_is_nothing_to_call(self, scene: Scene, work: Work, way_out: str) -> None:
        """It was closed since somebody looked: its requests are elsewhere, and keep their intents there."""
        done, left = scene.enqueue_alike(2)
        batch = scene.going_live()
        scene.store.answer([live(done)], START)
        if way_out == "finish":
            scene.store.answer([live(left)], START)
            scene.store.finish(scene.lease, batch)
        elif way_out == "release":
            scene.store.release(scene.lease, batch.batch_id)
            scene.begun(scene.going_live(), left)
        else:
            batch = replace(batch, batch_id="never")
        store = work()
        before = scene.snapshot()
        assert scene.begun(batch, done, left) == []
        store.end_calls(scene.lease, batch.batch_id, [done, left])
        assert scene.snapshot() == before
        if way_out == "release":
            (going,) = store.open_batches()
            (call,) = store.begin_calls(scene.lease, going.batch_id, [left])
            assert call.again is True


__all__ = ["BeginCallsContract", "EscalatingContract"]
