"""Taking requests in: one commit for all who wait, and each caller on their own."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from llmrouter.domain.requests import REQUEST_ID, Accepted
from llmrouter.engine.intake import Draft, Intake
from llmrouter.errors import KeyConflictError, RouterClosedError, StoreBusyError
from support.clocks import START, FakeClock
from support.requests import DAILY, draft, group_in
from support.stores import GatedStore
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from llmrouter.domain.requests import QueuedRequest

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def store() -> GatedStore:
    """A store with a gate in front of its commits."""
    return GatedStore()


@pytest.fixture
def clock() -> FakeClock:
    """Stands still."""
    return FakeClock()


@pytest.fixture
def intake(store: GatedStore, clock: FakeClock) -> Iterator[Intake]:
    """Closed at the end, with the gate open."""
    one = Intake(store, clock)
    yield one
    store.gate.set()
    one.close()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Callers."""
    with ThreadPoolExecutor(64) as threads:
        yield threads


def in_line(intake: Intake) -> int:
    """How many callers wait for the next commit."""
    return len(intake._waiting)


def queue_behind(
    intake: Intake,
    store: GatedStore,
    pool: ThreadPoolExecutor,
    callers: Sequence[Sequence[Draft]],
) -> list[Future[list[Accepted]]]:
    """Callers that come, one after the other, while the commit of another one stands at the gate."""
    waiting = []
    with store.closed_gate():
        leader = pool.submit(intake.enqueue, [draft("leader")])
        assert store.entered.wait(10)
        for drafts in callers:
            waiting.append(pool.submit(intake.enqueue, drafts))
            wait_until(lambda: in_line(intake) == len(waiting), what="the caller to be in line")
    leader.result(10)
    return waiting


def test_what_was_accepted_is_in_the_store(intake: Intake, store: GatedStore) -> None:
    """With its id, its instant of acceptance and its deadline."""
    (accepted,) = intake.enqueue([draft("a")])

    view = store.find(accepted.request_id)
    assert view is not None
    assert (view.accepted_at, view.deadline_at) == (START, START + timedelta(hours=24))
    assert (accepted.accepted_at, accepted.deadline_at) == (START, START + timedelta(hours=24))
    assert not accepted.duplicate


def test_a_caller_who_comes_alone_commits_in_their_own_thread(store: GatedStore, clock: FakeClock) -> None:
    """No hand-over to another thread, no wait for one."""
    threads = []

    class Noting(GatedStore):
        def enqueue(self, requests: Sequence[object]) -> list[Accepted]:
            threads.append(threading.current_thread())
            return super().enqueue(requests)  # type: ignore[arg-type]

    intake = Intake(Noting(), clock)
    intake.enqueue([draft()])
    intake.close()

    assert threads == [threading.current_thread()]


def test_all_who_come_during_a_commit_share_the_next_one(
    intake: Intake, store: GatedStore, pool: ThreadPoolExecutor
) -> None:
    """A sync to the disk costs the same for one and for many."""
    waiting = queue_behind(intake, store, pool, [[draft(number)] for number in range(30)])
    ids = [one.result(10)[0].request_id for one in waiting]

    assert [len(commit) for commit in store.commits] == [1, 30]
    assert len(set(ids)) == 30
    assert all(store.find(request_id) is not None for request_id in ids)


def test_everybody_gets_their_own_answers(
    intake: Intake, store: GatedStore, pool: ThreadPoolExecutor
) -> None:
    """In their order, however many each of them brought."""
    callers = [[draft(f"{caller}-{place}") for place in range(caller)] for caller in range(5)]
    waiting = queue_behind(intake, store, pool, callers)
    stored = {request.request_id: request.body for request in store.commits[1]}

    for drafts, one in zip(callers, waiting, strict=True):
        assert [stored[accepted.request_id] for accepted in one.result(10)] == [d.body for d in drafts]


def test_asyncio_callers_share_a_commit_that_does_not_block_them(intake: Intake, store: GatedStore) -> None:
    """It runs in a thread of the intake's."""

    async def main() -> None:
        with store.closed_gate():
            waiting = [asyncio.wrap_future(intake.enqueue_soon([draft(number)])) for number in range(100)]
            await asyncio.sleep(0)
            assert not any(one.done() for one in waiting)
        accepted = await asyncio.gather(*waiting)
        assert len({one.request_id for (one,) in accepted}) == 100

    asyncio.run(main())
    assert len(store.commits) <= 2
    assert sum(map(len, store.commits)) == 100


