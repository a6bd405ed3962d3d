"""What a store promises of whoever works on it: leases lost at once, and words left for others."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from conformance.scene import LEASE_LENGTH, MOMENT, START, Scene, answered
from llmrouter.domain.reporting import EngineReport, EngineView, Hold, HoldCause
from llmrouter.errors import LeaseLostError

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmrouter.ports import Store

    Look = Work = Callable[[], Store]

REPORT = EngineReport(
    at=START + MOMENT,
    holds=(
        Hold(
            lane_id="lane-a",
            since=START,
            until=START + timedelta(minutes=5),
            cause=HoldCause.SPENT,
            reason="You have reached your limit — é",
            refusals=3,
        ),
    ),
    problems={"collect": "the API could not be asked"},
)


class EngineContract:
    """`engine`, `report` and `check_lease`."""

    def test_nobody_works_on_a_new_store(self, scene: Scene) -> None:
        """Nor on one whose lease was given back."""
        assert scene.store.engine() is None
        lease = scene.lease
        scene.store.report(lease, REPORT)
        scene.store.release_lease(lease)
        assert scene.store.engine() is None
        assert scene.rival.engine() is None

    def test_the_holder_is_named(self, scene: Scene) -> None:
        """And until when, in every process, also when that has passed."""
        scene.taken_lease("one")
        for store in (scene.store, scene.rival):
            assert store.engine() == EngineView(holder="one", until=START + LEASE_LENGTH, report=None)
        scene.store.acquire_lease("one", START + LEASE_LENGTH * 3, LEASE_LENGTH)
        view = scene.rival.engine()
        assert view is not None
        assert view.until == START + LEASE_LENGTH * 4

    def test_its_last_words_are_there(self, scene: Scene) -> None:
        """All of them, for every process; the last replace the others."""
        scene.store.report(scene.lease, EngineReport(at=START))
        scene.store.report(scene.lease, REPORT)
        for store in (scene.store, scene.rival):
            view = store.engine()
            assert view is not None
            assert view.report == REPORT

    def test_words_are_those_of_their_holder(self, scene: Scene) -> None:
        """The next one has said nothing yet, and a late one says nothing any more."""
        late = scene.lease
        scene.store.report(late, REPORT)
        scene.hand_over()
        view = scene.rival.engine()
        assert view is not None
        assert (view.holder, view.report) == (scene.lease.holder, None)
        with pytest.raises(LeaseLostError):
            scene.rival.report(late, REPORT)
        assert scene.store.engine() == view

    def test_a_lease_is_checked(self, scene: Scene) -> None:
        """Nothing happens as long as it is not lost, however late it is."""
        late = scene.lease
        scene.store.check_lease(late)
        scene.hand_over()
        scene.store.check_lease(scene.lease)
        with pytest.raises(LeaseLostError):
            scene.rival.check_lease(late)

    def test_a_lease_that_is_given_back_is_lost_at_once(self, scene: Scene) -> None:
        """Though nobody has followed: a thread that was in the middle of it changes nothing any more."""
        (request_id,) = scene.enqueue_alike(1)
        batch = scene.claimed()
        scene.store.release_lease(scene.lease)
        with pytest.raises(LeaseLostError):
            scene.store.check_lease(scene.lease)
        with pytest.raises(LeaseLostError):
            scene.settle(batch, [answered(request_id)])
        again_mine = scene.taken_lease(scene.lease.holder)
        assert again_mine.fence > scene.lease.fence
        with pytest.raises(LeaseLostError):
            scene.store.check_lease(scene.lease)

    @pytest.mark.parametrize("back", [timedelta(0), MOMENT, timedelta(days=400)])
    def test_a_clock_that_was_set_back_blocks_nobody(self, scene: Scene, back: timedelta) -> None:
        """A lease that seems to last longer than any lease does has run out."""
        first = scene.taken_lease("one")
        second = scene.rival.acquire_lease("two", START - back, LEASE_LENGTH)
        assert (second is not None) == (back > timedelta(0))
        if second is not None:
            assert second.fence > first.fence


__all__ = ["EngineContract"]
