"""What a store promises to engines: one at a time, nothing from a late one; sweeping and closing."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from conformance.scene import (
    LANE,
    LEASE_LENGTH,
    MOMENT,
    START,
    Scene,
    again,
    answered,
    cancel_queued,
    drain_log,
    framed,
    live,
    stale_waiting,
)
from llmrouter.domain.batches import BatchState
from llmrouter.domain.blocks import Reason
from llmrouter.domain.packing import BatchLimits
from llmrouter.domain.reporting import EngineReport
from llmrouter.domain.requests import RequestState
from llmrouter.errors import LeaseLostError

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmrouter.domain.batches import Batch
    from llmrouter.ports import Lease, Store

    Look = Work = Callable[[], Store]

LATE_CALLS: dict[str, Callable[[Store, Lease, Batch, list[str]], object]] = {
    "check_lease": lambda store, lease, *_: store.check_lease(lease),
    "report": lambda store, lease, *_: store.report(lease, EngineReport(at=START)),
    "prune": lambda store, lease, *_: store.prune(lease, START + MOMENT, 10, undelivered=True),
    "take_flush_request": lambda store, lease, *_: store.take_flush_request(lease),
    "claim": lambda store, lease, *_: store.claim(
        lease, stale_waiting(LANE, "daily"), BatchLimits(), batch_id="late", nonce="9999999999", now=START
    ),
    "claim of nothing": lambda store, lease, *_: store.claim(
        lease, stale_waiting(LANE, "weekly"), BatchLimits(), batch_id="late", nonce="9999999999", now=START
    ),
    "update_batch": lambda store, lease, batch, _: store.update_batch(
        lease, replace(batch, state=BatchState.IN_FLIGHT, provider_batch_id="late")
    ),
    "release": lambda store, lease, batch, _: store.release(lease, batch.batch_id),
    "settle": lambda store, lease, batch, ids: store.settle(
        lease, batch.batch_id, [answered(ids[0]), again(ids[1])], START
    ),
    "settle of nothing": lambda store, lease, batch, _: store.settle(lease, batch.batch_id, [], START),
    "finish": lambda store, lease, batch, _: store.finish(lease, batch),
    "sweep": lambda store, lease, *_: store.sweep(lease, 10),
    "escalate_waiting": lambda store, lease, *_: store.escalate_waiting(
        lease,
        stale_waiting(LANE, "daily"),
        START + timedelta(days=9),
        batch_id="late",
        reason=Reason.STORM,
        insured=False,
        now=START,
    ),
    "escalate_waiting of nothing": lambda store, lease, *_: store.escalate_waiting(
        lease,
        stale_waiting(LANE, "weekly"),
        START,
        batch_id="late",
        reason=Reason.STORM,
        insured=False,
        now=START,
    ),
    "escalate_batch": lambda store, lease, batch, _: store.escalate_batch(
        lease, batch.batch_id, into="late", reason=Reason.STORM, insured=False, now=START
    ),
    "escalate_batch of nothing": lambda store, lease, *_: store.escalate_batch(
        lease, "never", into="late", reason=Reason.STORM, insured=False, now=START
    ),
    "note_decision": lambda store, lease, batch, _: store.note_decision(
        lease, batch.batch_id, reason=Reason.BUDGET, insured=False, recalled_at=START
    ),
    "note_decision of nothing": lambda store, lease, *_: store.note_decision(
        lease, "never", reason=Reason.BUDGET, insured=False, recalled_at=START
    ),
    "begin_calls": lambda store, lease, batch, ids: store.begin_calls(lease, batch.batch_id, ids),
    "begin_calls of nothing": lambda store, lease, *_: store.begin_calls(lease, "never", []),
    "end_calls": lambda store, lease, batch, ids: store.end_calls(lease, batch.batch_id, ids),
    "end_calls of nothing": lambda store, lease, *_: store.end_calls(lease, "never", []),
}
"""The engine's calls, made with a store, a lease, an open batch and the two requests in it."""


