"""What a store promises of requests that are to go live: how they get there, and what was decided."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from conformance.recording import answered_create
from conformance.scene import (
    LANE,
    MODEL,
    MOMENT,
    OTHER_LANE,
    START,
    Scene,
    again,
    answered,
    drain_log,
    live,
    outcome_of,
)
from llmrouter.domain.batches import Batch, BatchState
from llmrouter.domain.blocks import Reason
from llmrouter.domain.requests import OutcomeKind, RequestState
from llmrouter.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmrouter.ports import Store

    Look = Work = Callable[[], Store]

LATER = START + timedelta(minutes=7, microseconds=3)
HOUR = timedelta(hours=1)
OPEN_AT_THE_API = [BatchState.CLAIMED, BatchState.IN_DOUBT, BatchState.IN_FLIGHT]


def brought_to(scene: Scene, batch: Batch, state: BatchState) -> Batch:
    """A batch that has just been claimed, in another open state of the API's."""
    if state is BatchState.CLAIMED:
        return batch
    said = answered_create(batch) if state is BatchState.IN_FLIGHT else replace(batch, state=state)
    scene.store.update_batch(scene.lease, said)
    return said


def give_up(store: Store, *request_ids: str) -> None:
    """Cancels what is in batches."""
    assert store.cancel(request_ids, LATER, in_batches=True).asked == len(request_ids)


def raced_in_flight(scene: Scene, number: int) -> tuple[list[str], Batch, Batch]:
    """Requests, the batch that the API has of them, and the ESCALATING one that they are in."""
    ids = scene.enqueue_alike(number)
    batch = brought_to(scene, scene.claimed(), BatchState.IN_FLIGHT)
    return ids, batch, scene.raced(batch)


class EscalateWaitingContract:
    """`escalate_waiting`."""

    def test_what_is_due_before_an_instant_goes_live(self, scene: Scene, look: Look) -> None:
        """To the microsecond; the rest waits on."""
        ids = scene.enqueue(
            scene.request(due=2 * HOUR, size=70),
            scene.request(due=HOUR, size=80, accepted_at=START - HOUR),
            scene.request(due=2 * HOUR + MOMENT, size=90),
        )
        before = START + 2 * HOUR + MOMENT
        batch = scene.escalate_waiting(before=before, reason=Reason.STORM, insured=False, now=LATER)
        assert batch is not None
        assert batch == Batch(
            batch_id=batch.batch_id,
            lane=LANE,
            latency="daily",
            nonce="",
            state=BatchState.ESCALATING,
            request_count=2,
            body_bytes=150,
            claimed_at=LATER,
            fence=scene.lease.fence,
            model=MODEL,
            deadline_at=START + HOUR,
            window=2 * HOUR,
            reason=Reason.STORM,
            insured=False,
            escalated_at=LATER,
        )
        store = look()
        assert store.open_batches() == [batch]
        assert store.find_batch(batch.batch_id) == batch
        assert set(store.unsettled(batch.batch_id)) == set(ids[:2])
        views = [store.find(request_id) for request_id in ids]
        assert [(view.state, view.batch_id, view.attempts, view.lane_id) for view in views if view] == [
            *[(RequestState.CLAIMED, batch.batch_id, 0, LANE.lane_id)] * 2,
            (RequestState.QUEUED, None, 0, LANE.lane_id),
        ]
        assert [(line.request_count, line.body_bytes) for line in store.waiting()] == [(1, 90)]
        assert scene.inside(scene.claimed()) == {ids[2]}

    def test_nothing_due_is_none(self, scene: Scene) -> None:
        """And no change."""
        assert scene.escalate_waiting() is None
        scene.enqueue(scene.request(due=HOUR))
        before = scene.snapshot()
        assert scene.escalate_waiting(before=START + HOUR) is None
        assert scene.snapshot() == before

    def test_one_line_at_a_time(self, scene: Scene, work: Work) -> None:
        """Other lanes, classes and models are left alone."""
        others = scene.enqueue(
            scene.request(lane=OTHER_LANE), scene.request(latency="hourly"), scene.request(model="other")
        )
        assert scene.escalate_waiting() is None
        mine = scene.enqueue(scene.request(site="a:a"), scene.request(prefix="p"))
        work()
        assert scene.inside(scene.going_live()) == set(mine)
        assert scene.inside(scene.going_live(model="other")) == {others[2]}
        assert scene.inside(scene.going_live(latency="hourly")) == {others[1]}
        assert sum(line.request_count for line in scene.store.waiting()) == 1

    def test_cohorts_go_live_as_the_backlog_shows_them(self, scene: Scene, work: Work) -> None:
        """The ``before`` of a cohort takes that cohort, and nothing that is due later."""
        scene.enqueue(*(scene.request(due=20 * HOUR + 0.3 * place * HOUR) for place in range(5)))
        scene.enqueue(*(scene.request(due=20 * HOUR + 0.3 * place * HOUR) for place in range(30)))
        cohorts = scene.line().cohorts
        assert len(cohorts) >= 5
        for cohort in cohorts:
            work()
            batch = scene.going_live(before=cohort.before)
            assert (batch.request_count, batch.body_bytes) == (cohort.request_count, cohort.body_bytes)
            assert batch.deadline_at == cohort.deadline_at
        assert scene.store.waiting() == []

    def test_earlier_attempts_are_known(self, scene: Scene) -> None:
        """Of requests that were in batches before, and of those that are going live again."""
        once, never = scene.enqueue_alike(2)
        scene.settle(scene.claimed(), [again(once)])
        batch = scene.going_live()
        assert (scene.inside(batch), batch.attempts) == ({once}, {once: 1})
        scene.store.release(scene.lease, batch.batch_id)
        batch = scene.going_live()
        assert (scene.inside(batch), batch.attempts) == ({once}, {once: 1})
        assert outcome_of(scene.store, never) is None

    def test_thousands_go_live_at_once(self, scene: Scene, work: Work) -> None:
        """Across pages; each can be called with its own body, and is answered once."""
        requests = [scene.request(size=60 + place % 7) for place in range(2300)]
        by_id = {request.request_id: request.body for request in requests}
        scene.enqueue(*requests)
        batch = scene.going_live()
        work()
        assert scene.inside(batch) == set(by_id)
        calls = scene.store.begin_calls(scene.lease, batch.batch_id, list(reversed(by_id)))
        assert [(call.request_id, call.body) for call in calls] == list(reversed(by_id.items()))
        assert scene.rival.answer([live(request_id) for request_id in by_id], LATER).outcomes == 2300
        scene.store.finish(scene.lease, batch)
        assert sorted(outcome.request_id for outcome in drain_log(scene.store, scene.log_start)) == sorted(
            by_id
        )