def test_one_callers_conflict_does_not_hurt_the_others(
    intake: Intake, store: GatedStore, pool: ThreadPoolExecutor
) -> None:
    """They are committed without it, and only who made the mistake is told."""
    intake.enqueue([draft("a", key="k")])
    bad = [draft("x"), draft("y"), draft("b", key="k"), draft("z")]
    waiting = queue_behind(intake, store, pool, [[draft("c")], bad, [draft("d")], [draft("e", key="k")]])

    assert store.find(waiting[0].result(10)[0].request_id) is not None
    assert store.find(waiting[2].result(10)[0].request_id) is not None
    with pytest.raises(KeyConflictError) as several:
        waiting[1].result(10)
    with pytest.raises(KeyConflictError) as single:
        waiting[3].result(10)
    assert (several.value.field, several.value.index) == ("key", 2)
    assert (single.value.field, single.value.index) == ("key", None)


def test_a_conflict_of_a_lone_caller_names_its_place(intake: Intake) -> None:
    """In a list; there is no place in a single request."""
    intake.enqueue([draft("a", key="k")])

    with pytest.raises(KeyConflictError) as several:
        intake.enqueue([draft("x"), draft("b", key="k")])
    with pytest.raises(KeyConflictError) as single:
        intake.enqueue([draft("b", key="k")])
    assert (several.value.index, single.value.index) == (1, None)


def test_a_caller_gets_all_of_it_stored_or_nothing(
    intake: Intake, store: GatedStore, pool: ThreadPoolExecutor
) -> None:
    """Also where only the last of many is wrong, alone and in company."""
    intake.enqueue([draft("a", key="k")])
    bad = [*(draft(number) for number in range(10)), draft("b", key="k")]
    with pytest.raises(KeyConflictError):
        intake.enqueue(bad)
    (shared,) = queue_behind(intake, store, pool, [bad])
    with pytest.raises(KeyConflictError):
        shared.result(10)

    assert sum(waiting.request_count for waiting in store.waiting()) == 2


def test_the_same_key_twice_in_one_commit_is_one_request(
    intake: Intake, store: GatedStore, pool: ThreadPoolExecutor
) -> None:
    """Whoever comes second gets the first one's id."""
    waiting = queue_behind(intake, store, pool, [[draft("a", key="k")], [draft("a", key="k")]])
    (first,), (second,) = (one.result(10) for one in waiting)

    assert first.request_id == second.request_id
    assert (first.duplicate, second.duplicate) == (False, True)


def test_a_commit_that_fails_is_told_to_all_in_it_and_ends_there(
    intake: Intake, store: GatedStore, pool: ThreadPoolExecutor
) -> None:
    """Nothing is stored, and the next commit is like any other."""
    store.errors[1] = StoreBusyError("locked")
    for one in queue_behind(intake, store, pool, [[draft(number)] for number in range(3)]):
        with pytest.raises(StoreBusyError):
            one.result(10)

    assert intake.enqueue([draft("after")])
    assert sum(waiting.request_count for waiting in store.waiting()) == 2


def test_a_lone_commit_that_fails_is_told_to_its_caller(intake: Intake, store: GatedStore) -> None:
    """And the next one is like any other."""
    store.errors[0] = StoreBusyError("locked")
    with pytest.raises(StoreBusyError):
        intake.enqueue([draft()])

    assert intake.enqueue([draft()])


def test_an_interrupted_commit_leaves_the_line_in_order(
    intake: Intake, store: GatedStore, pool: ThreadPoolExecutor
) -> None:
    """Ctrl-C in the middle of one caller's submit must not hang the next one's."""
    store.errors[0] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        intake.enqueue([draft()])

    assert pool.submit(intake.enqueue, [draft()]).result(10)


def test_cancelled_before_its_commit_nothing_is_stored(intake: Intake, store: GatedStore) -> None:
    """A task that was cancelled while it waited has submitted nothing."""
    with store.closed_gate():
        leader = intake.enqueue_soon([draft("leader")])
        assert store.entered.wait(10)
        gone, stays = intake.enqueue_soon([draft("gone")]), intake.enqueue_soon([draft("stays")])
        assert gone.cancel()
    leader.result(10)
    stays.result(10)

    bodies = [request.body for commit in store.commits for request in commit]
    assert draft("gone").body not in bodies
    assert draft("stays").body in bodies


def test_cancelled_during_its_commit_it_is_stored(intake: Intake, store: GatedStore) -> None:
    """It is too late then, and `cancel` says so."""
    with store.closed_gate():
        under_way = intake.enqueue_soon([draft()])
        assert store.entered.wait(10)
        assert not under_way.cancel()

    assert store.find(under_way.result(10)[0].request_id) is not None


def test_one_commit_takes_a_bounded_weight(
    intake: Intake, store: GatedStore, pool: ThreadPoolExecutor
) -> None:
    """64 MB or so: others wait for the lock no longer than that takes."""
    heavy = Draft(group=group_in(), latency=DAILY, body=b'"%s"' % (b"x" * 33_000_000))
    waiting = queue_behind(intake, store, pool, [[heavy], [heavy], [heavy]])
    for one in waiting:
        one.result(10)

    assert [len(commit) for commit in store.commits] == [1, 2, 1]


