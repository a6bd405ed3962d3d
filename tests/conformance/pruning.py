"""What a store promises of forgetting: what is over and told goes, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from conformance.recording import answered_create
from conformance.scene import (
    MOMENT,
    START,
    Scene,
    again,
    answered,
    cancel_queued,
    drain_log,
    framed,
    posted_ids,
)
from llmrouter.domain.batches import Canceled
from llmrouter.domain.requests import Accepted

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmrouter.domain.batches import Batch
    from llmrouter.ports import Store

    Look = Work = Callable[[], Store]

AFTER = START + MOMENT
"""Just after what a scene settles without saying when."""


def prune_all(scene: Scene, before: object = AFTER, *, undelivered: bool = False, limit: int = 1000) -> int:
    """As a janitor does: until nothing is left to be pruned; how many requests went."""
    total = 0
    while gone := scene.store.prune(scene.lease, before, limit, undelivered=undelivered):  # type: ignore[arg-type]
        total += gone
    return total


class PruneContract:
    """`prune`."""

    def test_a_pruned_request_was_never_there(self, scene: Scene, work: Work, look: Look) -> None:
        """By id, by key, by outcome, in the log, in numbers."""
        ids = scene.settled(*(scene.request(key=f"k{place}") for place in range(5)))
        (canceled,) = scene.enqueue_alike(1)
        cancel_queued(scene.store, canceled)
        ids.append(canceled)
        scene.store.deliver(ids)
        work()
        assert prune_all(scene) == 6
        store = look()
        assert [store.find(request_id) for request_id in ids] == [None] * 6
        assert list(store.outcomes(ids)) == []
        assert [store.find_key(f"k{place}") for place in range(5)] == [None] * 5
        assert list(store.find_keys("*")) == []
        assert drain_log(store, scene.log_start) == []
        assert store.cancel(ids, START, in_batches=True) == Canceled(canceled=0, asked=0, settled=0)
        store.deliver(ids)
        assert prune_all(scene, undelivered=True) == 0

    def test_what_nobody_was_told_stays(self, scene: Scene, work: Work) -> None:
        """Until it is said that it need not."""
        told, untold = scene.settled(scene.request()), scene.settled(scene.request())
        scene.store.deliver(told)
        before = scene.store.find(untold[0])
        assert before is not None
        work()
        assert prune_all(scene) == 1
        assert scene.store.find(untold[0]) == before
        assert [outcome.request_id for outcome in scene.store.outcomes(told + untold)] == untold
        assert [outcome.request_id for outcome in drain_log(scene.store, scene.log_start)] == untold
        work()
        assert prune_all(scene, undelivered=True) == 1
        assert scene.store.find(untold[0]) is None

    def test_what_is_told_later_goes_later(self, scene: Scene) -> None:
        """A store may remember why something had to stay; it looks again."""
        untold, told = scene.settled(scene.request()), scene.settled(scene.request())
        scene.store.deliver(told)
        assert prune_all(scene) == 1
        assert prune_all(scene) == 0
        scene.rival.deliver(untold)
        assert prune_all(scene) == 1
        assert scene.store.find(untold[0]) is None

    def test_what_ended_too_late_stays(self, scene: Scene) -> None:
        """Before an instant, not at it."""
        old, young = scene.enqueue_alike(1), None
        scene.settle(scene.claimed(), [answered(old[0])], START - MOMENT)
        young = scene.settled(scene.request())
        scene.store.deliver([*old, *young])
        assert prune_all(scene, START) == 1
        assert scene.store.find(old[0]) is None
        assert scene.store.find(young[0]) is not None

    def test_nothing_unsettled_is_touched(self, scene: Scene, work: Work) -> None:
        """Neighbors of what is pruned wait on with their bodies and their keys, and leave when due."""
        requests = [scene.request(size=60 + place, key=f"k{place}") for place in range(12)]
        ids = scene.enqueue(*requests)
        bodies = {request.request_id: request.body for request in requests}
        batch = scene.claimed(max_requests=8)
        inside = sorted(scene.inside(batch))
        scene.settle(batch, [answered(request_id) for request_id in inside[:4]])
        queued = sorted(set(ids) - set(inside))
        cancel_queued(scene.store, *queued[:2])
        gone = set(inside[:4]) | set(queued[:2])
        assert work().prune(scene.lease, AFTER, 100, undelivered=True) == 6
        assert prune_all(scene, undelivered=True) == 0
        for request in requests:
            assert (scene.store.find(request.request_id) is None) == (request.request_id in gone)
            found = scene.store.find_key(request.key or "")
            assert found == (None if request.request_id in gone else request.request_id)
        assert scene.inside(batch) == set(inside[4:])
        assert [known.batch_id for known in scene.store.open_batches()] == [batch.batch_id]
        answers = [answered(inside[0]), again(inside[4]), *map(answered, inside[5:])]
        assert scene.settle(batch, answers) == (3, 1, 1, 0)
        scene.store.finish(scene.lease, batch)
        work()
        second = scene.claimed()
        assert scene.inside(second) == {inside[4], *queued[2:]}
        posted = scene.posted(second)
        order = posted_ids(posted, second.nonce)
        assert posted == framed(second.nonce, [(one, bodies[one]) for one in order])

    def test_a_prune_goes_on_where_it_stopped(self, scene: Scene) -> None:
        """A limit is about how many go at once; what is stored together goes together."""
        for number in (1, 1, 1, 4, 1):
            scene.settled(*(scene.request() for _ in range(number)))
        gone = [scene.store.prune(scene.lease, AFTER, 2, undelivered=True) for _ in range(6)]
        assert sum(gone) == 8
        assert gone[0] == 2
        assert gone[-1] == 0

    def test_a_key_of_a_pruned_request_is_free(self, scene: Scene, look: Look) -> None:
        """It may stand for another body then; the old request stays forgotten."""
        (old,) = scene.settled(scene.request(key="k"))
        assert prune_all(scene, undelivered=True) == 1
        new = scene.request(key="k", size=77, latency="hourly")
        assert look().enqueue([new]) == [
            Accepted(
                request_id=new.request_id,
                accepted_at=new.accepted_at,
                deadline_at=new.deadline_at,
                duplicate=False,
            )
        ]
        assert look().find_key("k") == new.request_id
        assert look().find(old) is None

    def test_a_reader_of_the_log_steps_over_it(self, scene: Scene, look: Look) -> None:
        """From any cursor it reads what is left, each once, and ends at the end."""
        cursors, kept = [scene.log_start], []
        for turn in range(6):
            ids = scene.settled(scene.request(), scene.request())
            if turn % 2:
                kept += ids
            else:
                scene.store.deliver(ids)
            cursors.append(scene.store.outcome_cursor())
        assert prune_all(scene) == 6
        store = look()
        for turn, cursor in enumerate(cursors):
            log = [outcome.request_id for outcome in drain_log(store, cursor)]
            assert sorted(log) == sorted(kept[turn // 2 * 2 :])
        late = scene.settled(scene.request())
        assert [outcome.request_id for outcome in drain_log(store, cursors[-1])] == late

    def test_pages_are_used_on_after_a_prune(self, scene: Scene, work: Work) -> None:
        """Ids of a page whose first requests were forgotten are new as ever."""
        for _ in range(3):
            work()
            ids = scene.settled(scene.request(), scene.request())
            assert prune_all(scene, undelivered=True) == 2
            assert [scene.store.find(request_id) for request_id in ids] == [None, None]
        waiting = scene.enqueue_alike(2)
        assert cancel_queued(scene.rival, waiting[0]) == 1
        assert scene.inside(scene.claimed()) == {waiting[1]}

    def test_what_was_canceled_since_the_last_look_may_be_pruned(self, scene: Scene) -> None:
        """An index that has not seen the cancel yet must not claim it."""
        ids = scene.enqueue_alike(4)
        assert [line.request_count for line in scene.store.waiting()] == [4]
        scene.store.sweep(scene.lease, 1)
        cancel_queued(scene.rival, *ids[1:3])
        assert prune_all(scene, undelivered=True) == 2
        assert scene.inside(scene.claimed()) == {ids[0], ids[3]}

    def test_a_clock_in_the_future_stops_no_pruning(self, scene: Scene) -> None:
        """What was settled and claimed meanwhile stays for its years; all that came later goes."""
        years = timedelta(days=3650)
        (early,) = scene.enqueue_alike(1)
        ahead = scene.claimed(now=START + years)
        scene.settle(ahead, [answered(early)], START + years)
        scene.store.finish(scene.lease, replace(ahead, ended_at=START + years))
        later = []
        for _ in range(3):
            (request_id,) = scene.enqueue_alike(1)
            batch = scene.claimed(now=START - MOMENT)
            scene.settle(batch, [answered(request_id)])
            scene.store.finish(scene.lease, replace(batch, ended_at=START))
            later.append((request_id, batch.batch_id))
        assert prune_all(scene, undelivered=True) == 3
        assert [scene.store.find(request_id) for request_id, _ in later] == [None] * 3
        assert [scene.store.find_batch(batch_id) for _, batch_id in later] == [None] * 3
        assert scene.store.find(early) is not None
        assert scene.store.find_batch(ahead.batch_id) is not None
        assert prune_all(scene, START + years + MOMENT, undelivered=True) == 1


class PrunedBatchContract:
    """`prune` of batches."""

    @staticmethod
    def _ended(scene: Scene, ids: list[str], at: object = START) -> Batch:
        batch = answered_create(scene.claimed(max_requests=len(ids)), f"msgbatch_{ids[0]}")
        scene.store.record_created(batch)
        scene.settle(batch, [answered(request_id) for request_id in scene.inside(batch)])
        scene.store.finish(scene.lease, replace(batch, ended_at=at))  # type: ignore[arg-type]
        return batch

    def test_a_batch_goes_with_its_requests(self, scene: Scene, work: Work, look: Look) -> None:
        """It is not found any more, by neither id, and not known."""
        batch = self._ended(scene, scene.enqueue_alike(3))
        assert batch.provider_batch_id is not None
        work()
        assert prune_all(scene, undelivered=True) == 3
        for name in (batch.batch_id, batch.provider_batch_id):
            assert look().find_batch(name) is None
        assert look().known_batches([batch.provider_batch_id]) == set()
        assert look().record_created(batch) is False

    def test_all_batches_go_whatever_the_limit(self, scene: Scene) -> None:
        """A limit is of requests: when no more can go, no batch without any is left."""
        (request_id,) = scene.enqueue_alike(1)
        batches = [scene.claimed(now=START - MOMENT)]
        for _ in range(3):
            scene.settle(batches[-1], [again(request_id)])
            scene.store.finish(scene.lease, batches[-1])
            batches.append(scene.claimed(now=START - MOMENT))
        scene.settle_all(batches[-1])
        assert prune_all(scene, undelivered=True, limit=1) == 1
        assert [scene.store.find_batch(batch.batch_id) for batch in batches] == [None] * 4

    def test_a_batch_stays_as_long_as_a_request_of_it(self, scene: Scene) -> None:
        """Wherever that is now."""
        early, late = scene.enqueue_alike(2)
        batch = scene.claimed()
        scene.settle(batch, [answered(early), again(late)])
        scene.store.finish(scene.lease, replace(batch, ended_at=START))
        assert prune_all(scene, undelivered=True) == 1
        assert scene.store.find_batch(batch.batch_id) is not None
        second = scene.claimed()
        scene.settle(second, [answered(late)])
        scene.store.finish(scene.lease, replace(second, ended_at=START))
        assert prune_all(scene, undelivered=True) == 1
        assert scene.store.find_batch(batch.batch_id) is None
        assert scene.store.find_batch(second.batch_id) is None

    def test_a_batch_that_ended_too_late_stays(self, scene: Scene) -> None:
        """Though its requests were settled before, one by one."""
        batch = self._ended(scene, scene.enqueue_alike(1), AFTER)
        other = self._ended(scene, scene.enqueue_alike(1))
        assert prune_all(scene, undelivered=True) == 2
        assert scene.store.find_batch(batch.batch_id) is not None
        assert scene.store.find_batch(other.batch_id) is None

    @pytest.mark.parametrize("now", [START, START - timedelta(days=1)])
    def test_an_open_batch_stays(self, scene: Scene, now: object) -> None:
        """Though all of its requests have left it, and were forgotten."""
        (request_id,) = scene.enqueue_alike(1)
        batch = scene.claimed(now=now)
        scene.settle(batch, [answered(request_id)])
        assert prune_all(scene, undelivered=True) == 1
        assert scene.store.open_batches() == [batch]
        assert scene.settle(batch, [answered(request_id)]) == (0, 0, 1, 0)
        scene.store.finish(scene.lease, batch)
        assert scene.store.open_batches() == []

    def test_a_released_batch_goes(self, scene: Scene) -> None:
        """It has no end at the API: it is as old as its claim."""
        (request_id,) = scene.enqueue_alike(1)
        batch = scene.claimed(now=START - MOMENT)
        scene.store.release(scene.lease, batch.batch_id)
        assert prune_all(scene, undelivered=True) == 0
        assert scene.store.find_batch(batch.batch_id) is not None
        cancel_queued(scene.store, request_id)
        assert prune_all(scene, undelivered=True) == 1
        assert scene.store.find_batch(batch.batch_id) is None


__all__ = ["PruneContract", "PrunedBatchContract"]