class EscalateBatchContract:
    """`escalate_batch`: a batch that may answer all the same."""

    @pytest.mark.parametrize("state", OPEN_AT_THE_API)
    def test_requests_move_out_of_an_open_batch(self, scene: Scene, look: Look, state: BatchState) -> None:
        """Both say why; the old one stays open and keeps all else that is known of it."""
        ids = scene.enqueue(
            scene.request(due=2 * HOUR, size=70, model="m"),
            scene.request(due=3 * HOUR, size=80, model="m", accepted_at=START - HOUR),
            scene.request(due=HOUR, size=90, model="m"),
        )
        batch = brought_to(scene, scene.claimed(model="m"), state)
        scene.settle(batch, [answered(ids[2])])
        new = scene.raced(batch, reason=Reason.LATEST_START, insured=False, now=LATER)
        assert new == Batch(
            batch_id=new.batch_id,
            lane=LANE,
            latency="daily",
            nonce="",
            state=BatchState.ESCALATING,
            request_count=2,
            body_bytes=150,
            claimed_at=LATER,
            fence=scene.lease.fence,
            model="m",
            deadline_at=START + 2 * HOUR,
            window=2 * HOUR,
            reason=Reason.LATEST_START,
            insured=False,
            escalated_at=LATER,
            raced=batch.batch_id,
        )
        store = look()
        old = replace(batch, reason=Reason.LATEST_START, insured=False, escalated_at=LATER)
        assert store.open_batches() == [old, new]
        assert list(store.unsettled(batch.batch_id)) == []
        assert set(store.unsettled(new.batch_id)) == set(ids[:2])
        assert [view.batch_id for one in ids[:2] if (view := store.find(one))] == [new.batch_id] * 2
        assert store.waiting() == []

    def test_earlier_attempts_move_along(self, scene: Scene, look: Look) -> None:
        """Of those that are moved."""
        twice, never, gone = scene.enqueue_alike(3)
        scene.settle(scene.claimed(), [again(twice), again(never), again(gone)])
        scene.settle(scene.claimed(), [again(twice), again(gone), answered(never)])
        scene.enqueue_alike(1)
        batch = scene.claimed()
        scene.settle(batch, [answered(gone)])
        assert scene.raced(batch).attempts == {twice: 2}
        assert look().open_batches()[-1].attempts == {twice: 2}

    def test_what_was_given_up_stays(self, scene: Scene, work: Work) -> None:
        """Nobody pays a live call for it; it ends with its batch."""
        kept, dropped = scene.enqueue_alike(2)
        batch = brought_to(scene, scene.claimed(), BatchState.IN_DOUBT)
        give_up(scene.rival, dropped)
        work()
        new = scene.raced(batch)
        assert (scene.inside(new), scene.inside(batch)) == ({kept}, {dropped})
        assert not any(one.cancel_wanted for one in scene.store.open_batches())
        assert scene.settle(batch, [again(dropped), again(kept)]) == (1, 0, 1, 0)
        outcome = outcome_of(scene.store, dropped)
        assert outcome is not None
        assert (outcome.kind, outcome.batch_id) == (OutcomeKind.CANCELED, batch.batch_id)

    @pytest.mark.parametrize("left", ["nothing", "given up", "escalated"])
    def test_nothing_left_to_move_is_none(self, scene: Scene, work: Work, left: str) -> None:
        """And no change."""
        (request_id,) = scene.enqueue_alike(1)
        batch = brought_to(scene, scene.claimed(), BatchState.IN_FLIGHT)
        if left == "nothing":
            scene.settle(batch, [answered(request_id)])
        elif left == "given up":
            give_up(scene.store, request_id)
        else:
            scene.raced(batch)
        work()
        before = scene.snapshot()
        assert scene.escalate_batch(batch, reason=Reason.STORM, insured=False, now=LATER) is None
        assert scene.snapshot() == before

    @pytest.mark.parametrize("way_out", ["finish", "release", "never"])
    def test_of_a_closed_batch_it_is_none(self, scene: Scene, work: Work, way_out: str) -> None:
        """It was closed since somebody looked: no change."""
        (request_id,) = scene.enqueue_alike(1)
        batch = scene.claimed()
        if way_out == "finish":
            scene.settle(batch, [again(request_id)])
            scene.store.finish(scene.lease, batch)
        elif way_out == "release":
            scene.store.release(scene.lease, batch.batch_id)
        else:
            batch = replace(batch, batch_id="never")
        work()
        before = scene.snapshot()
        assert scene.escalate_batch(batch) is None
        assert scene.snapshot() == before

    def test_what_goes_live_already_is_not_moved(self, scene: Scene) -> None:
        """An ESCALATING batch is none of the API's."""
        scene.enqueue_alike(1)
        batch = scene.going_live()
        before = scene.snapshot()
        with pytest.raises(StoreError):
            scene.escalate_batch(batch)
        assert scene.snapshot() == before

    @pytest.mark.parametrize("state", [BatchState.CLAIMED, BatchState.IN_DOUBT])
    def test_a_release_of_the_old_one_queues_none_of_them(
        self, scene: Scene, work: Work, state: BatchState
    ) -> None:
        """The API never had it; they go live all the same, and only what was given up ends."""
        kept, dropped = scene.enqueue_alike(2)
        batch = brought_to(scene, scene.claimed(), state)
        give_up(scene.store, dropped)
        new = scene.raced(batch)
        work()
        assert scene.store.release(scene.lease, batch.batch_id) == 1
        assert scene.store.waiting() == []
        assert scene.inside(new) == {kept}
        assert scene.begun(new, kept, dropped) == [kept]
        assert [outcome.request_id for outcome in drain_log(scene.store, scene.log_start)] == [dropped]

    def test_the_old_body_can_still_be_posted(self, scene: Scene) -> None:
        """The create may be under way: its bytes do not change."""
        scene.enqueue_alike(3)
        batch = scene.claimed()
        posted = scene.posted(batch)
        body = scene.store.body(batch)
        scene.raced(batch)
        assert b"".join(body) == posted
        assert scene.rival.record_created(answered_create(batch)) is True

    @pytest.mark.parametrize("news", ["update_batch", "record_created"])
    def test_an_old_copy_does_not_take_the_decision_back(self, scene: Scene, look: Look, news: str) -> None:
        """Whoever writes what it knows of a batch may have read it before."""
        scene.enqueue_alike(1)
        copy = scene.claimed()
        new = scene.raced(copy, reason=Reason.STORM, insured=False, now=LATER)
        told = answered_create(copy)
        if news == "update_batch":
            scene.store.update_batch(scene.lease, told)
        else:
            assert scene.rival.record_created(told)
        decided = replace(told, reason=Reason.STORM, insured=False, escalated_at=LATER)
        assert look().open_batches() == [decided, new]
        scene.store.finish(scene.lease, told)
        assert look().find_batch(copy.batch_id) == replace(decided, state=BatchState.ENDED)