def test_nothing_at_all_may_be_submitted(intake: Intake) -> None:
    """An empty list is a list."""
    assert intake.enqueue([]) == []


def test_a_deadline_of_the_callers_counts_from_the_commit(intake: Intake, clock: FakeClock) -> None:
    """That is when it was accepted."""
    clock.advance(timedelta(minutes=3))
    (own,) = intake.enqueue([draft(deadline=timedelta(hours=2))])

    assert own.accepted_at == START + timedelta(minutes=3)
    assert own.deadline_at == START + timedelta(minutes=3, hours=2)


def ids_of(enqueue: Callable[[Sequence[Draft]], list[Accepted]], count: int) -> list[str]:
    """The ids of so many requests in one call."""
    return [accepted.request_id for accepted in enqueue([draft()] * count)]


def test_ids_have_their_shape_and_are_in_order(intake: Intake, clock: FakeClock) -> None:
    """Alone, in a list, and across lists that are longer than a page: later is greater."""
    ids = []
    for count in (1, 1, 5, 150, 2500, 1, 999, 1000, 1001, 1):
        ids += ids_of(intake.enqueue, count)

    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)
    assert all(REQUEST_ID.fullmatch(request_id) for request_id in ids)
    clock.advance(timedelta(milliseconds=1))
    assert ids_of(intake.enqueue, 500)[0] > ids[-1]


def test_ids_stay_in_order_when_the_clock_goes_back(intake: Intake, clock: FakeClock) -> None:
    """As a machine's does when it is set."""
    before = ids_of(intake.enqueue, 200)
    clock.advance(timedelta(minutes=-5))

    assert ids_of(intake.enqueue, 2000)[0] > before[-1]


def test_ids_are_unique_and_in_order_of_commit_over_threads(
    intake: Intake, store: GatedStore, pool: ThreadPoolExecutor
) -> None:
    """Whoever came in an earlier commit has the smaller id."""

    def submit(count: int) -> list[str]:
        return [one for _ in range(20) for one in ids_of(intake.enqueue, count)]

    per_thread = list(pool.map(submit, [1, 3, 7, 101] * 4))
    committed = [request.request_id for commit in store.commits for request in commit]

    assert all(ids == sorted(ids) for ids in per_thread)
    assert committed == sorted(committed)
    assert sorted(one for ids in per_thread for one in ids) == committed
    assert len(set(committed)) == len(committed)


def test_two_processes_never_give_the_same_id(clock: FakeClock) -> None:
    """Though they start in the same millisecond."""
    intakes = [Intake(GatedStore(), clock) for _ in range(50)]
    ids = [ids_of(intake.enqueue, 3) for intake in intakes]
    for intake in intakes:
        intake.close()

    assert len({one for three in ids for one in three}) == 150


def test_closing_waits_for_a_commit_under_way(
    intake: Intake, store: GatedStore, pool: ThreadPoolExecutor
) -> None:
    """Whoever has closed it may close the store."""
    with store.closed_gate():
        leader = pool.submit(intake.enqueue, [draft()])
        assert store.entered.wait(10)
        waiting = pool.submit(intake.enqueue, [draft()])
        wait_until(lambda: in_line(intake) == 1, what="a caller in line")
        closing = pool.submit(intake.close)
        wait_until(lambda: intake._closed, what="the close to begin")
        assert not closing.done()
    closing.result(10)

    assert leader.done()
    assert store.find(leader.result(0)[0].request_id) is not None
    assert store.find(waiting.result(10)[0].request_id) is not None


def test_nothing_is_taken_in_after_closing(intake: Intake, store: GatedStore) -> None:
    """Whoever comes too late is told so at once."""
    intake.close()

    with pytest.raises(RouterClosedError):
        intake.enqueue([draft()])
    with pytest.raises(RouterClosedError):
        intake.enqueue_soon([draft()])
    assert store.commits == []


def test_closing_may_be_repeated(intake: Intake) -> None:
    """It changes nothing."""
    intake.close()
    intake.close()


def test_closing_in_the_middle_of_ones_own_commit_does_not_wait_for_it(clock: FakeClock) -> None:
    """As a signal handler does that closes the router: it runs within the submit that it interrupts."""

    class Interrupted(GatedStore):
        def enqueue(self, requests: Sequence[QueuedRequest]) -> list[Accepted]:
            intake.close()
            return super().enqueue(requests)

    intake = Intake(Interrupted(), clock)
    submitting = threading.Thread(target=intake.enqueue, args=([draft()],), daemon=True)
    submitting.start()
    submitting.join(10)

    assert not submitting.is_alive()
