"""What a store promises to applications: requests go in, are found again, and can be canceled."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from conformance.scene import (
    LANE,
    OTHER_LANE,
    START,
    RequestIds,
    Scene,
    again,
    body_of,
    cancel_queued,
    outcome_of,
    posted_ids,
    sums_of,
)
from llmrouter.domain.requests import Accepted, Outcome, OutcomeKind, RequestState, RequestView
from llmrouter.errors import KeyConflictError

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmrouter.ports import Store

    Look = Callable[[], Store]

NO_REQUESTS = [
    "req_0000000000zzzzzzzzzz000",
    "req_0000000000zzzzzzzzzz999",
    "req_",
    "batch-1",
    "",
    "req_UPPER00000zzzzzzzzzz000",
]


class EnqueueContract:
    """`enqueue`, `find`, `find_key` and `secret`."""

    def test_secret_is_32_bytes_and_stays(self, scene: Scene, look: Look) -> None:
        """The secret is made once and is the same in every process."""
        secret = scene.store.secret()
        assert len(secret) == 32
        assert scene.store.secret() == secret == look().secret()

    def test_answers_come_in_the_order_of_the_requests(self, scene: Scene) -> None:
        """Each request is answered at its place, with its own instants."""
        requests = [
            scene.request(
                due=timedelta(hours=hours), latency=latency, accepted_at=START - timedelta(hours=hours)
            )
            for hours, latency in ((3, "weekly"), (1, "daily"), (2, "hourly"), (1, "daily"))
        ]
        assert scene.store.enqueue(requests) == [
            Accepted(
                request_id=request.request_id,
                accepted_at=request.accepted_at,
                deadline_at=request.deadline_at,
                duplicate=False,
            )
            for request in requests
        ]

    def test_enqueue_of_nothing_changes_nothing(self, scene: Scene) -> None:
        """An empty call is allowed."""
        assert scene.store.enqueue([]) == []
        assert scene.store.waiting() == []

    def test_a_request_is_found_queued(self, scene: Scene, look: Look) -> None:
        """From the return of `enqueue` on every process finds the request, with all that is known of it."""
        plain = scene.request(accepted_at=START, due=timedelta(hours=1, microseconds=7), latency="hourly")
        keyed = scene.request(key="order-17")
        scene.enqueue(plain, keyed)
        store = look()
        assert store.find(plain.request_id) == RequestView(
            request_id=plain.request_id,
            state=RequestState.QUEUED,
            latency="hourly",
            accepted_at=START,
            deadline_at=START + timedelta(hours=1, microseconds=7),
            attempts=0,
            batch_id=None,
            key=None,
            lane_id=LANE.lane_id,
        )
        found = store.find(keyed.request_id)
        assert found is not None
        assert found.key == "order-17"
        assert outcome_of(store, plain.request_id) is None

    @pytest.mark.parametrize("request_id", NO_REQUESTS)
    def test_what_was_never_there_is_not_found(self, scene: Scene, request_id: str) -> None:
        """An id that the store has never had is None, whatever it looks like."""
        scene.enqueue_alike(2)
        assert scene.store.find(request_id) is None
        assert outcome_of(scene.store, request_id) is None
        assert cancel_queued(scene.store, request_id) == 0

    def test_neighbors_of_a_request_are_not_found(self, scene: Scene) -> None:
        """Free slots of a page that is in use are no requests."""
        before, used, after = scene.new_id(), scene.new_id(), scene.new_id()
        scene.enqueue(scene.request(request_id=used))
        assert scene.store.find(before) is None
        assert scene.store.find(after) is None
        assert outcome_of(scene.store, after) is None
        assert cancel_queued(scene.store, after) == 0

    def test_a_key_leads_to_its_request(self, scene: Scene, look: Look) -> None:
        """`find_key` knows the keys of all requests, and no others."""
        keys = ["a", "a-1", "A", "ключ ✓\n\u2028", "k" * 3000, ""]
        request_ids = scene.enqueue(*(scene.request(key=key) for key in keys))
        store = look()
        assert [store.find_key(key) for key in keys] == request_ids
        assert [view.key for request_id in request_ids if (view := store.find(request_id))] == keys
        assert store.find_key("b") is None

    def test_equal_requests_without_a_key_are_separate(self, scene: Scene) -> None:
        """Only a key makes two requests the same."""
        body = body_of(80)
        accepted = scene.store.enqueue([scene.request(body=body), scene.request(body=body)])
        accepted += scene.store.enqueue([scene.request(body=body)])
        assert [answer.duplicate for answer in accepted] == [False, False, False]
        assert len({answer.request_id for answer in accepted}) == 3

    def test_one_call_may_cross_pages_and_skip_slots(self, scene: Scene, look: Look) -> None:
        """Ids of one call are only new: in any order, with gaps, from several pages."""
        first = [scene.new_id() for _ in range(7)]
        scene.new_id.turn_page(slot=998)
        second = [scene.new_id() for _ in range(4)]
        request_ids = [second[2], first[6], first[0], second[0], first[2], second[1], first[1], second[3]]
        requests = [scene.request(request_id=request_id) for request_id in request_ids]
        assert scene.enqueue(*requests) == request_ids
        assert [look().find(request_id) is not None for request_id in request_ids] == [True] * 8
        assert look().find(first[3]) is None
        batch = scene.claimed()
        assert batch.request_count == 8
        bodies = {request.request_id: request.body for request in requests}
        posted = scene.posted(batch)
        assert all(bodies[request_id] in posted for request_id in request_ids)
        assert sorted(posted_ids(posted, batch.nonce)) == sorted(request_ids)

    def test_pages_of_two_processes_interleave(self, scene: Scene) -> None:
        """Two processes with pages of the same time enqueue in turns, each call a slot or two."""
        other, other_id = scene.rival, RequestIds(seed=2)
        expected = []
        for turn in range(10):
            mine = [scene.request() for _ in range(1 + turn % 2)]
            theirs = [scene.request(request_id=other_id()) for _ in range(1 + turn % 3)]
            scene.store.enqueue(mine)
            other.enqueue(theirs)
            expected += [request.request_id for request in mine + theirs]
        assert all(scene.store.find(request_id) and other.find(request_id) for request_id in expected)
        assert scene.inside(scene.claimed()) == set(expected)

    def test_a_call_may_be_larger_than_a_page(self, scene: Scene, look: Look) -> None:
        """A call may hold more requests than a page has slots."""
        request_ids = scene.enqueue_alike(2500)
        store = look()
        assert [(line.request_count, line.body_bytes) for line in store.waiting()] == [(2500, 250_000)]
        assert all(store.find(request_id) for request_id in [*request_ids[::37], request_ids[-1]])
        assert scene.inside(scene.claimed()) == set(request_ids)


class KeyContract:
    """Idempotency keys: the same key is the same request."""

    def test_a_known_key_is_not_stored_again(self, scene: Scene, look: Look) -> None:
        """The answer names the earlier request with its own instants; the new one does not exist."""
        first = scene.request(key="k", due=timedelta(hours=5))
        scene.enqueue(first)
        second = scene.request(
            key="k", body=first.body, due=timedelta(hours=9), accepted_at=START + timedelta(hours=1)
        )
        assert look().enqueue([second]) == [
            Accepted(
                request_id=first.request_id,
                accepted_at=first.accepted_at,
                deadline_at=first.deadline_at,
                duplicate=True,
            )
        ]
        assert scene.store.find(second.request_id) is None
        assert scene.store.find_key("k") == first.request_id
        assert [line.request_count for line in scene.store.waiting()] == [1]

    def test_a_key_repeated_within_a_call(self, scene: Scene) -> None:
        """The first one of the call is stored, the later ones are answered with it."""
        first = scene.request(key="k")
        repeats = [scene.request(key="k", body=first.body) for _ in range(2)]
        between = scene.request(key="other")
        accepted = scene.store.enqueue([first, repeats[0], between, repeats[1]])
        assert [(answer.request_id, answer.duplicate) for answer in accepted] == [
            (first.request_id, False),
            (first.request_id, True),
            (between.request_id, False),
            (first.request_id, True),
        ]
        assert scene.inside(scene.claimed()) == {first.request_id, between.request_id}

    def test_known_and_new_requests_mix(self, scene: Scene) -> None:
        """Only what is new is stored, and every answer stands at its request's place."""
        known = scene.request(key="known")
        scene.enqueue(known)
        new = [scene.request(), scene.request(key="new"), scene.request()]
        repeat = scene.request(key="known", body=known.body)
        accepted = scene.store.enqueue([new[0], repeat, new[1], new[2]])
        assert [answer.request_id for answer in accepted] == [
            new[0].request_id,
            known.request_id,
            new[1].request_id,
            new[2].request_id,
        ]
        assert [answer.duplicate for answer in accepted] == [False, True, False, False]
        batch = scene.claimed()
        assert batch.request_count == 4
        posted = scene.posted(batch)
        assert all(request.body in posted for request in [known, *new])

    @pytest.mark.parametrize("state", ["claimed", "settled", "swept", "canceled"])
    def test_a_key_is_known_in_every_state(self, scene: Scene, look: Look, state: str) -> None:
        """A request keeps its key when it is claimed and when it has its outcome, also without its body."""
        first = scene.request(key="k")
        scene.enqueue(first)
        _bring_to(scene, first.request_id, state)
        before = scene.store.find(first.request_id)
        (accepted,) = look().enqueue([scene.request(key="k", body=first.body)])
        assert (accepted.request_id, accepted.duplicate) == (first.request_id, True)
        assert scene.store.find(first.request_id) == before
        assert scene.store.waiting() == []

    @pytest.mark.parametrize("state", ["queued", "claimed", "settled", "swept", "canceled"])
    def test_a_key_with_another_body_is_refused(self, scene: Scene, look: Look, state: str) -> None:
        """A key stands for its body's exact bytes, also after the body was dropped."""
        first = scene.request(key="k", body=b'{"model":"m"}')
        scene.enqueue(first)
        _bring_to(scene, first.request_id, state)
        with pytest.raises(KeyConflictError) as caught:
            look().enqueue([scene.request(key="k", body=b'{"model": "m"}')])
        assert (caught.value.field, caught.value.index) == ("key", 0)

    def test_a_key_with_another_class_is_refused(self, scene: Scene, look: Look) -> None:
        """A key stands for its latency class."""
        first = scene.request(key="k", latency="daily")
        scene.enqueue(first)
        with pytest.raises(KeyConflictError) as caught:
            look().enqueue([scene.request(key="k", latency="hourly", body=first.body)])
        assert (caught.value.field, caught.value.index) == ("key", 0)

    def test_a_key_does_not_stand_for_the_rest(self, scene: Scene) -> None:
        """Another call site, lane or deadline with the same body and class is the same request."""
        first = scene.request(key="k")
        scene.enqueue(first)
        elsewhere = scene.request(
            key="k", body=first.body, lane=OTHER_LANE, site="elsewhere", due=timedelta(hours=2)
        )
        assert [answer.duplicate for answer in scene.store.enqueue([elsewhere])] == [True]
        assert [line.lane for line in scene.store.waiting()] == [LANE]

    @pytest.mark.parametrize("conflict", ["before", "within"])
    def test_a_conflict_stores_nothing_of_its_call(self, scene: Scene, look: Look, conflict: str) -> None:
        """All of a call or none of it; the error says which request was refused."""
        known = scene.request(key="known", body=b'{"n":1}')
        scene.enqueue(known)
        before = scene.snapshot()
        call = [
            scene.request(),
            scene.request(key="new", body=b'{"n":2}'),
            scene.request(key="known", body=b'{"n":1}'),
            scene.request(key="known" if conflict == "before" else "new", body=b'{"n":3}'),
            scene.request(),
        ]
        with pytest.raises(KeyConflictError) as caught:
            scene.store.enqueue(call)
        assert caught.value.index == 3
        store = look()
        assert [store.find(request.request_id) for request in call] == [None] * 5
        assert store.find_key("new") is None
        assert sums_of(store.waiting()) == before.waiting


