"""The engine on its clockwork: who works, what goes on during a slow create, and how it ends."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import pytest

from llmrouter import worker as working
from llmrouter.domain.batches import BatchState
from llmrouter.domain.latency import CronLine, Interval, LatencyClass
from llmrouter.errors import StoreBusyError
from llmrouter.stores.memory import MemoryStore
from llmrouter.worker import Worker
from support.batch_api import FakeBatchApi
from support.clocks import FakeClock
from support.engine import LEASE, Bench, make_engine
from support.requests import queued
from support.stores import FailingStore
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from llmrouter.domain.requests import Waiting
    from llmrouter.ports import Lease, Store

    Make = Callable[..., Worker]

pytestmark = pytest.mark.timeout(60)


SHORT = timedelta(seconds=0.02)
YEARLY = CronLine(line="0 0 1 1 *")


class LeaseStore(MemoryStore):
    """Counts how often the lease is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def acquire_lease(self, holder: str, now: datetime, length: timedelta) -> Lease | None:
        """See `Store.acquire_lease`."""
        self.asked += 1
        return super().acquire_lease(holder, now, length)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clockwork that does in hundredths of a second what it does in seconds."""
    monkeypatch.setattr(working, "RENEW_EVERY", SHORT)
    monkeypatch.setattr(working, "_WATCH_SECONDS", SHORT.total_seconds())


@pytest.fixture
def clock() -> FakeClock:
    """Stands still."""
    return FakeClock()


@pytest.fixture
def api(clock: FakeClock) -> FakeBatchApi:
    """Takes every batch."""
    return FakeBatchApi(clock)


@pytest.fixture
def make(api: FakeBatchApi, clock: FakeClock) -> Iterator[Make]:
    """Makes workers that are stopped at the end."""
    made: list[Worker] = []

    def make_worker(store: Store, *classes: LatencyClass, **options: Any) -> Worker:
        given: dict[str, Any] = {"poll": SHORT, "timezone": ZoneInfo("UTC"), **options}
        made.append(Worker(make_engine(store, api, clock, *classes), **given))
        return made[-1]

    yield make_worker
    for worker in made:
        worker.stop()


def own_class(
    name: str, flush: Interval | CronLine, deadline: timedelta = timedelta(days=800)
) -> LatencyClass:
    """A class of one's own."""
    return LatencyClass(name=name, deadline=deadline, flush=flush)


def test_one_of_two_workers_works(make: Make) -> None:
    """The other stands by, and takes over when the first one ends."""
    store = MemoryStore()
    first, second = make(store), make(store)
    first.start()
    second.start()
    assert (first.working, second.working) == (True, False)
    first.stop()

    wait_until(lambda: second.working, what="the second one to take over")
    assert not first.working


def test_an_interval_begins_with_a_flush(make: Make, api: FakeBatchApi) -> None:
    """Of what an earlier process left behind."""
    store = MemoryStore()
    store.enqueue([queued()])
    make(store).start()

    wait_until(lambda: api.posted, what="a batch")


def test_a_schedule_that_fires_sends_its_class(make: Make, api: FakeBatchApi) -> None:
    """And no other one."""
    store = MemoryStore()
    make(store, own_class("often", Interval(every=SHORT)), own_class("yearly", YEARLY)).start()
    window = timedelta(days=800)
    waits, goes = queued(latency="yearly", window=window), queued(latency="often", window=window)
    store.enqueue([waits, goes])

    wait_until(lambda: api.posted, what="a batch")
    assert api.posted[0].request_ids == [goes.request_id]
    assert [waiting.latency for waiting in store.waiting()] == ["yearly"]


def test_what_its_next_slot_would_make_late_leaves_before_it(make: Make, api: FakeBatchApi) -> None:
    """A deadline of the caller's own, shorter than the schedule of the class allows."""
    store = MemoryStore()
    make(store, own_class("yearly", YEARLY)).start()
    store.enqueue([queued(latency="yearly", window=timedelta(hours=3))])

    wait_until(lambda: api.posted, what="a batch")


def test_a_cron_line_counts_weekdays_from_sunday(make: Make) -> None:
    """As cron does: 1 is Monday."""
    worker = make(MemoryStore(), own_class("mondays", CronLine(line="0 22 * * 1")))
    worker.start()
    slot = worker._next_slots()["mondays"]

    assert (slot.strftime("%A"), slot.hour, slot.minute) == ("Monday", 22, 0)


def test_a_cron_line_is_in_the_time_zone_of_the_settings(make: Make) -> None:
    """Ten in the evening is ten in the evening there."""
    nightly = own_class("nightly", CronLine(line="0 22 * * *"))
    worker = make(MemoryStore(), nightly, timezone=ZoneInfo("Asia/Kolkata"))
    worker.start()
    slot = worker._next_slots()["nightly"]

    assert (slot.hour, slot.utcoffset()) == (22, timedelta(hours=5, minutes=30))


def test_a_flush_sends_everything_now(make: Make, api: FakeBatchApi) -> None:
    """Whatever the schedules say."""
    store = MemoryStore()
    worker = make(store, own_class("yearly", YEARLY))
    worker.start()
    store.enqueue([queued(latency="yearly", window=timedelta(days=800)) for _ in range(3)])

    assert worker.flush() == 1
    assert worker.flush() == 0
    assert api.sizes == [3]