class NoteDecisionContract:
    """`note_decision`."""

    @pytest.mark.parametrize("state", [*OPEN_AT_THE_API, BatchState.ESCALATING])
    def test_a_decision_is_noted(self, scene: Scene, look: Look, state: BatchState) -> None:
        """Of any open batch; an instant that is not named stays, the rest is of the last decision."""
        scene.enqueue_alike(1)
        live_one = state is BatchState.ESCALATING
        batch = scene.going_live() if live_one else brought_to(scene, scene.claimed(), state)
        note = scene.store.note_decision
        note(scene.lease, batch.batch_id, reason=Reason.LATEST_START, insured=False, recalled_at=LATER)
        noted = replace(batch, reason=Reason.LATEST_START, insured=False, recalled_at=LATER)
        assert look().open_batches() == [noted]
        note(scene.lease, batch.batch_id, reason=Reason.SPEND_CAP, insured=True, recalled_at=None)
        noted = replace(batch, reason=Reason.SPEND_CAP, insured=True, recalled_at=LATER)
        assert look().open_batches() == [noted]
        assert look().find_batch(batch.batch_id) == noted

    def test_an_old_copy_does_not_take_it_back(self, scene: Scene, look: Look) -> None:
        """Nor does one that claims another decision."""
        scene.enqueue_alike(1)
        copy = answered_create(scene.claimed())
        scene.store.note_decision(
            scene.lease, copy.batch_id, reason=Reason.STORM, insured=False, recalled_at=LATER
        )
        noted = replace(copy, reason=Reason.STORM, insured=False, recalled_at=LATER)
        assert scene.rival.record_created(copy) is True
        assert look().open_batches() == [noted]
        wrong = replace(copy, reason=Reason.BUDGET, escalated_at=START, recalled_at=START, raced="x")
        scene.store.update_batch(scene.lease, replace(wrong, cancel_asked_at=LATER))
        assert look().open_batches() == [replace(noted, cancel_asked_at=LATER)]

    def test_an_outcome_says_what_was_decided(self, scene: Scene, look: Look) -> None:
        """Of its batch, by then; what is queued again starts afresh."""
        before, after, retried, dropped = scene.enqueue_alike(4)
        batch = scene.claimed()
        scene.settle(batch, [answered(before)])
        scene.store.note_decision(
            scene.lease, batch.batch_id, reason=Reason.CREDENTIAL, insured=False, recalled_at=None
        )
        give_up(scene.store, dropped)
        scene.settle(batch, [answered(after), again(retried), again(dropped)])
        scene.settle(scene.claimed(), [answered(retried)])
        said = {
            outcome.request_id: (outcome.reason, outcome.insured)
            for outcome in look().outcomes([before, after, retried, dropped])
        }
        assert said == {
            before: (None, True),
            after: (Reason.CREDENTIAL, False),
            retried: (None, True),
            dropped: (Reason.CREDENTIAL, False),
        }

    @pytest.mark.parametrize("way_out", ["finish", "release", "never"])
    def test_of_a_closed_batch_nothing_is_noted(self, scene: Scene, way_out: str) -> None:
        """It was closed since somebody looked: no change, no error."""
        (request_id,) = scene.enqueue_alike(1)
        batch = scene.claimed()
        if way_out == "finish":
            scene.settle(batch, [again(request_id)])
            scene.store.finish(scene.lease, batch)
        elif way_out == "release":
            scene.store.release(scene.lease, batch.batch_id)
        before, closed = scene.snapshot(), scene.store.find_batch(batch.batch_id)
        name = "never" if way_out == "never" else batch.batch_id
        scene.store.note_decision(scene.lease, name, reason=Reason.STORM, insured=False, recalled_at=START)
        assert scene.snapshot() == before
        assert scene.store.find_batch(batch.batch_id) == closed


__all__ = ["EscalateBatchContract", "EscalateWaitingContract", "NoteDecisionContract"]