class CancelContract:
    """`cancel`: only what waits can be canceled."""

    def test_a_queued_request_is_canceled(self, scene: Scene, look: Look) -> None:
        """It gets its outcome and is never claimed."""
        request = scene.request(key="k", due=timedelta(hours=3))
        kept = scene.enqueue_alike(1)
        scene.enqueue(request)
        at = START + timedelta(minutes=5)
        assert cancel_queued(scene.store, request.request_id, now=at) == 1
        store = look()
        assert outcome_of(store, request.request_id) == Outcome(
            request_id=request.request_id,
            kind=OutcomeKind.CANCELED,
            latency="daily",
            accepted_at=request.accepted_at,
            deadline_at=request.deadline_at,
            settled_at=at,
            attempts=0,
            batch_id=None,
            key="k",
            raw=b"",
        )
        view = store.find(request.request_id)
        assert view is not None
        assert (view.state, view.batch_id) == (RequestState.SETTLED, None)
        assert scene.inside(scene.claimed()) == set(kept)

    @pytest.mark.parametrize("state", ["claimed", "settled", "swept", "canceled"])
    def test_in_any_other_state_nothing_happens(self, scene: Scene, look: Look, state: str) -> None:
        """False, and no change."""
        (request_id,) = scene.enqueue_alike(1)
        _bring_to(scene, request_id, state)
        before = scene.snapshot()
        assert cancel_queued(look(), request_id, now=START + timedelta(hours=1)) == 0
        assert scene.snapshot() == before

    def test_one_of_a_run_is_canceled(self, scene: Scene, look: Look) -> None:
        """The others of its call wait on, and leave with their own bodies."""
        requests = [scene.request(size=60 + place) for place in range(9)]
        request_ids = scene.enqueue(*requests)
        for place in (0, 4, 5, 8):
            assert cancel_queued(scene.store, request_ids[place])
        kept = {request_ids[place]: requests[place].body for place in (1, 2, 3, 6, 7)}
        assert [line.body_bytes for line in look().waiting()] == [sum(map(len, kept.values()))]
        batch = scene.claimed()
        assert scene.inside(batch) == set(kept)
        posted = scene.posted(batch)
        assert all(body in posted for body in kept.values())

    def test_what_was_queued_again_can_be_canceled(self, scene: Scene) -> None:
        """After a retry or a release it waits like any other."""
        request_ids = scene.enqueue_alike(2)
        batch = scene.claimed()
        scene.settle(batch, [again(request_ids[0])])
        scene.store.release(scene.lease, batch.batch_id)
        assert [cancel_queued(scene.store, request_id) for request_id in request_ids] == [1, 1]
        assert scene.store.waiting() == []
        assert scene.claim() is None


def _bring_to(scene: Scene, request_id: str, state: str) -> None:
    """Brings the only queued request of a scene into a state."""
    match state:
        case "queued":
            return
        case "canceled":
            assert cancel_queued(scene.store, request_id)
        case "claimed":
            scene.claimed()
        case _:
            scene.settle_all(scene.claimed())
            if state == "swept":
                assert scene.store.sweep(scene.lease, 10) == 1


__all__ = ["CancelContract", "EnqueueContract", "KeyContract"]
