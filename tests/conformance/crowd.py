"""What a store promises when many use it at once: nothing is lost, nothing happens twice."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING

from conformance.scene import (
    LEASE_LENGTH,
    START,
    RequestIds,
    Scene,
    again,
    answered,
    cancel_queued,
    drain_log,
    live,
)
from llmrouter.domain.requests import OutcomeKind, RequestState

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmrouter.domain.batches import Settled
    from llmrouter.ports import Lease, Store

THREADS = 8


class CrowdContract:
    """Threads and instances side by side."""

    def test_nothing_is_lost_and_nothing_happens_twice(self, scene: Scene) -> None:
        """Eight threads enqueue through two instances while an engine claims, retries and settles."""
        stores = [scene.store, scene.rival]
        lease, ready = scene.lease, threading.Barrier(THREADS + 1)
        with ThreadPoolExecutor(THREADS) as pool:
            producers = [
                pool.submit(_produce, scene, stores[thread % 2], RequestIds(seed=100 + thread), ready)
                for thread in range(THREADS)
            ]
            ready.wait()
            while not all(producer.done() for producer in producers):
                _work(scene, lease)
        while _work(scene, lease):
            pass
        expected = [request_id for producer in producers for request_id in producer.result()]
        log = [outcome.request_id for outcome in drain_log(scene.store, scene.log_start)]
        assert len(expected) == len(set(expected))
        assert Counter(log) == Counter(expected)
        outcomes = list(stores[1].outcomes(expected))
        assert sorted(outcome.request_id for outcome in outcomes) == sorted(expected)
        assert {outcome.attempts for outcome in outcomes} == {1, 2}
        assert scene.store.waiting() == []
        assert scene.store.open_batches() == []

    def test_one_key_is_one_request(self, scene: Scene) -> None:
        """Threads that use the same keys at once all get the same requests."""
        stores = [scene.store, scene.rival]
        ready = threading.Barrier(THREADS)

        def submit(thread: int) -> list[tuple[str, bool]]:
            new_id = RequestIds(seed=100 + thread)
            ready.wait()
            answers = []
            for number in range(20):
                request = scene.request(request_id=new_id(), key=f"k{number}", body=b'{"n":%d}' % number)
                (accepted,) = stores[thread % 2].enqueue([request])
                answers.append((accepted.request_id, accepted.duplicate))
            return answers

        with ThreadPoolExecutor(THREADS) as pool:
            answers = list(pool.map(submit, range(THREADS)))
        for of_key in zip(*answers, strict=True):
            assert len({request_id for request_id, _ in of_key}) == 1
            assert sorted(duplicate for _, duplicate in of_key) == [False] + [True] * (THREADS - 1)
        assert [line.request_count for line in scene.store.waiting()] == [20]

    def test_a_request_is_canceled_or_claimed(self, scene: Scene) -> None:
        """Never both: of all threads that cancel it and the engine that claims it, one wins."""
        request_ids = scene.enqueue_alike(120)
        ready = threading.Barrier(4 + 1)

        def cancel(request_ids: list[str]) -> list[str]:
            ready.wait()
            return [request_id for request_id in request_ids if cancel_queued(scene.store, request_id)]

        with ThreadPoolExecutor(4) as pool:
            canceling = [pool.submit(cancel, list(reversed(request_ids))) for _ in range(4)]
            ready.wait()
            claimed = []
            while batch := scene.claim(max_requests=10):
                claimed += list(scene.inside(batch))
        canceled = [request_id for future in canceling for request_id in future.result()]
        assert sorted(claimed + canceled) == sorted(request_ids)
        log = drain_log(scene.store, scene.log_start)
        assert sorted(outcome.request_id for outcome in log) == sorted(canceled)
        assert {outcome.kind for outcome in log} <= {OutcomeKind.CANCELED}
        views = [view for request_id in claimed if (view := scene.store.find(request_id))]
        assert {view.state for view in views} <= {RequestState.CLAIMED}

    def test_a_race_has_one_winner(self, scene: Scene) -> None:
        """A batch and live calls answer the same requests at once: one outcome each, the rest is waste."""
        request_ids = scene.enqueue_alike(120)
        batch = scene.claimed()
        going = scene.raced(batch)
        ready = threading.Barrier(4 + 1)

        def answer(thread: int) -> list[Settled]:
            mine = request_ids[:: 1 if thread % 2 else -1]
            store = (scene.store, scene.rival)[thread // 2]
            ready.wait()
            return [
                store.answer([live(request_id) for request_id in mine[start : start + 10]], START)
                for start in range(0, 120, 10)
            ]

        with ThreadPoolExecutor(4) as pool:
            answering = [pool.submit(answer, thread) for thread in range(4)]
            ready.wait()
            settled = [
                scene.store.settle(scene.lease, batch.batch_id, [answered(request_id)], START)
                for request_id in request_ids[60:] + request_ids[:60]
            ]
            scene.store.release(scene.lease, going.batch_id)
            settled += [one for future in answering for one in future.result()]
        log = drain_log(scene.store, scene.log_start)
        assert sorted(outcome.request_id for outcome in log) == sorted(request_ids)
        assert sum(one.outcomes for one in settled) == 120
        assert sum(one.wasted for one in settled) == 4 * 120
        assert scene.store.waiting() == []
        tally = scene.tally_of()
        assert sum(tally.settled.values()) == 120
        assert tally.wasted == sum(one.wasted for one in settled[120:])

    def test_one_of_many_gets_the_lease(self, scene: Scene) -> None:
        """Each time it has run out, one of all that ask at once gets it."""
        stores = [scene.store, scene.rival]
        fences = [[lease.fence for lease in _ask_at_once(stores, turn) if lease] for turn in range(5)]
        assert [len(given) for given in fences] == [1] * 5
        assert fences == sorted(fences)
        assert len({given[0] for given in fences}) == 5

    def test_a_flush_request_is_taken_by_one(self, scene: Scene) -> None:
        """Threads of the engine that ask at once do not both get it."""
        lease, ready = scene.lease, threading.Barrier(THREADS)

        def take(_: int) -> bool:
            ready.wait()
            return scene.store.take_flush_request(lease)

        for _ in range(5):
            scene.store.request_flush()
            with ThreadPoolExecutor(THREADS) as pool:
                assert sum(pool.map(take, range(THREADS))) == 1


def _produce(scene: Scene, store: Store, new_id: Callable[[], str], ready: threading.Barrier) -> list[str]:
    """Enqueues 25 calls of one to five requests; their ids."""
    produced = []
    ready.wait()
    for call in range(25):
        requests = [
            scene.request(request_id=new_id(), due=timedelta(hours=call % 3), site=f"s:{call % 2}")
            for _ in range(1 + call % 5)
        ]
        produced += [accepted.request_id for accepted in store.enqueue(requests)]
    return produced


def _work(scene: Scene, lease: Lease) -> bool:
    """Claims a batch, retries its first attempts' every third request, settles the rest."""
    batch = scene.claim(max_requests=17)
    if batch is None:
        return False
    answers = [
        again(request_id) if place % 3 == 0 and request_id not in batch.attempts else answered(request_id)
        for place, request_id in enumerate(scene.inside(batch))
    ]
    scene.settle(batch, answers)
    scene.store.finish(lease, batch)
    return True


def _ask_at_once(stores: list[Store], turn: int) -> list[Lease | None]:
    """What holders get that all ask when the lease of the turn before has run out."""
    ready = threading.Barrier(THREADS)

    def ask(thread: int) -> Lease | None:
        ready.wait()
        return stores[thread % len(stores)].acquire_lease(
            f"holder-{turn}-{thread}", START + turn * LEASE_LENGTH, LEASE_LENGTH
        )

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(ask, range(THREADS)))


__all__ = ["CrowdContract"]