class LeaseContract:
    """`acquire_lease`, `release_lease` and fencing."""

    def test_a_free_lease_is_given(self, scene: Scene) -> None:
        """To whoever asks first; nobody else gets it, in any process, while it holds."""
        assert scene.taken_lease("one").holder == "one"
        assert scene.rival.acquire_lease("two", START, LEASE_LENGTH) is None
        assert scene.rival.acquire_lease("two", START + LEASE_LENGTH - MOMENT, LEASE_LENGTH) is None

    def test_a_lease_is_one_holders_also_within_a_process(self, scene: Scene) -> None:
        """Two engines that share an instance are two holders."""
        lease = scene.taken_lease("one")
        assert scene.store.acquire_lease("two", START, LEASE_LENGTH) is None
        assert scene.store.acquire_lease("one", START, LEASE_LENGTH) == lease

    def test_a_lease_that_ran_out_is_free(self, scene: Scene) -> None:
        """Another holder gets it from the instant of its end, with a larger number."""
        first = scene.taken_lease("one")
        second = scene.rival.acquire_lease("two", START + LEASE_LENGTH, LEASE_LENGTH)
        assert second is not None
        assert second.holder == "two"
        assert second.fence > first.fence
        assert scene.store.acquire_lease("one", START + LEASE_LENGTH, LEASE_LENGTH) is None

    def test_its_holder_prolongs_it(self, scene: Scene) -> None:
        """The same lease, for the length from the new instant on."""
        lease = scene.taken_lease("one")
        half = START + LEASE_LENGTH / 2
        assert scene.store.acquire_lease("one", half, LEASE_LENGTH) == lease
        assert scene.rival.acquire_lease("two", half + LEASE_LENGTH - MOMENT, LEASE_LENGTH) is None
        assert scene.rival.acquire_lease("two", half + LEASE_LENGTH, LEASE_LENGTH) is not None

    def test_a_lease_that_is_given_back_is_free_at_once(self, scene: Scene, look: Look) -> None:
        """Another holder need not wait for its end; the number still grows."""
        first = scene.taken_lease("one")
        scene.store.release_lease(first)
        second = look().acquire_lease("two", START, LEASE_LENGTH)
        assert second is not None
        assert second.fence > first.fence

    def test_giving_back_a_lost_lease_does_nothing(self, scene: Scene) -> None:
        """The lease of the holder that followed stands."""
        late = scene.lease
        scene.hand_over()
        scene.rival.release_lease(late)
        scene.rival.release_lease(late)
        assert scene.rival.acquire_lease("three", scene.now, LEASE_LENGTH) is None
        assert scene.store.take_flush_request(scene.lease) is False

    def test_numbers_grow_with_every_holder(self, scene: Scene, look: Look) -> None:
        """Also when a holder comes back."""
        fences = []
        for turn, holder in enumerate(["one", "two", "one", "three"]):
            lease = look().acquire_lease(holder, START + turn * LEASE_LENGTH, LEASE_LENGTH)
            assert lease is not None
            fences.append(lease.fence)
        assert fences == sorted(set(fences))

    def test_a_holder_works_on_while_nobody_followed(self, scene: Scene) -> None:
        """What counts is a later lease, not the time: nothing is lost by being slow."""
        request_ids = scene.enqueue_alike(2)
        late = START + timedelta(days=3)
        batch = scene.claimed(now=late)
        assert scene.settle(batch, [answered(request_id) for request_id in request_ids], late) == (2, 0, 0, 0)

    @pytest.mark.parametrize("escalated", [False, True])
    @pytest.mark.parametrize("call", LATE_CALLS)
    def test_a_late_engine_changes_nothing(self, scene: Scene, call: str, escalated: bool) -> None:
        """Each call of the engine's is refused once a later lease has been given out, whatever the batch."""
        request_ids = scene.enqueue_alike(2)
        batch = scene.going_live() if escalated else scene.claimed()
        if escalated:
            scene.begun(batch, request_ids[0])
        scene.settled(scene.request(due=timedelta(hours=1)))
        scene.enqueue_alike(3)
        scene.store.request_flush()
        late = scene.lease
        scene.hand_over()
        before = scene.snapshot()
        with pytest.raises(LeaseLostError):
            LATE_CALLS[call](scene.rival, late, batch, request_ids)
        assert scene.snapshot() == before
        assert scene.store.take_flush_request(scene.lease) is True
        assert scene.store.sweep(scene.lease, 10) == 1
        if escalated:
            calls = scene.store.begin_calls(scene.lease, batch.batch_id, request_ids)
            assert [call.again for call in calls] == [True, False]
            answers = [live(request_id) for request_id in request_ids]
            assert scene.rival.answer(answers, START).outcomes == 2
        else:
            assert scene.settle(batch, [answered(request_id) for request_id in request_ids]) == (2, 0, 0, 0)

    def test_a_late_engine_is_told_even_when_there_is_nothing_to_do(self, scene: Scene) -> None:
        """No flush request, no body to drop, nothing in a batch: the lease is lost all the same."""
        scene.enqueue_alike(1)
        batch = scene.claimed()
        scene.settle(batch, [answered(request_id) for request_id in scene.inside(batch)])
        late = scene.lease
        scene.hand_over()
        with pytest.raises(LeaseLostError):
            scene.rival.take_flush_request(late)
        with pytest.raises(LeaseLostError):
            scene.rival.sweep(late, 0)
        with pytest.raises(LeaseLostError):
            scene.rival.finish(late, batch)
        assert scene.store.open_batches() == [batch]
        scene.store.finish(scene.lease, batch)
        with pytest.raises(LeaseLostError):
            scene.rival.release(late, batch.batch_id)

    def test_a_lease_is_lost_even_when_its_follower_is_gone(self, scene: Scene) -> None:
        """A number that was followed is never good again."""
        request_ids = scene.enqueue_alike(2)
        batch = scene.claimed()
        late = scene.lease
        scene.hand_over()
        scene.store.release_lease(scene.lease)
        with pytest.raises(LeaseLostError):
            LATE_CALLS["settle"](scene.rival, late, batch, request_ids)
        assert scene.inside(batch) == set(request_ids)

    def test_the_next_engine_goes_on(self, scene: Scene, work: Work) -> None:
        """Open batches belong to the store: a new holder settles and releases them."""
        request_ids = scene.enqueue_alike(6)
        batches = [scene.claimed(max_requests=2) for _ in range(2)]
        scene.settle(batches[0], [again(request_id) for request_id in scene.inside(batches[0])][:1])
        assert work().open_batches() == batches
        inside = scene.inside(batches[0])
        assert scene.settle(batches[0], [answered(request_id) for request_id in inside]) == (1, 0, 0, 0)
        scene.store.finish(scene.lease, batches[0])
        assert work().release(scene.lease, batches[1].batch_id) == 2
        work()
        batch = scene.claimed()
        assert batch.fence == scene.lease.fence >= batches[0].fence
        assert scene.inside(batch) == set(request_ids) - inside

    def test_two_engines_take_turns(self, scene: Scene) -> None:
        """What an engine remembers of its last turn is not what the store holds by now."""
        expected = []
        for turn in range(8):
            expected += scene.enqueue_alike(5)
            scene.hand_over()
            scene.claimed(max_requests=4)
            if turn % 2:
                oldest = scene.store.open_batches()[0]
                first, *others = sorted(scene.inside(oldest))
                scene.settle(oldest, [answered(first), *map(again, others)])
                scene.store.finish(scene.lease, oldest)
                scene.store.sweep(scene.lease, 1)
        for batch in scene.store.open_batches():
            scene.hand_over()
            scene.settle_all(batch)
        scene.settle_all(scene.claimed())
        log = [outcome.request_id for outcome in drain_log(scene.store, scene.log_start)]
        assert sorted(log) == sorted(expected)


