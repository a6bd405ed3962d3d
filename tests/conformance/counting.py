"""What a store promises of its sums: what came of requests, and which batches ended."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest

from conformance.recording import answered_create
from conformance.scene import MOMENT, START, Scene, again, answered, cancel_queued, live
from llmrouter.domain.batches import BatchState
from llmrouter.domain.blocks import Reason
from llmrouter.domain.ledger import ClassTally, MissCause
from llmrouter.domain.requests import OutcomeKind, Route

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmrouter.ports import Store

    Look = Work = Callable[[], Store]

HOUR = timedelta(hours=1)


class TallyContract:
    """`tally`."""

    def test_a_new_store_has_counted_nothing(self, scene: Scene) -> None:
        """What waits does not count."""
        scene.enqueue_alike(2)
        assert all(tally == ClassTally() for tally in scene.store.tally().values())

    def test_outcomes_are_counted_by_class_and_route(self, scene: Scene, look: Look) -> None:
        """Each once, also when it is read twice; not what was queued again."""
        ids = scene.enqueue_alike(5)
        scene.enqueue_alike(1, latency="hourly")
        batch = scene.claimed(max_requests=4)
        answers = [answered(ids[0]), answered(ids[1], OutcomeKind.ERRORED), again(ids[2])]
        for _ in range(2):
            scene.settle(batch, answers)
        scene.store.answer([live(ids[2]), live(ids[4], OutcomeKind.ERRORED)], START)
        scene.store.release(scene.lease, batch.batch_id)
        assert scene.tally_of(store=look()) == ClassTally(settled={Route.BATCH: 2, Route.ESCALATED: 2})
        scene.settle_all(scene.claimed(latency="hourly"))
        assert scene.tally_of("hourly", look()) == ClassTally(settled={Route.BATCH: 1})
        assert scene.tally_of("daily", look()).settled == {Route.BATCH: 2, Route.ESCALATED: 2}

    def test_what_its_owner_took_back_is_not_counted(self, scene: Scene, look: Look) -> None:
        """In the queue, out of a batch, before a live call; however late."""
        late = START + timedelta(days=3)
        queued, claimed, released, called = scene.enqueue(
            *(scene.request(due=place * HOUR) for place in (4, 1, 2, 3))
        )
        batches = [scene.claimed(max_requests=1) for _ in range(2)]
        going = scene.going_live(before=START + 4 * HOUR)
        assert scene.store.cancel([claimed, released, called], late, in_batches=True).asked == 3
        assert cancel_queued(scene.store, queued, now=late) == 1
        scene.settle(batches[0], [again(claimed)], late)
        scene.store.release(scene.lease, batches[1].batch_id)
        assert scene.begun(going, called) == []
        assert len(list(scene.store.outcomes([queued, claimed, released, called]))) == 4
        assert scene.tally_of(store=look()) == ClassTally()

    def test_misses_are_counted_by_their_cause(self, scene: Scene, work: Work) -> None:
        """As the batch says: what held it, that it was not insured, or nobody cared in time."""
        due, late = START + HOUR, START + HOUR + MOMENT
        ids = scene.enqueue(*(scene.request(due=HOUR) for _ in range(7)))
        batch = scene.claimed(max_requests=5)
        note = scene.store.note_decision
        scene.settle(batch, [answered(ids[0])], due)
        scene.settle(batch, [answered(ids[1])], late)
        note(scene.lease, batch.batch_id, reason=Reason.BUDGET, insured=False, recalled_at=None)
        scene.settle(batch, [answered(ids[2])], late)
        note(scene.lease, batch.batch_id, reason=Reason.STORM, insured=False, recalled_at=None)
        scene.settle(batch, [answered(ids[3])], late)
        scene.raced(batch, reason=Reason.LATEST_START, insured=True)
        work()
        scene.store.answer([live(ids[4]), live(ids[5], OutcomeKind.ERRORED)], late)
        scene.rival.answer([live(ids[6])], due)
        assert scene.tally_of() == ClassTally(
            settled={Route.BATCH: 4, Route.ESCALATED: 3},
            missed={
                MissCause.UNATTENDED: 1,
                MissCause.BUDGET: 1,
                MissCause.NOT_INSURED: 1,
                MissCause.LIVE_API: 2,
            },
        )

    def test_the_price_of_live_calls_is_counted_by_day(self, scene: Scene, work: Work) -> None:
        """Of the UTC day of the writing, exactly; of second answers too, of unknown ones not."""
        ids = scene.enqueue_alike(4)
        (hourly,) = scene.enqueue_alike(1, latency="hourly")
        midnight = datetime(2026, 11, 21, tzinfo=START.tzinfo)
        ahead = (midnight - MOMENT).astimezone(timezone(timedelta(hours=5)))
        work().answer([live(ids[0], paid_usd=Decimal("0.1")), live(hourly, paid_usd=Decimal("0.7"))], ahead)
        work().answer([live(ids[1], paid_usd=Decimal("0.2")), live(ids[2])], midnight - MOMENT)
        work().answer([live(ids[3], paid_usd=Decimal("1E-9"))], midnight)
        work().answer([live(ids[3], paid_usd=Decimal("0.4"))], midnight + HOUR)
        work().answer([live(ids[3], OutcomeKind.ERRORED, paid_usd=Decimal(0))], midnight + HOUR)
        work().answer([live("req_", paid_usd=Decimal(5)), live(scene.new_id(), paid_usd=Decimal(5))], START)
        assert scene.tally_of().live_usd == {
            date(2026, 11, 20): Decimal("0.3"),
            date(2026, 11, 21): Decimal("0.400000001"),
        }
        assert scene.tally_of("hourly").live_usd == {date(2026, 11, 20): Decimal("0.7")}
        assert {*scene.store.tally()} == {"daily", "hourly"}

    def test_waste_is_counted_when_a_batch_ends(self, scene: Scene, work: Work) -> None:
        """What its last reading found, once; a live call's at once."""
        ids = scene.enqueue_alike(3)
        batch = scene.claimed()
        scene.raced(batch)
        scene.store.answer([live(one) for one in ids], START)
        answers = [answered(one) for one in ids[:2]]
        for _ in range(2):
            settled = scene.store.settle(scene.lease, batch.batch_id, answers, START)
        work()
        scene.store.update_batch(
            scene.lease, replace(batch, state=BatchState.IN_DOUBT, wasted=settled.wasted)
        )
        assert scene.tally_of().wasted == 0
        work()
        scene.store.finish(scene.lease, replace(batch, wasted=settled.wasted))
        assert scene.tally_of(store=scene.rival).wasted == 2
        ended = scene.store.find_batch(batch.batch_id)
        assert ended is not None
        assert ended.wasted == 2
        scene.rival.answer([live(ids[0]), live(ids[1], OutcomeKind.ERRORED)], START)
        assert scene.tally_of().wasted == 3

    def test_pruning_does_not_change_it(self, scene: Scene, look: Look) -> None:
        """It says what came of all requests so far."""
        ids = scene.enqueue_alike(3)
        batch = scene.going_live()
        scene.begun(batch, ids[0])
        scene.begun(batch, ids[0])
        scene.store.answer([live(one, paid_usd=Decimal("0.5")) for one in ids], START)
        scene.store.finish(scene.lease, replace(batch, ended_at=START))
        before = scene.tally_of()
        assert before == ClassTally(
            settled={Route.ESCALATED: 3}, resent=1, live_usd={START.date(): Decimal("1.5")}
        )
        while scene.store.prune(scene.lease, START + MOMENT, 10, undelivered=True):
            pass
        assert look().find(ids[0]) is None
        assert scene.tally_of(store=look()) == before


