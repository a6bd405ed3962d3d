"""Requests that go live out of a disk store: what that reads, and what is kept meanwhile."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from conformance.recording import answered_create
from conformance.scene import START, Scene, again, answered, body_of, framed, live, posted_ids
from llmrouter.domain.batches import BatchState
from llmrouter.domain.blocks import Hold as LiveHold
from llmrouter.domain.packing import BatchLimits
from llmrouter.domain.reporting import EngineReport, Hold, HoldCause, LiveReport, Uninsured
from llmrouter.domain.requests import Route
from llmrouter.errors import StoreError
from llmrouter.stores import _pile, _rows
from llmrouter.stores.disk import DiskStore
from support.stores import count_reads

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MINUTE = timedelta(minutes=1)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """An empty store, and the same as another process has it."""
    scene = Scene(lambda: DiskStore(tmp_path / "queue"))
    yield scene
    scene.close()


class TestLooking:
    """The backlog is looked at every second."""

    @pytest.mark.parametrize("due", [timedelta(hours=23), timedelta(hours=25), timedelta(hours=24)])
    def test_one_more_is_not_looked_for_among_all(
        self, scene: Scene, monkeypatch: pytest.MonkeyPatch, due: timedelta
    ) -> None:
        """Wherever its deadline lies: others are not walked to count them."""
        for place in range(3000):
            scene.store.enqueue([scene.request(due=timedelta(hours=24, microseconds=place))])
        assert scene.lease
        assert scene.line().request_count == 3000
        scene.rival.enqueue([scene.request(due=due)])
        looked: list[str] = []
        for name in ("_due", "_order"):
            read = getattr(_pile, name)
            monkeypatch.setattr(_pile, name, lambda entry, read=read: looked.append(entry) or read(entry))
        line = scene.line()
        assert line.request_count == 3001
        assert sum(cohort.request_count for cohort in line.cohorts) == 3001
        assert len(looked) < 150

    @pytest.mark.parametrize("limit", [0, 1, 7])
    def test_closed_batches_are_read_from_the_newest(
        self, scene: Scene, monkeypatch: pytest.MonkeyPatch, limit: int
    ) -> None:
        """Hardly more rows than are asked for, however many there are."""
        scene.enqueue_alike(40)
        for number in range(40):
            batch = answered_create(scene.claimed(max_requests=1), f"msgbatch_{number}")
            scene.store.record_created(batch)
            scene.settle_all(batch)
        monkeypatch.setattr(_rows, "_BATCHES_AT_ONCE", 3)
        reads = count_reads(scene.store, monkeypatch, "b")
        found = scene.store.closed_batches(limit)
        assert [batch.provider_batch_id for batch in found] == [
            f"msgbatch_{39 - place}" for place in range(limit)
        ]
        assert len(reads) <= limit + 1

    def test_closed_batches_are_found_behind_those_that_went_live(
        self, scene: Scene, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """There may be one of those for each second of weeks."""
        scene.enqueue_alike(1)
        batch = answered_create(scene.claimed())
        scene.store.record_created(batch)
        scene.settle_all(batch)
        for _ in range(20):
            scene.enqueue_alike(1)
            going = scene.going_live()
            scene.store.answer([live(one) for one in scene.inside(going)], START)
            scene.store.finish(scene.lease, going)
        reads = count_reads(scene.store, monkeypatch, "b")
        assert [one.batch_id for one in scene.store.closed_batches(100)] == [batch.batch_id]
        assert len(reads) == 1

    def test_open_batches_are_listed_without_what_was_claimed_into_them(
        self, scene: Scene, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """That takes a megabyte where the requests were no neighbours."""
        for _ in range(2):
            scene.enqueue(*(scene.request(model=("m", "n")[place % 2]) for place in range(1000)))
        batch = scene.claimed(model="m")
        scene.raced(batch)
        lengths: list[int] = []
        loads = json.loads
        monkeypatch.setattr(json, "loads", lambda text: lengths.append(len(text)) or loads(text))
        opened = scene.store.open_batches()
        assert [one.request_count for one in opened] == [1000, 1000]
        assert scene.store.find_batch(batch.batch_id) == opened[0]
        assert max(lengths) < 2000


class TestCalls:
    """Live calls begin a handful at a time."""

    def test_others_can_write_while_their_bodies_are_read(
        self, scene: Scene, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """There may be a gigabyte of them."""
        scene.enqueue_alike(3)
        batch = scene.going_live()
        written: list[str] = []
        get = scene.store._cache.get  # type: ignore[attr-defined]

        def enqueues_first(key: str) -> bytes | None:
            if key.startswith("q"):
                written.extend(one.request_id for one in scene.rival.enqueue([scene.request()]))
            value: bytes | None = get(key)
            return value

        ids = scene.inside(batch)
        monkeypatch.setattr(scene.store._cache, "get", enqueues_first)  # type: ignore[attr-defined]
        assert set(scene.begun(batch, *ids)) == ids
        assert written

    def test_a_segment_is_read_once_for_all_of_its_bodies(
        self, scene: Scene, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """However its requests are mixed with others'."""
        requests = [scene.request(size=60 + place) for place in range(60)]
        for start in range(0, 60, 20):
            scene.enqueue(*requests[start : start + 20])
        batch = scene.going_live()
        mixed = requests[::3] + requests[1::3]
        reads = count_reads(scene.store, monkeypatch, "q")
        calls = scene.store.begin_calls(
            scene.lease, batch.batch_id, [request.request_id for request in mixed]
        )
        assert [(call.request_id, call.body) for call in calls] == [
            (request.request_id, request.body) for request in mixed
        ]
        assert len(reads) == 3

    def test_a_second_reading_reads_each_chunk_once(
        self, scene: Scene, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """To see whose outcomes they are; none of them is wasted."""
        ids = scene.enqueue_alike(900)
        batch = scene.claimed()
        answers = [answered(one) for one in ids]
        for start in range(0, 900, 300):
            scene.settle(batch, answers[start : start + 300])
        scene.reopen()
        reads = count_reads(scene.store, monkeypatch, "o")
        settled = scene.store.settle(scene.lease, batch.batch_id, answers, START)
        assert (settled.repeated, settled.wasted) == (900, 0)
        assert len(reads) == 3


def test_two_answers_for_one_request_in_one_reading(scene: Scene) -> None:
    """The second one is repeated, and not wasted: the first is this batch's own."""
    ids = scene.enqueue_alike(2)
    batch = scene.claimed()
    scene.raced(batch)
    scene.store.answer([live(ids[1])], START)
    answers = [answered(ids[0]), answered(ids[0]), answered(ids[1]), again(ids[1])]
    settled = scene.store.settle(scene.lease, batch.batch_id, answers, START)
    assert (settled.outcomes, settled.repeated, settled.wasted) == (1, 3, 1)


class TestBodiesOfACreate:
    """A batch whose create may be under way keeps its bodies, whoever answers its requests meanwhile."""

    @pytest.mark.parametrize("way", ["raced", "answered in it"])
    def test_they_are_not_swept(self, scene: Scene, way: str) -> None:
        """Before it is posted; afterwards they are."""
        ids = scene.enqueue_alike(4)
        batch = scene.claimed()
        if way == "raced":
            going = scene.raced(batch)
            scene.store.answer([live(one) for one in ids], START)
            scene.store.finish(scene.lease, going)
        else:
            scene.rival.answer([live(one) for one in ids], START)
        for _ in range(2):
            assert scene.store.sweep(scene.lease, 10) == 0
        assert sorted(posted_ids(scene.posted(batch), batch.nonce)) == sorted(ids)
        scene.store.record_created(answered_create(batch))
        assert scene.store.sweep(scene.lease, 10) == 4

    def test_they_are_not_swept_by_an_index_that_was_built_anew(self, scene: Scene) -> None:
        """It has not seen who has left the batch."""
        ids = [one for _ in range(3) for one in scene.enqueue_alike(1)]
        batch = scene.claimed()
        body = scene.store.body(batch)
        posted = framed(batch.nonce, [(one, body_of(100, one[-3:])) for one in ids])
        assert b"".join(body) == posted
        scene.raced(batch)
        scene.rival.answer([live(one) for one in ids[:2]], START)
        with pytest.raises(StoreError):  # Any failure drops the index.
            scene.settle(replace(batch, batch_id="no such batch"), [])
        assert scene.store.sweep(scene.lease, 100) == 0
        assert b"".join(body) == posted
        scene.store.release(scene.lease, batch.batch_id)
        assert scene.store.sweep(scene.lease, 100) == 2

    def test_others_are_swept_meanwhile(self, scene: Scene) -> None:
        """What is kept is that of the create alone."""
        kept = scene.enqueue_alike(2)
        batch = scene.claimed()
        scene.rival.answer([live(one) for one in kept], START)
        scene.settled(scene.request(), scene.request(), scene.request())
        assert scene.store.sweep(scene.lease, 1) == 3
        assert scene.store.sweep(scene.lease, 1) == 0
        scene.store.update_batch(scene.lease, replace(batch, state=BatchState.IN_DOUBT))
        assert scene.store.sweep(scene.lease, 1) == 2


@pytest.mark.parametrize("rebuilt", [False, True])
def test_what_was_answered_while_it_waited_leaves_no_ghost(scene: Scene, rebuilt: bool) -> None:
    """Of one segment some are answered live, one by its old batch; the rest is claimed, exactly."""
    ids = scene.enqueue(*(scene.request(size=60 + place, prefix="p") for place in range(6)))
    batch = scene.claimed()
    scene.store.record_created(answered_create(batch))
    going = scene.raced(batch)
    scene.store.release(scene.lease, going.batch_id)
    if rebuilt:
        scene.hand_over()
    scene.rival.answer([live(ids[1])], START)
    assert scene.settle(batch, [answered(ids[4]), again(ids[5])]) == (1, 0, 1, 0)
    line = scene.line()
    assert (line.request_count, line.body_bytes) == (4, 60 + 62 + 63 + 65)
    assert line.prefixes == {"p": 4}
    following = scene.claimed()
    assert following.body_bytes == line.body_bytes
    left = [ids[0], ids[2], ids[3], ids[5]]
    assert sorted(posted_ids(scene.posted(following), following.nonce)) == left
    routes = {outcome.request_id: outcome.route for outcome in scene.store.outcomes(ids)}
    assert routes == {ids[1]: Route.ESCALATED, ids[4]: Route.BATCH}


def test_a_claim_that_races_with_an_answer_takes_what_is_left(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer comes between the look of the claim and its transaction."""
    ids = scene.enqueue_alike(3)
    lease, line = scene.lease, scene.line()
    engine = scene.store._engine  # type: ignore[attr-defined]
    look = engine.fresh_backlog

    def racing(*arguments: object) -> object:
        backlog = look(*arguments)
        monkeypatch.setattr(engine, "fresh_backlog", look)
        assert scene.rival.answer([live(ids[0])], START).outcomes == 1
        return backlog

    monkeypatch.setattr(engine, "fresh_backlog", racing)
    batch = scene.store.claim(lease, line, BatchLimits(), batch_id="b", nonce="a" * 10, now=START)
    assert batch is not None
    assert scene.inside(batch) == set(ids[1:])


@pytest.mark.parametrize("known", [False, True])
def test_a_report_is_read_as_it_was_left(scene: Scene, known: bool) -> None:
    """With all that it says of live calls, or nothing of what is not known."""
    live_report = LiveReport(
        requests_per_minute=812.5 if known else None,
        going=17,
        under_way=3,
        storm=known,
        hold=LiveHold.BUDGET if known else None,
        hold_until=START + MINUTE if known else None,
        waits_until=START + 2 * MINUTE if known else None,
        uninsured=(
            Uninsured(latency="hourly", model="m", request_count=5, deadline_at=START + 3 * MINUTE),
            Uninsured(latency="daily", model="n", request_count=6, deadline_at=START + 4 * MINUTE),
        )
        if known
        else (),
    )
    hold = Hold(
        lane_id="lane-a",
        since=START,
        until=START + MINUTE,
        cause=HoldCause.SPENT,
        reason="no money",
        refusals=2,
    )
    report = EngineReport(at=START, holds=(hold,), problems={"flush": "it broke"}, live=live_report)
    scene.store.report(scene.lease, report)
    view = scene.rival.engine()
    assert view is not None
    assert view.report == report