class FlushRequestContract:
    """`request_flush` and `take_flush_request`."""

    def test_without_a_request_there_is_nothing_to_take(self, scene: Scene) -> None:
        """A new store asks for nothing."""
        assert scene.store.take_flush_request(scene.lease) is False

    def test_a_flush_request_is_taken_once(self, scene: Scene, work: Work) -> None:
        """However often it was asked for, in whichever process."""
        scene.store.request_flush()
        scene.rival.request_flush()
        work()
        assert scene.store.take_flush_request(scene.lease) is True
        work()
        assert scene.store.take_flush_request(scene.lease) is False
        scene.rival.request_flush()
        assert scene.store.take_flush_request(scene.lease) is True

    def test_a_flush_request_waits_for_an_engine(self, scene: Scene) -> None:
        """It may be made before anybody holds the lease."""
        scene.store.request_flush()
        assert scene.store.take_flush_request(scene.lease) is True


class SweepContract:
    """`sweep`: prompts of settled requests go, and nothing else."""

    def test_there_is_nothing_to_sweep_while_nothing_is_settled(self, scene: Scene, work: Work) -> None:
        """Bodies of queued and claimed requests stay."""
        first = scene.request(due=timedelta(hours=1))
        second = scene.request(due=timedelta(hours=2))
        scene.enqueue(first, second)
        batch = scene.claimed(max_requests=1)
        assert work().sweep(scene.lease, 100) == 0
        scene.store.release(scene.lease, batch.batch_id)
        for request in (first, second):
            batch = scene.claimed(max_requests=1)
            assert scene.posted(batch) == framed(batch.nonce, [(request.request_id, request.body)])

    def test_settled_bodies_are_dropped(self, scene: Scene, work: Work) -> None:
        """Each once, whether answered or canceled, call after call until none is left."""
        request_ids = scene.enqueue_alike(5)
        request_ids += scene.enqueue(*(scene.request(due=timedelta(hours=1)) for _ in range(3)))
        canceled = request_ids.pop(0)
        assert cancel_queued(scene.store, canceled)
        scene.settle_all(scene.claimed())
        swept = []
        while not swept or swept[-1]:
            work()
            swept.append(scene.store.sweep(scene.lease, 3))
        assert sum(swept) == 8

    def test_a_sweep_keeps_its_limit(self, scene: Scene) -> None:
        """It stops when so many are gone; only bodies that are stored together go beyond it together."""
        for number in (1, 1, 1, 5):
            scene.settled(*(scene.request() for _ in range(number)))
        swept = [scene.store.sweep(scene.lease, 2) for _ in range(5)]
        assert swept in ([2, 2, 2, 2, 0], [2, 6, 0, 0, 0])

    def test_a_sweep_of_none_drops_none(self, scene: Scene) -> None:
        """A limit of 0 is kept."""
        scene.settled(scene.request())
        assert scene.store.sweep(scene.lease, 0) == 0
        assert scene.store.sweep(scene.lease, 1) == 1

    def test_outcomes_stay(self, scene: Scene, look: Look) -> None:
        """A swept request is found as before, by id, by key and in the log."""
        scene.settled(*(scene.request(key=f"k{number}") for number in range(4)))
        before = scene.snapshot()
        keys = [scene.store.find_key(f"k{number}") for number in range(4)]
        assert scene.store.sweep(scene.lease, 100) == 4
        assert scene.snapshot(look()) == before
        assert [look().find_key(f"k{number}") for number in range(4)] == keys

    @pytest.mark.parametrize("kept", ["queued", "claimed", "requeued"])
    def test_neighbors_of_swept_bodies_are_intact(self, scene: Scene, work: Work, kept: str) -> None:
        """Of a call some are settled and swept; the others can still be posted, byte for byte."""
        requests = [scene.request(size=60 + place) for place in range(6)]
        by_id = {request.request_id: request.body for request in requests}
        scene.enqueue(*requests)
        batch = scene.claimed(max_requests=3 if kept == "queued" else 6)
        gone = sorted(scene.inside(batch))[::2]
        scene.settle(batch, [answered(request_id) for request_id in gone])
        if kept != "claimed":
            scene.store.release(scene.lease, batch.batch_id)
        work()
        swept = scene.store.sweep(scene.lease, 100)
        assert swept <= len(gone)
        if kept == "claimed":
            scene.store.release(scene.lease, batch.batch_id)
        work()
        batch = scene.claimed()
        left = sorted(by_id.keys() - set(gone))
        assert scene.inside(batch) == set(left)
        posted = scene.posted(batch)
        assert all(by_id[request_id] in posted for request_id in left)
        assert len(posted) == scene.store.body(batch).content_length
        scene.settle_all(batch)
        work()
        assert swept + scene.store.sweep(scene.lease, 100) == 6

    def test_a_claimed_body_outlives_a_retry_and_a_sweep(self, scene: Scene) -> None:
        """A request that is queued again still has its body."""
        request = scene.request()
        scene.enqueue(request)
        scene.settle(scene.claimed(), [again(request.request_id)])
        assert scene.store.sweep(scene.lease, 10) == 0
        batch = scene.claimed()
        assert scene.posted(batch) == framed(batch.nonce, [(request.request_id, request.body)])


