"""What a store promises of claims: the right requests, under the limits, once, byte for byte."""

from __future__ import annotations

import random
import tracemalloc
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from conformance.scene import (
    LANE,
    MODEL,
    MOMENT,
    OTHER_LANE,
    START,
    RequestIds,
    Scene,
    again,
    answered,
    cancel_queued,
    framed,
    posted_ids,
)
from llmrouter.domain.batches import Batch, BatchState, wire_bytes
from llmrouter.domain.requests import RequestState

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmrouter.ports import Store

    Look = Work = Callable[[], Store]


class ClaimContract:
    """`claim` and `open_batches`."""

    def test_a_claim_is_an_open_batch(self, scene: Scene, look: Look) -> None:
        """The intent is recorded: the batch, and where its requests are."""
        request_ids = scene.enqueue(scene.request(size=70), scene.request(size=80))
        now = START + timedelta(minutes=3, microseconds=5)
        batch = scene.claimed(now=now)
        assert batch == Batch(
            batch_id=batch.batch_id,
            lane=LANE,
            latency="daily",
            nonce=batch.nonce,
            state=BatchState.CLAIMED,
            request_count=2,
            body_bytes=150,
            claimed_at=now,
            fence=scene.lease.fence,
            model=MODEL,
            deadline_at=START + timedelta(hours=24),
            window=timedelta(hours=24),
        )
        store = look()
        assert store.open_batches() == [batch]
        assert set(store.unsettled(batch.batch_id)) == set(request_ids)
        views = [store.find(request_id) for request_id in request_ids]
        assert [(view.state, view.batch_id, view.attempts) for view in views if view] == [
            (RequestState.CLAIMED, batch.batch_id, 0)
        ] * 2
        assert store.waiting() == []

    def test_the_caller_names_the_batch(self, scene: Scene) -> None:
        """Batch id and nonce are the caller's."""
        scene.enqueue_alike(1)
        first = scene.claimed()
        scene.enqueue_alike(1)
        second = scene.claimed()
        assert [(batch.batch_id, batch.nonce) for batch in (first, second)] == [
            ("batch-1", "0000000001"),
            ("batch-2", "0000000002"),
        ]

    def test_nothing_left_is_none(self, scene: Scene, work: Work) -> None:
        """A line of the backlog that was claimed meanwhile gives no batch."""
        assert scene.claim() is None
        scene.enqueue_alike(3)
        batch = scene.claimed()
        work()
        assert scene.claim() is None
        assert scene.store.open_batches() == [batch]

    def test_one_lane_class_and_model_at_a_time(self, scene: Scene) -> None:
        """A batch mixes call sites and prefixes, never lanes, classes or models."""
        mine = scene.enqueue(scene.request(site="a:a"), scene.request(site="b:b"), scene.request(prefix="p"))
        scene.enqueue(scene.request(lane=OTHER_LANE), scene.request(latency="hourly"))
        (of_model,) = scene.enqueue(scene.request(model="other", due=timedelta(hours=1)))
        assert scene.claim(lane=OTHER_LANE, latency="hourly") is None
        assert scene.claim(lane=OTHER_LANE, model="other") is None
        other = scene.claimed(lane=OTHER_LANE)
        assert (other.lane, other.latency, other.request_count) == (OTHER_LANE, "daily", 1)
        batch = scene.claimed()
        assert (batch.lane, batch.latency) == (LANE, "daily")
        assert scene.inside(batch) == set(mine)
        third = scene.claimed(model="other")
        assert (third.model, third.window) == ("other", timedelta(hours=1))
        assert scene.inside(third) == {of_model}

    def test_a_batch_knows_its_first_deadline(self, scene: Scene, look: Look) -> None:
        """With the window of that request, from its own acceptance on, whatever else is in it."""
        accepted_at = START - timedelta(hours=5)
        scene.enqueue(
            scene.request(due=timedelta(hours=9)),
            scene.request(due=timedelta(hours=7), accepted_at=accepted_at),
            scene.request(due=timedelta(hours=8), accepted_at=START - timedelta(days=1)),
        )
        batch = scene.claimed()
        assert (batch.deadline_at, batch.window) == (START + timedelta(hours=7), timedelta(hours=12))
        assert look().open_batches() == [batch]

    def test_one_fate_is_one_span_of_deadlines(self, scene: Scene) -> None:
        """A 24th of the first one's window, its end included; without it any deadlines share a batch."""
        window = timedelta(hours=24)
        ids = scene.enqueue(
            *(
                scene.request(due=window + apart, accepted_at=START + accepted)
                for apart, accepted in [
                    (timedelta(0), timedelta(0)),
                    (timedelta(hours=1), timedelta(hours=24)),
                    (timedelta(hours=1, minutes=2.5) + MOMENT, timedelta(hours=20)),
                    (timedelta(hours=1, minutes=10), timedelta(0)),
                    (timedelta(hours=2), timedelta(0)),
                ]
            )
        )
        assert scene.inside(scene.claimed(one_fate=True, max_requests=1)) == {ids[0]}
        assert scene.inside(scene.claimed(one_fate=True)) == {ids[1]}
        assert scene.inside(scene.claimed(one_fate=True)) == set(ids[2:4])
        late = scene.enqueue(scene.request(due=timedelta(hours=30)), scene.request(due=timedelta(hours=40)))
        assert scene.inside(scene.claimed()) == {ids[4], *late}

    def test_one_fate_keeps_a_span_of_six_hours_at_most(self, scene: Scene, work: Work) -> None:
        """Weekly ones too are cut; a span that is exactly full is taken whole."""
        week = timedelta(days=7)
        span = [timedelta(0), timedelta(hours=3), timedelta(hours=6)]
        ids = scene.enqueue(*(scene.request(due=week + apart) for apart in [*span, span[-1] + MOMENT]))
        work()
        assert scene.inside(scene.claimed(one_fate=True)) == set(ids[:3])
        assert scene.inside(scene.claimed(one_fate=True)) == {ids[3]}

    def test_open_batches_are_listed_oldest_first(self, scene: Scene, look: Look) -> None:
        """In the order of claiming, whichever lane."""
        scene.enqueue_alike(2, latency="weekly")
        scene.enqueue_alike(2, latency="daily")
        batches = [
            scene.claimed(latency=latency, max_requests=1, now=START + timedelta(seconds=second))
            for second, latency in enumerate(["weekly", "daily", "weekly", "daily"])
        ]
        assert look().open_batches() == batches
        scene.settle_all(batches[1])
        assert look().open_batches() == [batches[0], *batches[2:]]

    def test_the_earliest_deadlines_leave_first(self, scene: Scene, work: Work) -> None:
        """Whatever the order, the call or the call site they came in, to the microsecond."""
        order = random.Random(3).sample(range(12), 12)
        requests = [
            scene.request(due=timedelta(hours=1) + place * MOMENT, site=f"s:{place % 3}") for place in order
        ]
        by_deadline = [
            request.request_id for request in sorted(requests, key=lambda request: request.deadline_at)
        ]
        for start, stop in ((0, 5), (5, 6), (6, 12)):
            scene.enqueue(*requests[start:stop])
        claims = []
        for count in (1, 4, 5, 2):
            work()
            claims.append(scene.inside(scene.claimed(max_requests=count)))
        assert claims == [
            set(by_deadline[:1]),
            set(by_deadline[1:5]),
            set(by_deadline[5:10]),
            set(by_deadline[10:]),
        ]

    def test_what_was_queued_again_keeps_its_place(self, scene: Scene) -> None:
        """A retried or released request has the deadline it had."""
        early, later = scene.enqueue(
            scene.request(due=timedelta(hours=1)), scene.request(due=timedelta(hours=2))
        )
        batch = scene.claimed()
        scene.settle(batch, [again(early)])
        scene.store.release(scene.lease, batch.batch_id)
        scene.enqueue(scene.request(due=timedelta(minutes=90)))
        assert scene.inside(scene.claimed(max_requests=1)) == {early}
        scene.claimed(max_requests=1)
        assert scene.inside(scene.claimed(max_requests=1)) == {later}

    @pytest.mark.parametrize(
        ("limit", "counts"), [(1, [1] * 10), (4, [4, 4, 2]), (5, [5, 5]), (10, [10]), (11, [10])]
    )
    def test_a_run_is_split_by_count(self, scene: Scene, limit: int, counts: list[int]) -> None:
        """Requests of one call fill batches exactly, and none goes out twice."""
        request_ids = scene.enqueue_alike(10)
        batches = [scene.claimed(max_requests=limit) for _ in counts]
        assert [batch.request_count for batch in batches] == counts
        assert [batch.body_bytes for batch in batches] == [100 * count for count in counts]
        inside = [request_id for batch in batches for request_id in scene.inside(batch)]
        assert sorted(inside) == sorted(request_ids)
        assert scene.claim() is None

    @pytest.mark.parametrize(
        ("limit", "counts"),
        [
            (wire_bytes(3, 300), [3, 3, 1]),
            (wire_bytes(3, 300) - 1, [2, 2, 2, 1]),
            (wire_bytes(3, 300) + 1, [3, 3, 1]),
            (wire_bytes(7, 700), [7]),
            (wire_bytes(7, 700) - 1, [6, 1]),
        ],
    )
    def test_a_run_is_split_by_bytes(self, scene: Scene, limit: int, counts: list[int]) -> None:
        """To the byte: the whole posted body counts."""
        scene.enqueue_alike(7)
        batches = [scene.claimed(max_bytes=limit) for _ in counts]
        assert [batch.request_count for batch in batches] == counts
        assert all(len(scene.posted(batch)) <= limit for batch in batches)
        assert scene.claim() is None

    @pytest.mark.parametrize("apart", [MOMENT, timedelta(0)])
    def test_a_run_of_different_sizes_is_cut_where_it_is_full(self, scene: Scene, apart: timedelta) -> None:
        """The size of each body counts; a call's requests of one deadline stay in order."""
        sizes = [50, 400, 60, 70, 500, 80]
        request_ids = scene.enqueue(
            *(
                scene.request(size=size, due=timedelta(hours=1) + place * apart)
                for place, size in enumerate(sizes)
            )
        )
        batches = [
            scene.claimed(max_bytes=limit)
            for limit in (wire_bytes(2, 450), wire_bytes(3, 629), wire_bytes(2, 580))
        ]
        assert [scene.inside(batch) for batch in batches] == [
            set(request_ids[:2]),
            set(request_ids[2:4]),
            set(request_ids[4:]),
        ]
        assert [batch.body_bytes for batch in batches] == [450, 130, 580]

    def test_a_batch_ends_before_what_does_not_fit(self, scene: Scene) -> None:
        """Nothing with a later deadline overtakes a request that was too large for the rest of a batch."""
        small, large, _ = scene.enqueue(
            scene.request(size=100, due=timedelta(hours=1)),
            scene.request(size=1000, due=timedelta(hours=2)),
            scene.request(size=100, due=timedelta(hours=3)),
        )
        assert scene.inside(scene.claimed(max_bytes=wire_bytes(2, 200))) == {small}
        assert scene.inside(scene.claimed(max_bytes=wire_bytes(2, 1099))) == {large}

    def test_the_first_request_is_always_taken(self, scene: Scene) -> None:
        """A request that is larger than the limit leaves alone."""
        scene.enqueue_alike(2, size=1000)
        batches = [scene.claimed(max_bytes=10) for _ in range(2)]
        assert [batch.request_count for batch in batches] == [1, 1]

    def test_both_limits_hold_across_runs(self, scene: Scene) -> None:
        """A batch goes on from run to run until the first limit is reached."""
        for number in (3, 1, 4):
            scene.enqueue_alike(number)
        limits = {"max_requests": 5, "max_bytes": wire_bytes(4, 400)}
        assert [scene.claimed(**limits).request_count for _ in range(2)] == [4, 4]
        scene.enqueue_alike(6)
        assert scene.claimed(max_requests=5, max_bytes=wire_bytes(6, 600)).request_count == 5

    def test_a_large_run_is_split_exactly(self, scene: Scene, work: Work) -> None:
        """Also across pages: every request is in one batch, with its own body."""
        requests = [scene.request(size=60 + number % 7) for number in range(2300)]
        scene.enqueue(*requests)
        sizes = {request.request_id: len(request.body) for request in requests}
        batches = []
        for _ in range(4):
            work()
            batches.append(scene.claimed(max_requests=700))
        assert [batch.request_count for batch in batches] == [700, 700, 700, 200]
        inside = [scene.inside(batch) for batch in batches]
        assert set().union(*inside) == set(sizes)
        assert [batch.body_bytes for batch in batches] == [
            sum(sizes[request_id] for request_id in request_ids) for request_ids in inside
        ]
        assert scene.claim() is None

    def test_engines_in_turn_never_claim_the_same(self, scene: Scene, work: Work) -> None:
        """What one engine has claimed is gone for the next, and what came meanwhile is seen."""
        other_id = RequestIds(seed=2)
        request_ids, claims = [], []
        for _ in range(4):
            request_ids += scene.enqueue_alike(3)
            arriving = [scene.request(request_id=other_id()) for _ in range(3)]
            request_ids += [accepted.request_id for accepted in scene.rival.enqueue(arriving)]
            work()
            claims += scene.inside(scene.claimed(max_requests=4))
        work()
        claims += scene.inside(scene.claimed())
        assert sorted(claims) == sorted(request_ids)
        assert scene.claim() is None

    def test_a_batch_knows_earlier_attempts(self, scene: Scene, look: Look) -> None:
        """Of those requests that have any: releases do not count, retries do."""
        twice, once, never = scene.enqueue_alike(3)
        for retried in ([], [twice], [twice, once]):
            batch = scene.claimed()
            scene.settle(batch, [again(request_id) for request_id in retried])
            scene.store.release(scene.lease, batch.batch_id)
        batch = scene.claimed()
        assert scene.inside(batch) == {twice, once, never}
        assert batch.attempts == {twice: 2, once: 1}
        assert look().open_batches() == [batch]


