"""What a store promises when a request may be answered twice: the first answer counts."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from conformance.escalating import LATER, OPEN_AT_THE_API, brought_to, give_up, raced_in_flight
from conformance.scene import (
    MOMENT,
    START,
    Scene,
    again,
    answered,
    cancel_queued,
    drain_log,
    live,
    outcome_of,
)
from llmrouter.domain.batches import BatchState
from llmrouter.domain.blocks import Reason
from llmrouter.domain.requests import OutcomeKind, RequestState

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmrouter.ports import Store

    Look = Work = Callable[[], Store]

HOUR = timedelta(hours=1)


class RaceContract:
    """Two answers for one request: the first one counts, whichever it is."""

    @pytest.mark.parametrize("where", ["going live", "called", "queued", "claimed", "raced again"])
    @pytest.mark.parametrize("kind", [OutcomeKind.SUCCEEDED, OutcomeKind.ERRORED])
    def test_the_old_batch_may_answer(self, scene: Scene, work: Work, where: str, kind: OutcomeKind) -> None:
        """Wherever its requests are by then; the others of them are left alone."""
        (one, two), batch, new = raced_in_flight(scene, 2)
        place = new
        if where == "called":
            assert scene.begun(new, one) == [one]
        elif where != "going live":
            assert scene.store.release(scene.lease, new.batch_id) == 2
        if where in {"claimed", "raced again"}:
            place = scene.claimed()
        if where == "raced again":
            place = scene.raced(place)
        work()
        scene.store.note_decision(
            scene.lease, batch.batch_id, reason=Reason.BUDGET, insured=False, recalled_at=None
        )
        answer = answered(one, kind, b"late")
        assert scene.settle(batch, [answer], LATER) == (1, 0, 0, 0)
        outcome = outcome_of(work(), one)
        assert outcome is not None
        assert (outcome.kind, outcome.raw, outcome.route) == (kind, b"late", "batch")
        assert (outcome.batch_id, outcome.attempts, outcome.settled_at) == (batch.batch_id, 1, LATER)
        assert (outcome.reason, outcome.insured) == (Reason.BUDGET, False)
        if where == "queued":
            assert [line.request_count for line in scene.store.waiting()] == [1]
            place = scene.claimed()
        assert scene.inside(place) == {two}
        assert outcome_of(scene.store, two) is None

    def test_a_retry_of_the_old_batch_changes_nothing(self, scene: Scene) -> None:
        """They go live already."""
        ids, batch, new = raced_in_flight(scene, 3)
        scene.begun(new, ids[0])
        give_up(scene.store, ids[1])
        before = scene.snapshot()
        assert scene.settle(batch, [again(request_id) for request_id in ids]) == (0, 0, 3, 0)
        assert scene.snapshot() == before
        assert scene.settle(batch, [answered(request_id) for request_id in ids]) == (3, 0, 0, 0)
        assert [outcome.attempts for outcome in drain_log(scene.store, scene.log_start)] == [1] * 3

    def test_a_second_answer_is_wasted(self, scene: Scene, work: Work) -> None:
        """The batch's success after a live call's, each time it is read; no other answer is."""
        ids, batch, _ = raced_in_flight(scene, 5)
        assert scene.store.answer([live(ids[0]), live(ids[1])], START).outcomes == 2
        assert scene.store.answer([live(ids[2], OutcomeKind.ERRORED)], START).outcomes == 1
        before = {outcome.request_id: outcome for outcome in drain_log(scene.store, scene.log_start)}
        answers = [
            answered(ids[0]),
            answered(ids[1], OutcomeKind.ERRORED),
            answered(ids[2]),
            answered(ids[3]),
            again(ids[4]),
        ]
        lease = scene.lease
        settled = scene.store.settle(lease, batch.batch_id, answers, LATER)
        assert (settled.outcomes, settled.repeated, settled.wasted) == (1, 4, 2)
        for _ in range(2):
            store = work()
            settled = store.settle(scene.lease, batch.batch_id, answers, LATER)
            assert (settled.outcomes, settled.repeated, settled.wasted) == (0, 5, 2)
        log = {outcome.request_id: outcome for outcome in drain_log(scene.store, scene.log_start)}
        assert {one: log[one] for one in before} == before
        assert set(log) == set(ids[:4])

    def test_two_answers_in_one_reading_are_one(self, scene: Scene) -> None:
        """A line that is read twice is not paid twice."""
        (request_id,), batch, _ = raced_in_flight(scene, 1)
        answers = [answered(request_id, raw=b"1"), answered(request_id, raw=b"2")]
        settled = scene.store.settle(scene.lease, batch.batch_id, answers, START)
        assert (settled.outcomes, settled.repeated, settled.wasted) == (1, 1, 0)
        outcome = outcome_of(scene.store, request_id)
        assert outcome is not None
        assert outcome.raw == b"1"

    @pytest.mark.parametrize("first", ["live call", "earlier batch"])
    def test_an_answer_of_the_next_batch_is_wasted_too(self, scene: Scene, first: str) -> None:
        """Its request had gone live before, was queued again, and was answered there after all."""
        (request_id,), batch, new = raced_in_flight(scene, 1)
        scene.begun(new, request_id)
        scene.store.release(scene.lease, new.batch_id)
        second = scene.claimed()
        if first == "live call":
            assert scene.rival.answer([live(request_id)], START).outcomes == 1
        else:
            assert scene.settle(batch, [answered(request_id)]) == (1, 0, 0, 0)
        assert scene.inside(second) == set()
        answers = [answered(request_id)]
        settled = scene.store.settle(scene.lease, second.batch_id, answers, LATER)
        assert (settled.outcomes, settled.repeated, settled.wasted) == (0, 1, 1)
        scene.store.finish(scene.lease, second)
        assert len(drain_log(scene.store, scene.log_start)) == 1

    def test_what_was_canceled_meanwhile_is_wasted(self, scene: Scene) -> None:
        """Its owner took it back when it waited again; the batch answers, and nobody gets it."""
        (request_id,), batch, new = raced_in_flight(scene, 1)
        scene.store.release(scene.lease, new.batch_id)
        assert cancel_queued(scene.rival, request_id) == 1
        settled = scene.store.settle(scene.lease, batch.batch_id, [answered(request_id)], LATER)
        assert (settled.outcomes, settled.repeated, settled.wasted) == (0, 1, 1)

    def test_a_retried_request_is_not_taken_back(self, scene: Scene) -> None:
        """It left its batch by the batch's own word: a late success of that batch is not its outcome."""
        retried, moved = scene.enqueue_alike(2)
        batch = brought_to(scene, scene.claimed(), BatchState.IN_FLIGHT)
        scene.settle(batch, [again(retried)])
        scene.raced(batch)
        going = scene.going_live()
        assert scene.settle(batch, [answered(retried), answered(moved)]) == (1, 0, 1, 0)
        assert scene.inside(going) == {retried}
        settled = scene.store.settle(scene.lease, batch.batch_id, [answered(retried)], START)
        assert settled.wasted == 0

    def test_a_pruned_request_is_not_wasted(self, scene: Scene, work: Work) -> None:
        """Nobody knows of it any more."""
        (request_id,), batch, _ = raced_in_flight(scene, 1)
        scene.store.answer([live(request_id)], START)
        assert scene.store.prune(scene.lease, START + MOMENT, 10, undelivered=True) == 1
        assert scene.store.find(request_id) is None
        store = work()
        settled = store.settle(scene.lease, batch.batch_id, [answered(request_id), again(request_id)], LATER)
        assert (settled.outcomes, settled.repeated, settled.unknown, settled.wasted) == (0, 2, 0, 0)

    def test_a_request_can_be_raced_more_than_once(self, scene: Scene, work: Work) -> None:
        """Each batch that it was taken out of may answer."""
        (request_id,), first, new = raced_in_flight(scene, 1)
        scene.store.release(scene.lease, new.batch_id)
        second = scene.claimed()
        last = scene.raced(second)
        work()
        assert scene.settle(first, [again(request_id)]) == (0, 0, 1, 0)
        assert scene.inside(last) == {request_id}
        assert scene.settle(second, [answered(request_id)]) == (1, 0, 0, 0)
        assert scene.inside(last) == set()
        settled = scene.store.settle(scene.lease, first.batch_id, [answered(request_id)], LATER)
        assert (settled.repeated, settled.wasted) == (1, 1)


