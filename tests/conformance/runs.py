"""What a store says of runs."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import TYPE_CHECKING, TypeAlias

import pytest

from conformance.scene import MOMENT, START, again, answered, cancel_queued
from llmrouter.domain.requests import OutcomeKind
from llmrouter.domain.runs import RunProgress

if TYPE_CHECKING:
    from collections.abc import Callable

    from conformance.scene import Scene
    from llmrouter.ports import Store

    Look: TypeAlias = "Callable[[], Store]"

LATER = START + timedelta(hours=1)


def key_of(name: str, number: int, *, of_file: bool = False) -> str:
    """The key of a request of a run: of a block, or of a line of ``llmrouter run``."""
    return f"run:{name}:{number}:{'ab' * 32}" if of_file else f"run:{name}:{'0f' * 16}:{number}"


class RunsContract:
    """`runs`."""

    def test_an_empty_store_has_no_runs(self, scene: Scene, look: Look) -> None:
        """Nor has one whose keys are the callers' own."""
        assert look().runs() == []
        keys = ["mine", "run:", "run:x", "run:a:b:c", f"run:{'0f' * 16}:1", f"Run:n:{'0f' * 16}:1"]
        scene.enqueue(*(scene.request(key=key) for key in keys), scene.request())
        assert look().runs() == []

    @pytest.mark.parametrize("of_file", [False, True])
    @pytest.mark.parametrize("name", ["nightly", "a:b:c", ":", f"x:{'0f' * 16}:1", "é *?[]\n", "run:"])
    def test_a_run_is_told_by_its_name(self, scene: Scene, look: Look, name: str, of_file: bool) -> None:
        """Whatever it is called."""
        scene.enqueue(*(scene.request(key=key_of(name, number, of_file=of_file)) for number in (1, 2)))
        (run,) = look().runs()
        assert (run.name, run.requests, run.queued) == (name, 2, 2)

    def test_each_request_is_counted_where_it_is(self, scene: Scene, look: Look) -> None:
        """Queued, in a batch, or as it ended; from the earliest to the latest."""
        requests = [
            scene.request(key=key_of("n", number), due=timedelta(hours=number), accepted_at=START - MOMENT)
            for number in range(1, 9)
        ]
        ids = scene.enqueue(*requests[:4]) + scene.enqueue(*requests[4:])
        weekly = scene.request(key=key_of("n", 9), latency="weekly", due=timedelta(days=7))
        scene.enqueue(weekly, scene.request(latency="weekly"))
        batch = scene.claimed(max_requests=4)
        answers = [answered(ids[0]), answered(ids[1], OutcomeKind.ERRORED), again(ids[2])]
        scene.settle(batch, answers, LATER)
        cancel_queued(scene.store, ids[7], now=START)
        assert look().runs() == [
            RunProgress(
                name="n",
                latencies=("daily", "weekly"),
                queued=5,
                in_batches=1,
                answered=1,
                failed=1,
                canceled=1,
                first_accepted_at=START - MOMENT,
                last_answered_at=LATER,
            )
        ]

    def test_what_goes_live_is_on_its_way(self, scene: Scene, look: Look) -> None:
        """As in any batch."""
        scene.enqueue(scene.request(key=key_of("n", 1)))
        scene.going_live()
        (run,) = look().runs()
        assert (run.queued, run.in_batches) == (0, 1)

    def test_swept_requests_are_counted_and_pruned_ones_are_not(self, scene: Scene, look: Look) -> None:
        """A run is gone with the last of its answers."""
        scene.settled(*(scene.request(key=key_of("n", number)) for number in range(1, 4)))
        scene.store.sweep(scene.lease, 10)
        (run,) = look().runs()
        assert (run.requests, run.answered, run.unsettled) == (3, 3, 0)
        while scene.store.prune(scene.lease, START + MOMENT, 10, undelivered=True):
            pass
        assert look().runs() == []

    def test_the_run_that_began_last_is_first(self, scene: Scene, look: Look) -> None:
        """Of those that began at once, by name."""
        for name, hours in (("b", 0), ("c", 1), ("a", 0), ("c", 0)):
            scene.enqueue(
                scene.request(key=key_of(name, hours + 1), accepted_at=START + timedelta(hours=hours))
            )
        scene.enqueue(scene.request(key=key_of("d", 1), accepted_at=LATER))
        assert [run.name for run in look().runs()] == ["d", "a", "b", "c"]

    def test_a_request_that_ends_meanwhile_is_counted_once(self, scene: Scene) -> None:
        """Not as queued and as answered, and not as neither."""
        ids = scene.enqueue(*(scene.request(key=key_of("n", number)) for number in range(40)))
        batch = scene.claimed(max_requests=20)
        inside = scene.inside(batch)
        lease = scene.lease

        def end() -> None:
            for request_id in ids:
                if request_id in inside:
                    scene.store.settle(lease, batch.batch_id, [answered(request_id)], START)
                else:
                    cancel_queued(scene.store, request_id)

        ending = threading.Thread(target=end)
        ending.start()
        seen = []
        while ending.is_alive() or not seen:
            seen += scene.rival.runs()
        ending.join()
        assert {run.requests for run in seen} == {40}
        assert all(min(run.queued, run.in_batches) >= 0 for run in seen)
        (run,) = scene.rival.runs()
        assert (run.answered, run.canceled) == (20, 20)