class CloseContract:
    """`close`, and what is there when a store is opened again."""

    def test_a_store_may_be_closed_twice(self, scene: Scene) -> None:
        """The second time nothing happens."""
        scene.enqueue_alike(1)
        scene.store.close()
        scene.store.close()

    def test_everything_is_there_for_the_next_process(self, scene: Scene, look: Look) -> None:
        """Every state, every sum, every outcome, every batch, the flush request."""
        ids = scene.enqueue(
            *(scene.request(due=timedelta(hours=hour), key=f"k{hour}") for hour in range(1, 9))
        )
        scene.enqueue_alike(3, latency="hourly")
        released, batch = scene.claimed(max_requests=2), scene.claimed(max_requests=4)
        scene.store.release(scene.lease, released.batch_id)
        scene.settle(batch, [answered(ids[2]), again(ids[3])])
        cancel_queued(scene.store, ids[7])
        scene.store.update_batch(scene.lease, replace(batch, state=BatchState.IN_DOUBT))
        scene.store.request_flush()
        scene.store.sweep(scene.lease, 1)
        before = scene.snapshot()
        store = look()
        assert scene.snapshot(store) == before
        assert store.take_flush_request(scene.lease) is True
        assert [store.find_key(f"k{hour}") for hour in range(1, 9)] == ids
        states = [view.state for request_id in ids if (view := store.find(request_id))]
        assert states == [
            *[RequestState.QUEUED] * 2,
            RequestState.SETTLED,
            RequestState.QUEUED,
            *[RequestState.CLAIMED] * 2,
            RequestState.QUEUED,
            RequestState.SETTLED,
        ]


__all__ = ["CloseContract", "FlushRequestContract", "LeaseContract", "SweepContract"]