class AnswerContract:
    """`answer`: a fact, whoever works on the store."""

    @pytest.mark.parametrize("kind", [OutcomeKind.SUCCEEDED, OutcomeKind.ERRORED])
    def test_an_answer_is_the_outcome(self, scene: Scene, look: Look, kind: OutcomeKind) -> None:
        """In the log, byte for byte, with its route and why it went that way."""
        request = scene.request(key="k", due=HOUR)
        scene.enqueue(request)
        first = scene.claimed()
        scene.settle(first, [again(request.request_id)])
        scene.store.finish(scene.lease, first)
        batch = scene.going_live(reason=Reason.STORM, insured=False)
        scene.begun(batch, request.request_id)
        raw = '{"result":"\u2028 \\n\n"}'.encode()
        settled = look().answer([live(request.request_id, kind, raw)], LATER)
        assert (settled.outcomes, settled.retried, settled.repeated, settled.unknown) == (1, 0, 0, 0)
        (outcome,) = drain_log(look(), scene.log_start)
        assert outcome_of(look(), request.request_id) == outcome
        assert (outcome.kind, outcome.raw, outcome.key) == (kind, raw, "k")
        assert (outcome.route, outcome.batch_id, outcome.attempts) == ("escalated", None, 1)
        assert (outcome.reason, outcome.insured, outcome.settled_at) == (Reason.STORM, False, LATER)
        view = look().find(request.request_id)
        assert view is not None
        assert (view.state, view.attempts, view.batch_id) == (RequestState.SETTLED, 1, None)
        assert scene.inside(batch) == set()
        assert look().open_batches() == [batch]

    def test_an_answer_needs_no_lease(self, scene: Scene) -> None:
        """The answer came when another process had taken the work over, and had given up on it."""
        ids = scene.enqueue_alike(3)
        batch = scene.going_live()
        scene.begun(batch, *ids)
        scene.hand_over()
        scene.store.release(scene.lease, batch.batch_id)
        (line,) = scene.store.waiting()
        assert line.request_count == 3
        assert scene.rival.answer([live(ids[1])], LATER).outcomes == 1
        (line,) = scene.store.waiting()
        assert line.request_count == 2
        second = scene.claimed()
        assert scene.inside(second) == {ids[0], ids[2]}
        assert scene.rival.answer([live(ids[0])], LATER).outcomes == 1
        assert scene.inside(second) == {ids[2]}
        outcomes = drain_log(scene.store, scene.log_start)
        assert [(outcome.reason, outcome.insured) for outcome in outcomes] == [(None, True)] * 2
        assert scene.settle(second, [answered(ids[2])]) == (1, 0, 0, 0)
        scene.store.finish(scene.lease, second)

    @pytest.mark.parametrize("state", OPEN_AT_THE_API)
    def test_it_counts_in_any_batch(self, scene: Scene, look: Look, state: BatchState) -> None:
        """What it says of its deadline is what that batch says."""
        answered_live, left = scene.enqueue_alike(2)
        batch = brought_to(scene, scene.claimed(), state)
        scene.store.note_decision(
            scene.lease, batch.batch_id, reason=Reason.SPEND_CAP, insured=False, recalled_at=None
        )
        assert look().answer([live(answered_live)], LATER).outcomes == 1
        outcome = outcome_of(look(), answered_live)
        assert outcome is not None
        assert (outcome.route, outcome.batch_id, outcome.attempts) == ("escalated", None, 0)
        assert (outcome.reason, outcome.insured) == (Reason.SPEND_CAP, False)
        assert scene.inside(batch) == {left}
        if state is not BatchState.IN_FLIGHT:
            assert scene.store.release(scene.lease, batch.batch_id) == 1

    def test_a_second_answer_changes_nothing(self, scene: Scene, work: Work) -> None:
        """It is repeated; a success was paid in vain, whatever the first one was."""
        ids = scene.enqueue_alike(4)
        batch = scene.claimed(max_requests=2)
        scene.settle(batch, [answered(ids[0]), answered(ids[1], OutcomeKind.ERRORED)])
        cancel_queued(scene.store, ids[2])
        assert work().answer([live(ids[3])], START).outcomes == 1
        before = scene.snapshot()
        settled = work().answer([live(request_id) for request_id in ids], LATER)
        assert (settled.outcomes, settled.repeated, settled.wasted, settled.unknown) == (0, 4, 4, 0)
        settled = work().answer([live(request_id, OutcomeKind.ERRORED) for request_id in ids], LATER)
        assert (settled.outcomes, settled.repeated, settled.wasted, settled.unknown) == (0, 4, 0, 0)
        after = scene.snapshot()
        assert after._replace(tally=before.tally) == before
        assert scene.tally_of() == replace(before.tally["daily"], wasted=4)

    def test_the_first_of_two_in_one_call_counts(self, scene: Scene) -> None:
        """The second was paid all the same."""
        (request_id,) = scene.enqueue_alike(1)
        settled = scene.store.answer([live(request_id, raw=b"1"), live(request_id, raw=b"2")], START)
        assert (settled.outcomes, settled.repeated, settled.wasted) == (1, 1, 1)
        outcome = outcome_of(scene.store, request_id)
        assert outcome is not None
        assert outcome.raw == b"1"

    def test_what_was_given_up_takes_it(self, scene: Scene) -> None:
        """It is paid: it is delivered."""
        (request_id,) = scene.enqueue_alike(1)
        batch = scene.going_live()
        scene.begun(batch, request_id)
        give_up(scene.store, request_id)
        assert scene.rival.answer([live(request_id, raw=b"paid")], LATER + MOMENT).outcomes == 1
        outcome = outcome_of(scene.store, request_id)
        assert outcome is not None
        assert (outcome.kind, outcome.raw) == (OutcomeKind.SUCCEEDED, b"paid")

    def test_answers_for_nobody_are_unknown(self, scene: Scene, look: Look) -> None:
        """Ids that never were, and ids that were pruned; the others of the call count."""
        (gone,) = scene.settled(scene.request())
        scene.store.prune(scene.lease, START + MOMENT, 10, undelivered=True)
        assert scene.store.find(gone) is None
        (mine,) = scene.enqueue_alike(1)
        strangers = [gone, scene.new_id(), "req_zzzzzzzzzzzzzzzzzzzz000", "", "no-request", "req_"]
        before = scene.snapshot()
        settled = look().answer([live(request_id) for request_id in strangers], START)
        assert (settled.outcomes, settled.repeated, settled.unknown, settled.wasted) == (0, 0, 6, 0)
        assert scene.snapshot() == before
        assert look().answer([live(gone), live(mine)], START).outcomes == 1
        assert look().answer([], START).outcomes == 0

    def test_an_answered_request_is_never_claimed(self, scene: Scene, work: Work) -> None:
        """Of a call some were answered while they waited: the others leave, with their own bodies."""
        requests = [scene.request(size=60 + place) for place in range(9)]
        ids = scene.enqueue(*requests)
        assert [line.request_count for line in scene.store.waiting()] == [9]
        scene.rival.answer([live(ids[place]) for place in (0, 4, 5, 8)], START)
        work()
        kept = {ids[place]: requests[place].body for place in (1, 2, 3, 6, 7)}
        (line,) = scene.store.waiting()
        assert (line.request_count, line.body_bytes) == (5, sum(map(len, kept.values())))
        batch = scene.claimed()
        assert scene.inside(batch) == set(kept)
        posted = scene.posted(batch)
        assert all(body in posted for body in kept.values())
        assert scene.claim() is None

    def test_it_can_be_swept_and_pruned_like_any_other(self, scene: Scene, work: Work) -> None:
        """Kept until it was delivered."""
        (request_id,) = scene.enqueue_alike(1)
        batch = scene.going_live()
        scene.rival.answer([live(request_id)], START)
        store = work()
        assert store.sweep(scene.lease, 10) == 1
        store.finish(scene.lease, batch)
        assert store.prune(scene.lease, START + MOMENT, 10, undelivered=False) == 0
        store.deliver([request_id])
        assert store.prune(scene.lease, START + MOMENT, 10, undelivered=False) == 1
        assert store.find(request_id) is None


__all__ = ["AnswerContract", "RaceContract"]