class BodyContract:
    """`body`: what is posted."""

    def test_a_body_is_the_stored_bytes_in_a_frame(self, scene: Scene) -> None:
        """No whitespace, nothing re-encoded: the requests' own bytes."""
        bodies = [
            b'{ "model" : "m",\n\t"max_tokens":1 }',
            '{"text":"U+2028 \u2028, \u00e9 and \U0001f600"}'.encode(),
            rb'{"escaped":"\u00e9 \" \\ \/"}',
            b'{"raw":"\x7f","b":1,"a":2,"a":3}',
            b"{}",
        ]
        requests = [scene.request(body=body, due=timedelta(hours=1) + len(body) * MOMENT) for body in bodies]
        scene.enqueue(*requests)
        batch = scene.claimed()
        posted = scene.posted(batch)
        by_id = {request.request_id: request.body for request in requests}
        order = posted_ids(posted, batch.nonce)
        assert sorted(order) == sorted(by_id)
        assert posted == framed(batch.nonce, [(request_id, by_id[request_id]) for request_id in order])

    def test_a_body_knows_its_length(self, scene: Scene) -> None:
        """``content_length`` is exact before anything is read, for one request and for many."""
        for number in (1, 2, 300):
            scene.enqueue_alike(number, size=90 + number)
            batch = scene.claimed()
            body = scene.store.body(batch)
            assert body.content_length == len(b"".join(body)) == wire_bytes(number, number * (90 + number))

    def test_a_body_can_be_read_again(self, scene: Scene) -> None:
        """From the start each time, also while another reading is under way."""
        scene.enqueue_alike(40, size=20_000)
        body = scene.store.body(scene.claimed())
        whole = b"".join(body)
        halfway = iter(body)
        begun = [next(halfway)]
        assert b"".join(body) == whole
        assert b"".join([*begun, *halfway]) == whole

    def test_a_body_holds_what_was_claimed(self, scene: Scene) -> None:
        """Of a run that was cut, the part that is in the batch; what comes later changes nothing."""
        requests = [scene.request(size=60 + place, due=timedelta(hours=1)) for place in range(10)]
        scene.enqueue(*requests)
        by_id = {request.request_id: request.body for request in requests}
        scene.claimed(max_requests=3)
        batch = scene.claimed(max_requests=4)
        inside = scene.inside(batch)
        scene.enqueue_alike(2)
        scene.claimed()
        posted = scene.posted(batch)
        order = posted_ids(posted, batch.nonce)
        assert set(order) == inside
        assert posted == framed(batch.nonce, [(request_id, by_id[request_id]) for request_id in order])

    @pytest.mark.parametrize("size", [32_767, 32_768, 262_144, 3_000_000])
    def test_large_bodies_are_exact(self, scene: Scene, work: Work, size: int) -> None:
        """Sizes at which stores change how they keep a value."""
        large, small = scene.request(size=size), scene.request(size=60)
        scene.enqueue(large, small)
        work()
        batch = scene.claimed()
        posted = scene.posted(batch)
        by_id = {request.request_id: request.body for request in (large, small)}
        order = posted_ids(posted, batch.nonce)
        assert posted == framed(batch.nonce, [(request_id, by_id[request_id]) for request_id in order])

    def test_a_body_comes_in_pieces(self, scene: Scene) -> None:
        """Small bodies are joined, and a large batch is never one piece."""
        scene.enqueue_alike(2000, size=1000)
        pieces = list(scene.store.body(scene.claimed()))
        assert max(map(len, pieces)) <= 1_000_000
        assert 3 <= len(pieces) <= 60

    def test_reading_a_body_needs_little_memory(self, scene: Scene) -> None:
        """Much less than the batch weighs."""
        for _ in range(24):
            scene.enqueue_alike(10, size=100_000)
        body = scene.store.body(scene.claimed())
        tracemalloc.start()
        try:
            total = sum(len(piece) for piece in body)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert total == body.content_length > 24_000_000
        assert peak < 8_000_000

    def test_a_request_is_posted_with_the_nonce_of_its_new_batch(self, scene: Scene) -> None:
        """After a release its custom_id is another one, its body the same."""
        request = scene.request()
        scene.enqueue(request)
        first = scene.claimed()
        scene.store.release(scene.lease, first.batch_id)
        second = scene.claimed()
        assert first.nonce != second.nonce
        assert scene.posted(second) == framed(second.nonce, [(request.request_id, request.body)])

    def test_the_body_of_a_requeued_part_is_exact(self, scene: Scene) -> None:
        """Some of a run settled, some canceled, the rest claimed again: each with its own bytes."""
        requests = [scene.request(size=60 + place) for place in range(8)]
        by_id = {request.request_id: request.body for request in requests}
        request_ids = scene.enqueue(*requests)
        batch = scene.claimed(max_requests=6)
        inside = sorted(scene.inside(batch))
        scene.settle(batch, [answered(inside[0]), again(inside[1]), answered(inside[3])])
        scene.store.release(scene.lease, batch.batch_id)
        assert cancel_queued(scene.store, inside[4])
        left = set(request_ids) - {inside[0], inside[3], inside[4]}
        batch = scene.claimed()
        posted = scene.posted(batch)
        order = posted_ids(posted, batch.nonce)
        assert set(order) == left
        assert posted == framed(batch.nonce, [(request_id, by_id[request_id]) for request_id in order])


__all__ = ["BodyContract", "ClaimContract"]
