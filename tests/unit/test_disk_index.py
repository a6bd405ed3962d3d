"""What the holder of the lease keeps in memory of a disk store, against all that others do meanwhile."""

from __future__ import annotations

import copy
import threading
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from conformance.scene import START, Scene, again, answered, cancel_queued, posted_ids
from llmrouter.domain.batches import BatchState
from llmrouter.domain.packing import BatchLimits
from llmrouter.stores import _pruning
from llmrouter.stores._layout import SEGMENT_BYTES
from llmrouter.stores.disk import DiskStore
from support.stores import count_reads

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


LIMITS = BatchLimits()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """An empty store, and the same as another process has it."""
    scene = Scene(lambda: DiskStore(tmp_path / "queue"))
    yield scene
    scene.close()


def between_look_and_claim(scene: Scene, monkeypatch: pytest.MonkeyPatch, act: Any) -> None:
    """Lets others do something once, when the next claim has looked and not yet begun."""
    engine = scene.store._engine  # type: ignore[attr-defined]
    look = engine.fresh_backlog

    def racing(lease: Any = None) -> Any:
        backlog = look(lease)
        monkeypatch.setattr(engine, "fresh_backlog", look)
        act()
        return backlog

    scene.store.waiting()
    monkeypatch.setattr(engine, "fresh_backlog", racing)


def test_what_comes_and_goes_during_a_claim_leaves_no_ghost(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Enqueued and canceled between the index's look and the claim's transaction; others stay."""
    (first,) = scene.enqueue_alike(1)
    lease = scene.lease
    requests = [scene.request() for _ in range(3)]
    gone, *stay = [request.request_id for request in requests]

    def act() -> None:
        scene.rival.enqueue(requests)
        assert cancel_queued(scene.rival, gone) == 1

    (line,) = scene.store.waiting()
    between_look_and_claim(scene, monkeypatch, act)
    batch = scene.store.claim(lease, line, LIMITS, batch_id="batch-a", nonce="a" * 10, now=START)
    assert batch is not None
    assert scene.inside(batch) == {first}
    (line,) = scene.store.waiting()
    assert line.request_count == 2
    stay += scene.enqueue_alike(1)
    assert scene.inside(scene.claimed()) == set(stay)
    assert scene.store.waiting() == []


class TestPruning:
    """A plan reads what it must, and nobody waits for it."""

    def test_young_outcomes_are_read_in_portions(self, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
        """And each of them once, until it is old."""
        monkeypatch.setattr(_pruning, "_READ_AHEAD", 4)
        for _ in range(10):
            scene.settled(scene.request())
        read: list[int] = []
        rows = scene.store._rows  # type: ignore[attr-defined]
        find = rows.find_chunk
        monkeypatch.setattr(rows, "find_chunk", lambda number: read.append(number) or find(number))
        for expected in (4, 8, 10, 10):
            assert scene.store.prune(scene.lease, START, 1000, undelivered=True) == 0
            assert read == list(range(expected))

    def test_a_long_plan_keeps_nobody_waiting(self, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
        """The lease is renewed, and more, while the old part of the log is read."""
        scene.settled(scene.request())
        lease, entered, go_on = scene.lease, threading.Event(), threading.Event()
        pruner = scene.store._engine._pruner  # type: ignore[attr-defined]
        plan = pruner.plan

        def slow(*arguments: Any, **how: Any) -> Any:
            entered.set()
            assert go_on.wait(30)
            return plan(*arguments, **how)

        monkeypatch.setattr(pruner, "plan", slow)
        pruned: list[int] = []
        soon = START + timedelta(days=1)
        pruning = threading.Thread(
            target=lambda: pruned.append(scene.store.prune(lease, soon, 10, undelivered=True))
        )
        pruning.start()
        assert entered.wait(30)
        renewed: list[object] = []
        renewing = threading.Thread(target=lambda: renewed.append(scene.taken_lease("engine-1")))
        renewing.start()
        renewing.join(10)
        go_on.set()
        pruning.join(30)
        assert (renewed, pruned) == ([lease], [1])


class TestFragments:
    """Every second request of some segments is retried."""

    def test_a_segment_is_read_once(self, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
        """Not once for each of its pieces: for the index, after a restart, and for the body."""
        number, segments = 300, 3
        ids = scene.enqueue_alike(number, size=segments * SEGMENT_BYTES // number)
        batch = scene.claimed()
        reads = count_reads(scene.store, monkeypatch, "q")
        scene.settle(batch, [again(one) if place % 2 else answered(one) for place, one in enumerate(ids)])
        scene.store.finish(scene.lease, batch)
        assert len(reads) <= 2 * segments
        again_batch = scene.claimed()
        reads.clear()
        posted = scene.posted(again_batch)
        assert sorted(posted_ids(posted, again_batch.nonce)) == ids[1::2]
        assert len(reads) <= segments + 1
        scene.reopen()
        reads = count_reads(scene.store, monkeypatch, "q")
        assert scene.store.release(scene.lease, again_batch.batch_id) == number // 2
        assert len(reads) <= 3 * segments
        assert [line.body_bytes for line in scene.store.waiting()] == [again_batch.body_bytes]


def test_earlier_attempts_are_read_when_they_are_asked_for(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch may have 100,000 of them, and open batches are listed every second."""
    ids = scene.enqueue_alike(2000)
    first = scene.claimed()
    scene.settle(first, [again(one) for one in ids])
    scene.store.finish(scene.lease, first)
    batch = scene.claimed()
    assert len(batch.attempts) == 2000
    cache = scene.store._cache  # type: ignore[attr-defined]
    assert len(cache.get("b0000000002")) < 1000
    reads = count_reads(scene.store, monkeypatch, "a")
    (listed,) = scene.store.open_batches()
    scene.store.update_batch(scene.lease, replace(listed, state=BatchState.IN_DOUBT, in_doubt_at=START))
    (listed,) = scene.store.open_batches()
    assert reads == []
    assert [listed.attempts[one] for one in ids] == [1] * 2000
    assert listed.attempts == batch.attempts
    assert copy.deepcopy(listed) == listed
    assert reads == ["a0000000002"]
    scene.store.update_batch(scene.lease, replace(listed, attempts={}))
    assert scene.store.open_batches() == scene.rival.open_batches() == [listed]


def test_earlier_attempts_go_with_their_batch(scene: Scene) -> None:
    """A batch that was read before the prune has none then."""
    (request_id,) = scene.enqueue_alike(1)
    first = scene.claimed()
    scene.settle(first, [again(request_id)])
    scene.store.finish(scene.lease, first)
    scene.settle_all(scene.claimed())
    ended = scene.store.find_batch("batch-2")
    assert ended is not None
    for expected in (1, 0):
        assert scene.store.prune(scene.lease, START + timedelta(days=1), 10, undelivered=True) == expected
    assert scene.store.find_batch("batch-2") is None
    assert not ended.attempts
    assert not [key for key in scene.store._cache.all_keys() if key.startswith(("a", "b"))]  # type: ignore[attr-defined]
