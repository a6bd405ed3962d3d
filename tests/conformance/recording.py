"""What a store promises of facts about batches: creates that were answered late, and who knows a batch."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from conformance.scene import START, Scene, answered
from llmrouter.domain.batches import BatchState

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmrouter.domain.batches import Batch
    from llmrouter.ports import Store

    Look = Work = Callable[[], Store]


def answered_create(batch: Batch, provider_batch_id: str = "msgbatch_1") -> Batch:
    """The batch as the API's answer to its create makes it."""
    return replace(
        batch,
        state=BatchState.IN_FLIGHT,
        provider_batch_id=provider_batch_id,
        created_at=START + timedelta(seconds=1),
        expires_at=START + timedelta(days=1, seconds=1),
    )


class CreatedContract:
    """`record_created`: a fact, whoever holds the lease."""

    def test_a_create_is_recorded(self, scene: Scene, look: Look) -> None:
        """The batch is IN_FLIGHT with what the API said of it, and its requests are where they were."""
        scene.enqueue_alike(2)
        batch = scene.claimed()
        assert look().record_created(answered_create(batch)) is True
        assert look().open_batches() == [answered_create(batch)]
        assert len(scene.inside(batch)) == 2

    def test_it_needs_no_lease(self, scene: Scene) -> None:
        """The answer came when another process had taken the work over."""
        scene.enqueue_alike(1)
        batch = scene.claimed()
        scene.hand_over()
        in_doubt = replace(batch, state=BatchState.IN_DOUBT, in_doubt_at=START, candidates=("a", "b"))
        scene.store.update_batch(scene.lease, in_doubt)
        assert scene.rival.record_created(answered_create(batch)) is True
        assert scene.store.open_batches() == [replace(answered_create(batch), in_doubt_at=START)]
        assert scene.store.release(scene.lease, batch.batch_id) == 0

    def test_it_is_the_same_twice(self, scene: Scene, look: Look) -> None:
        """True again, and no change, also when more is known of it by then, or when it has ended."""
        scene.enqueue_alike(1)
        batch = scene.claimed()
        assert scene.store.record_created(answered_create(batch))
        ended = replace(answered_create(batch), ended_at=START + timedelta(hours=1))
        scene.store.update_batch(scene.lease, ended)
        assert look().record_created(answered_create(batch)) is True
        assert look().open_batches() == [ended]
        scene.settle_all(ended)
        assert look().record_created(answered_create(batch)) is True
        assert look().open_batches() == []

    def test_of_a_batch_that_was_given_up_it_is_refused(self, scene: Scene, look: Look) -> None:
        """Its requests may be in another batch by now: False, and no change."""
        scene.enqueue_alike(2)
        batch = scene.claimed()
        scene.store.release(scene.lease, batch.batch_id)
        other = scene.claimed()
        before = scene.snapshot()
        assert look().record_created(answered_create(batch)) is False
        assert scene.snapshot() == before
        assert look().known_batches(["msgbatch_1"]) == set()
        assert look().open_batches() == [other]

    def test_of_a_batch_that_was_found_as_another_it_is_refused(self, scene: Scene) -> None:
        """One of the two was created by mistake; the one that is worked on stays."""
        scene.enqueue_alike(1)
        batch = scene.claimed()
        scene.store.update_batch(scene.lease, answered_create(batch, "msgbatch_found"))
        assert scene.rival.record_created(answered_create(batch)) is False
        assert scene.store.open_batches() == [answered_create(batch, "msgbatch_found")]

    def test_of_an_unknown_batch_it_is_refused(self, scene: Scene) -> None:
        """One that was pruned, perhaps."""
        scene.enqueue_alike(1)
        batch = scene.claimed()
        assert scene.store.record_created(replace(answered_create(batch), batch_id="never")) is False