class ClosedBatchesContract:
    """`closed_batches`."""

    def test_the_latest_claims_come_first(self, scene: Scene, look: Look) -> None:
        """Whenever they ended, as many as are asked for."""
        scene.enqueue_alike(4)
        batches = [answered_create(scene.claimed(max_requests=1), f"msgbatch_{place}") for place in range(4)]
        assert look().closed_batches(10) == []
        ended = {}
        for place in (2, 0, 3):
            batch = replace(batches[place], ended_at=START + (9 - place) * HOUR)
            scene.store.update_batch(scene.lease, batch)
            scene.settle_all(batch)
            ended[place] = replace(batch, state=BatchState.ENDED)
        assert look().closed_batches(10) == [ended[3], ended[2], ended[0]]
        assert look().closed_batches(2) == [ended[3], ended[2]]
        assert look().closed_batches(0) == []

    def test_only_batches_of_the_apis_are_listed(self, scene: Scene, look: Look) -> None:
        """Neither what was released, nor what went live, nor what the API refused for good."""
        ids = scene.enqueue_alike(4)
        released = scene.claimed(max_requests=1)
        scene.store.release(scene.lease, released.batch_id)
        refused = scene.claimed(max_requests=1)
        scene.settle_all(refused)
        taken = answered_create(scene.claimed(max_requests=1))
        scene.store.record_created(taken)
        scene.settle_all(taken)
        going = scene.going_live()
        scene.store.answer([live(one) for one in ids], START)
        scene.store.finish(scene.lease, going)
        assert look().open_batches() == []
        assert look().closed_batches(10) == [replace(taken, state=BatchState.ENDED)]

    @pytest.mark.parametrize("number", [1, 3])
    def test_pruned_ones_are_gone(self, scene: Scene, look: Look, number: int) -> None:
        """The newer ones are still listed."""
        scene.enqueue_alike(number + 1)
        batches = [answered_create(scene.claimed(max_requests=1), f"p{place}") for place in range(number)]
        for batch in batches:
            scene.store.record_created(batch)
            scene.settle_all(replace(batch, ended_at=START))
        kept = answered_create(scene.claimed(), "kept")
        scene.store.record_created(kept)
        scene.settle(kept, [answered(one) for one in scene.inside(kept)], START + 2 * HOUR)
        scene.store.finish(scene.lease, replace(kept, ended_at=START + 2 * HOUR))
        while scene.store.prune(scene.lease, START + HOUR, 10, undelivered=True):
            pass
        ended = replace(kept, state=BatchState.ENDED, ended_at=START + 2 * HOUR)
        assert look().closed_batches(10) == [ended]


__all__ = ["ClosedBatchesContract", "TallyContract"]