def test_a_flush_is_passed_on_to_whoever_works(make: Make, api: FakeBatchApi) -> None:
    """Through the store: the worker may be in another process."""
    store = MemoryStore()
    first, second = (make(store, own_class("yearly", YEARLY)) for _ in range(2))
    first.start()
    second.start()
    store.enqueue([queued(latency="yearly", window=timedelta(days=800))])

    assert second.flush() == 0
    wait_until(lambda: api.posted, what="a batch")


def test_a_flush_of_a_worker_that_was_taken_over_is_passed_on(make: Make, clock: FakeClock) -> None:
    """It learns of it in the flush, and its caller does not have to know."""
    store = MemoryStore()
    worker = make(store, own_class("yearly", YEARLY))
    worker._guarded("lease", worker._keep_lease)
    store.enqueue([queued(latency="yearly", window=timedelta(days=800))])
    clock.advance(LEASE)
    taken = store.acquire_lease("another", clock.now(), LEASE)
    assert taken is not None

    assert worker.flush() == 0
    assert not worker.working
    assert store.take_flush_request(taken)


def test_a_slow_create_stops_nothing_else(make: Make, api: FakeBatchApi) -> None:
    """The lease is renewed and other batches are collected, however many classes are due meanwhile."""
    store = LeaseStore()
    classes = [own_class(f"class-{number}", Interval(every=SHORT)) for number in range(6)]
    ready, answer = threading.Event(), threading.Event()

    def hang(items: list[dict[str, Any]]) -> None:
        if len(items) == 2:
            ready.set()
            assert answer.wait(30)

    api.before_create = hang
    make(store, *classes).start()
    window = timedelta(days=800)
    first = queued(latency="class-0", window=window)
    store.enqueue([first])
    wait_until(lambda: store.open_batches() and api.posted, what="a batch in flight")
    store.enqueue([queued(latency=f"class-{number}", window=window) for number in range(6) for _ in "ab"])
    try:
        assert ready.wait(10)
        asked = store.asked
        wait_until(lambda: store.asked > asked + 20, within=10, what="the lease to be renewed")
        api.end()
        wait_until(lambda: list(store.outcomes([first.request_id])), within=10, what="an answer")
    finally:
        answer.set()


def test_stopping_waits_for_a_create_under_way(make: Make, api: FakeBatchApi) -> None:
    """Also for one of a `flush` in another thread: its answer has to be written down."""
    store = MemoryStore()
    entered, answer = threading.Event(), threading.Event()

    def hang(_: object) -> None:
        entered.set()
        assert answer.wait(30)

    api.before_create = hang
    worker = make(store, own_class("yearly", YEARLY))
    worker.start()
    store.enqueue([queued(latency="yearly", window=timedelta(days=800))])
    flushing = threading.Thread(target=worker.flush)
    flushing.start()
    assert entered.wait(10)
    states: list[BatchState] = []

    def stop() -> None:
        worker.stop()
        states.extend(batch.state for batch in store.open_batches())

    stopping = threading.Thread(target=stop)
    stopping.start()
    wait_until(lambda: not worker._scheduler.running, what="the clockwork to stand still")
    answer.set()
    stopping.join(10)
    flushing.join(10)

    assert states == [BatchState.IN_FLIGHT]


def test_stopping_waits_for_a_look_at_the_backlog(make: Make) -> None:
    """And only for that: the look must not wait for the stop in turn."""
    entered, go_on = threading.Event(), threading.Event()

    class Slow(MemoryStore):
        def waiting(self) -> list[Waiting]:
            entered.set()
            assert go_on.wait(30)
            return super().waiting()

    worker = make(Slow(), own_class("yearly", YEARLY))
    worker.start()
    assert entered.wait(10)
    stopping = threading.Thread(target=worker.stop, daemon=True)
    stopping.start()
    wait_until(lambda: not worker._scheduler.running, what="the stop to begin")
    assert stopping.is_alive()
    go_on.set()
    stopping.join(10)

    assert not stopping.is_alive()


def test_stopping_gives_the_lease_back(make: Make) -> None:
    """And may be repeated, or come before the start."""
    store = MemoryStore()
    worker = make(store)
    worker.start()
    worker.stop()
    worker.stop()
    make(store).stop()

    assert not worker.working
    assert make(store).flush() == 0


def test_what_goes_wrong_is_shown_until_it_goes_well_again(make: Make, api: FakeBatchApi) -> None:
    """By job; the others go on."""
    store = FailingStore()
    worker = make(store)
    store.failures = {"take_flush_request": [ValueError("odd")] * 3 + [StoreBusyError("locked")]}
    worker.start()

    wait_until(lambda: "locked" in worker.problems.get("watch", ""), what="the problem")
    wait_until(lambda: worker.problems == {}, what="the problem to pass")


def test_intents_are_looked_at_again_when_the_store_was_busy(make: Make, clock: FakeClock) -> None:
    """Else a batch that a killed process was about to create would be forgotten until the next take-over."""
    store = FailingStore()
    bench = Bench(store=store)
    bench.enqueue(2)
    bench.store.claim(
        bench.lease,
        bench.waiting(),
        bench.limits["daily"],
        batch_id="batch_1",
        nonce="n" * 10,
        now=clock.now(),
    )
    store.release_lease(bench.lease)
    worker = make(store)
    store.failures = {"open_batches": [StoreBusyError("locked")]}
    worker.start()

    wait_until(
        lambda: [batch.state for batch in store.open_batches()] == [BatchState.IN_DOUBT],
        within=10,
        what="the batch to be in doubt",
    )