class InFlightContract:
    """What the API has is never taken back."""

    @pytest.mark.parametrize("state", [BatchState.CLAIMED, BatchState.IN_DOUBT])
    def test_it_stays_in_flight(self, scene: Scene, look: Look, state: BatchState) -> None:
        """A late word that says less changes nothing at all."""
        scene.enqueue_alike(1)
        batch = scene.claimed()
        scene.rival.record_created(answered_create(batch))
        scene.store.update_batch(scene.lease, replace(batch, state=state, in_doubt_at=START))
        assert look().open_batches() == [answered_create(batch)]

    def test_it_is_never_released(self, scene: Scene, look: Look) -> None:
        """Nothing changes, and the answer is 0; its answers count as before."""
        (request_id,) = scene.enqueue_alike(1)
        batch = scene.claimed()
        scene.rival.record_created(answered_create(batch))
        before = scene.snapshot()
        assert scene.store.release(scene.lease, batch.batch_id) == 0
        assert scene.snapshot(look()) == before
        assert scene.settle(batch, [answered(request_id)]) == (1, 0, 0, 0)


class FindBatchContract:
    """`find_batch` and `known_batches`."""

    def test_a_batch_is_found_by_both_ids(self, scene: Scene, look: Look) -> None:
        """As long as it is open, and when it is closed."""
        scene.enqueue_alike(1)
        batch = scene.claimed()
        assert look().find_batch(batch.batch_id) == batch
        assert look().find_batch("msgbatch_1") is None
        scene.store.record_created(answered_create(batch))
        for name in (batch.batch_id, "msgbatch_1"):
            assert look().find_batch(name) == answered_create(batch)
        scene.settle(batch, [answered(request_id) for request_id in scene.inside(batch)])
        scene.store.finish(scene.lease, replace(answered_create(batch), ended_at=START))
        ended = replace(answered_create(batch), state=BatchState.ENDED, ended_at=START)
        for name in (batch.batch_id, "msgbatch_1"):
            assert look().find_batch(name) == ended

    def test_a_released_batch_is_found(self, scene: Scene, look: Look) -> None:
        """By our id; the API has none."""
        scene.enqueue_alike(1)
        batch = scene.claimed()
        scene.store.release(scene.lease, batch.batch_id)
        assert look().find_batch(batch.batch_id) == replace(batch, state=BatchState.RELEASED)

    @pytest.mark.parametrize("name", ["batch-9", "msgbatch_9", "", "b0000000001", "0000000001", "1"])
    def test_what_was_never_a_batch_is_not_found(self, scene: Scene, name: str) -> None:
        """Whatever the text is."""
        scene.enqueue_alike(1)
        scene.store.record_created(answered_create(scene.claimed()))
        assert scene.store.find_batch(name) is None
        assert scene.store.known_batches([name]) == set()

    def test_batches_of_the_store_are_known(self, scene: Scene, look: Look) -> None:
        """However their ids came to it, open and closed; our own ids are not the API's."""
        scene.enqueue_alike(3)
        recorded, adopted, claimed = (scene.claimed(max_requests=1) for _ in range(3))
        scene.rival.record_created(answered_create(recorded, "msgbatch_r"))
        scene.store.update_batch(scene.lease, answered_create(adopted, "msgbatch_a"))
        scene.settle_all(answered_create(adopted, "msgbatch_a"))
        asked = ["msgbatch_r", "msgbatch_a", "msgbatch_x", claimed.batch_id, ""]
        assert look().known_batches(asked) == {"msgbatch_r", "msgbatch_a"}
        assert look().known_batches([]) == set()

    def test_a_batch_has_one_id_at_the_api(self, scene: Scene, look: Look) -> None:
        """One that was put right is not known by the wrong one any more."""
        scene.enqueue_alike(1)
        batch = scene.claimed()
        scene.store.update_batch(scene.lease, answered_create(batch, "msgbatch_wrong"))
        scene.store.update_batch(scene.lease, answered_create(batch, "msgbatch_right"))
        assert look().known_batches(["msgbatch_wrong", "msgbatch_right"]) == {"msgbatch_right"}
        assert look().find_batch("msgbatch_wrong") is None

    def test_all_that_is_known_of_a_doubt_is_kept(self, scene: Scene, look: Look) -> None:
        """When it began, which batches it may be, when a cancel was asked for."""
        scene.enqueue_alike(1)
        doubted = replace(
            scene.claimed(),
            state=BatchState.IN_DOUBT,
            in_doubt_at=START + timedelta(microseconds=1),
            candidates=("msgbatch_1", "msgbatch_2"),
            cancel_asked_at=START + timedelta(microseconds=2),
        )
        scene.store.update_batch(scene.lease, doubted)
        assert look().open_batches() == [doubted]


__all__ = ["CreatedContract", "FindBatchContract", "InFlightContract"]
