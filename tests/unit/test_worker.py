"""The engine on its clockwork: who works, what goes on during a slow create, and how it ends."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import pytest

from llmrouter import worker as working
from llmrouter.domain.batches import BatchState
from llmrouter.domain.latency import CronLine, Interval, LatencyClass
from llmrouter.domain.reporting import EngineReport, HoldCause
from llmrouter.engine import clock_guard
from llmrouter.engine.lease import LeaseKeeper
from llmrouter.errors import LeaseLostError, StoreBusyError
from llmrouter.stores.memory import MemoryStore
from llmrouter.worker import Worker
from support.batch_api import FakeBatchApi
from support.clocks import START, FakeClock
from support.engine import LEASE, Bench, allow, lose_answer, make_engine, refuse
from support.live_api import FakeLiveApi
from support.requests import LANE, OTHER_LANE, queued
from support.stores import FailingStore
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from llmrouter.domain.requests import QueuedRequest, Waiting
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
    wait_until(lambda: not store.failures["open_batches"], what="the store to be asked")

    wait_until(
        lambda: [batch.state for batch in store.open_batches()] == [BatchState.IN_DOUBT],
        within=10,
        what="the batch to be in doubt",
    )


class Gate:
    """An API on which the creates of some batches hang until they are answered."""

    def __init__(self, api: FakeBatchApi, hangs: Callable[[list[dict[str, Any]]], bool]) -> None:
        self.answer = threading.Event()
        self.hanging = 0
        self._hangs = hangs
        self._lock = threading.Lock()
        api.before_create = self._pass

    def _pass(self, items: list[dict[str, Any]]) -> None:
        if self._hangs(items):
            with self._lock:
                self.hanging += 1
            assert self.answer.wait(30)

    def __enter__(self) -> Gate:
        return self

    def __exit__(self, *_: object) -> None:
        self.answer.set()


def own_queued(latency: str = "yearly", **options: Any) -> QueuedRequest:
    """A request that waits for its class's schedule."""
    return queued(latency=latency, window=timedelta(days=800), **options)


def test_a_create_that_hangs_keeps_no_other_class_or_lane_from_leaving(make: Make, api: FakeBatchApi) -> None:
    """They leave by their schedules, are flushed when somebody asks, and go before their deadline."""
    store = MemoryStore()
    worker = make(store, own_class("often", Interval(every=SHORT)), own_class("yearly", YEARLY))
    worker.start()
    with Gate(api, lambda items: len(items) == 5) as gate:
        store.enqueue([own_queued("often") for _ in range(5)])
        wait_until(lambda: gate.hanging, what="the create to hang")
        store.enqueue([own_queued("often", lane=OTHER_LANE)])
        wait_until(lambda: len(api.posted) == 1, what="the other lane")
        store.enqueue([own_queued()])
        worker.flush(wait=False)
        wait_until(lambda: len(api.posted) == 2, what="the other class, asked for")
        store.enqueue([queued(latency="yearly", window=timedelta(hours=3))])
        wait_until(lambda: len(api.posted) == 3, what="the other class, before its deadline")
    wait_until(lambda: len(api.posted) == 4, what="the create that hung")


def test_asking_again_and_again_does_not_use_up_the_threads(make: Make, api: FakeBatchApi) -> None:
    """While a create hangs, each who asks for a flush gets one when it has left, not a thread that waits."""
    store = MemoryStore()
    classes = [own_class(name, YEARLY) for name in ("first", "second")]
    worker = make(store, *classes)
    worker.start()
    with Gate(api, lambda items: len(items) == 2) as gate:
        store.enqueue([own_queued("first") for _ in range(2)])
        worker.flush(wait=False)
        wait_until(lambda: gate.hanging, what="the create to hang")
        store.enqueue([own_queued("first")])
        for _ in range(20):
            worker.flush(wait=False)
        store.enqueue([own_queued("second")])
        worker.flush(wait=False)
        wait_until(lambda: len(api.posted) == 1, within=10, what="the other class")
    wait_until(lambda: len(api.posted) == 3, what="what was asked for meanwhile")
    assert api.sizes.count(2) == 1


def test_a_flush_need_not_be_waited_for(make: Make, api: FakeBatchApi) -> None:
    """It begins, and nobody is kept."""
    store = MemoryStore()
    worker = make(store, own_class("yearly", YEARLY))
    worker.start()
    store.enqueue([own_queued()])
    with Gate(api, lambda _: True):
        assert worker.flush(wait=False) == 0
        assert api.posted == []
    wait_until(lambda: api.posted, what="the batch")


def test_a_flush_waits_for_what_is_leaving_already(make: Make, api: FakeBatchApi) -> None:
    """It may leave something behind that the flush is to send."""
    store = MemoryStore()
    worker = make(store, own_class("yearly", YEARLY))
    worker.start()
    created: list[int] = []
    with Gate(api, lambda items: len(items) == 2) as gate:
        store.enqueue([own_queued() for _ in range(2)])
        worker.flush(wait=False)
        wait_until(lambda: gate.hanging, what="the create to hang")
        store.enqueue([own_queued()])
        flushing = threading.Thread(target=lambda: created.append(worker.flush()))
        flushing.start()
        assert created == []
    flushing.join(10)

    assert created == [1]
    assert sorted(api.sizes) == [1, 2]


def test_a_flush_tells_of_what_went_wrong(make: Make, api: FakeBatchApi) -> None:
    """Its caller waits for it, so it is raised there; and it is noted."""
    store = FailingStore()
    worker = make(store, own_class("yearly", YEARLY))
    worker.start()
    store.enqueue([own_queued()])
    store.failures = {"claim": [StoreBusyError("locked")]}

    with pytest.raises(StoreBusyError, match="locked"):
        worker.flush()
    assert worker.problems == {"create:yearly": "locked"}
    assert worker.flush() == 1
    assert worker.problems == {}


def test_a_paused_class_is_not_flushed(make: Make, api: FakeBatchApi) -> None:
    """By no schedule, nor when it is asked for, nor before its deadline; until it is resumed."""
    store = MemoryStore()
    worker = make(store, own_class("often", Interval(every=SHORT)), own_class("other", Interval(every=SHORT)))
    worker.start()
    store.pause("often", START)
    paused = queued(latency="often", window=timedelta(hours=1))
    store.enqueue([paused])
    worker.flush()
    for _ in range(3):
        before = len(api.posted)
        store.enqueue([own_queued("other")])
        wait_until(lambda: len(api.posted) > before, what="the other class")  # noqa: B023
    assert all(paused.request_id not in posted.request_ids for posted in api.posted)
    store.resume("often")

    wait_until(lambda: any(paused.request_id in posted.request_ids for posted in api.posted), what="it")


def test_stopping_finishes_what_is_under_way_and_begins_nothing(make: Make, api: FakeBatchApi) -> None:
    """However many wait for a thread; a flush that somebody waits for ends too."""
    store = MemoryStore()
    names = [f"class-{number}" for number in range(working._CREATES + 3)]
    worker = make(store, *(own_class(name, YEARLY) for name in names))
    worker.start()
    store.enqueue([own_queued(name) for name in names])
    created: list[int] = []
    with Gate(api, lambda _: True) as gate:
        flushing = threading.Thread(target=lambda: created.append(worker.flush()), daemon=True)
        flushing.start()
        wait_until(lambda: gate.hanging == working._CREATES, what="all threads to hang")
        stopping = threading.Thread(target=worker.stop, daemon=True)
        stopping.start()
        wait_until(worker._engine.flusher.stopping.is_set, what="the stop to begin")
    stopping.join(10)
    flushing.join(10)

    assert not stopping.is_alive()
    assert not flushing.is_alive()
    assert created == [working._CREATES]
    assert len(api.posted) == working._CREATES
    assert {batch.state for batch in store.open_batches()} == {BatchState.IN_FLIGHT}
    assert len(store.waiting()) == 3


def test_stopping_records_what_could_not_be_recorded_before(make: Make, api: FakeBatchApi) -> None:
    """It is the last chance: the next process would find a doubt."""
    store = FailingStore()
    worker = make(store, own_class("yearly", YEARLY))
    worker._guarded("lease", worker._keep_lease)
    store.enqueue([own_queued()])
    store.failures = {"record_created": [StoreBusyError("locked")]}
    with pytest.raises(StoreBusyError):
        worker.flush()
    worker.stop()

    assert [batch.state for batch in store.open_batches()] == [BatchState.IN_FLIGHT]


def test_after_a_stop_the_lease_is_of_no_use(make: Make) -> None:
    """A thread that comes late with it is refused, and another process has the store at once."""
    store = MemoryStore()
    worker = make(store, own_class("yearly", YEARLY))
    worker.start()
    lease = worker._engine.keeper.lease
    assert lease is not None
    worker.stop()

    with pytest.raises(LeaseLostError):
        store.check_lease(lease)
    assert store.acquire_lease("another", START, LEASE) is not None


def test_a_problem_is_logged_when_it_is_new(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """Not each time a job fails in the same way: a full disk would fill the log too."""
    store = FailingStore()
    worker = make(store, own_class("yearly", YEARLY))
    store.failures = {"take_flush_request": [StoreBusyError("locked")] * 20 + [StoreBusyError("full")] * 20}
    worker.start()
    wait_until(lambda: not store.failures["take_flush_request"], what="all of the failures")
    wait_until(lambda: worker.problems == {}, what="the problem to pass")
    told = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]

    assert told == [
        "watch failed; it will be tried again: locked",
        "watch failed; it will be tried again: full",
    ]


def test_the_engine_reports_to_other_processes(make: Make, api: FakeBatchApi) -> None:
    """Its holds and its problems, through the store, as they come and go."""
    store = FailingStore()
    worker = make(store, own_class("often", Interval(every=SHORT)))
    worker.start()
    view = wait_until(store.engine, what="the engine to be named")
    assert view.holder == worker._engine.keeper.holder
    api.before_create = refuse(401, credential=True)
    store.enqueue([own_queued("often")])
    hold = wait_until(lambda: _report(store).holds, what="the hold")[0]
    assert (hold.lane_id, hold.cause) == (LANE.lane_id, HoldCause.CREDENTIAL)
    store.failures = {"take_flush_request": [StoreBusyError("locked")] * 50}
    wait_until(lambda: _report(store).problems == {"watch": "locked"}, what="the problem")
    store.failures = {}
    api.before_create = allow
    worker.flush()

    wait_until(lambda: (_report(store).holds, _report(store).problems) == ((), {}), what="better times")


def _report(store: Store) -> EngineReport:
    view = store.engine()
    return (view and view.report) or EngineReport(at=START)


def test_the_schedules_are_made_anew_after_a_clock_jump(make: Make) -> None:
    """What was scheduled by the old clock would come hours late, or all at once."""
    worker = make(MemoryStore(), own_class("nightly", CronLine(line="0 22 * * *")))
    worker.start()
    late = datetime.now(UTC) + timedelta(days=40)
    for job in worker._scheduler.get_jobs():
        job.modify(next_run_time=late)
    worker._guard._on_jump(-40 * 86_400.0)
    slots = {job.id: job.next_run_time for job in worker._scheduler.get_jobs()}

    assert len(slots) == len(worker._tasks)
    assert all(slot < late - timedelta(days=38) for slot in slots.values())
    assert slots["flush:nightly"].hour == 22


def test_a_slot_that_was_slept_over_is_kept(make: Make) -> None:
    """The machine was asleep at 22 h: what has become due by that is due, and not tomorrow's."""
    worker = make(MemoryStore(), own_class("nightly", CronLine(line="0 22 * * *")))
    worker.start()
    slot = datetime.now(UTC) - timedelta(minutes=30)
    job = worker._scheduler.get_job("flush:nightly")
    worker._scheduler.pause()
    job.modify(next_run_time=slot)
    worker._guard._on_jump(8 * 3600.0)

    assert worker._scheduler.get_job("flush:nightly").next_run_time == slot


def test_what_was_left_of_an_interval_is_left_after_the_clock_was_set_back(make: Make) -> None:
    """A day's interval does not begin anew each time."""
    worker = make(MemoryStore(), own_class("slow", Interval(every=timedelta(days=1))))
    worker.start()
    worker._scheduler.pause()
    in_two_hours = datetime.now(UTC) + timedelta(hours=2)
    worker._scheduler.get_job("flush:slow").modify(next_run_time=in_two_hours)
    worker._guard._on_jump(-3600.0)

    left = worker._scheduler.get_job("flush:slow").next_run_time - datetime.now(UTC)
    assert timedelta(minutes=59) < left <= timedelta(hours=1)


def test_a_clock_jump_is_noticed_while_the_worker_runs(
    make: Make, monkeypatch: pytest.MonkeyPatch, api: FakeBatchApi
) -> None:
    """Its jobs run at once, though their times were hours away."""
    monkeypatch.setattr(clock_guard, "_LOOK_EVERY_SECONDS", 0.01)
    store = MemoryStore()
    worker = make(store, own_class("often", Interval(every=SHORT)))
    worker.start()
    late = datetime.now(UTC) + timedelta(hours=1)
    for job in worker._scheduler.get_jobs():
        job.modify(next_run_time=late)
    store.enqueue([own_queued("often")])
    worker._guard._apart += 3600

    wait_until(lambda: api.posted, what="a batch")


def test_a_cancel_that_hangs_stops_nothing_else(make: Make, api: FakeBatchApi) -> None:
    """Flushes that are asked for, least of all."""
    store = MemoryStore()
    worker = make(store, own_class("yearly", YEARLY))
    worker.start()
    unwanted = own_queued()
    store.enqueue([unwanted])
    worker.flush()
    hanging, answer = threading.Event(), threading.Event()

    def hang(_: str) -> None:
        hanging.set()
        assert answer.wait(30)

    api.before_cancel = hang
    store.cancel([unwanted.request_id], START, in_batches=True)
    try:
        assert hanging.wait(10)
        store.enqueue([own_queued()])
        store.request_flush()
        wait_until(lambda: len(api.posted) == 2, within=10, what="the flush")
    finally:
        answer.set()
    wait_until(lambda: api.posted[0].canceled_at, what="the cancel")


def test_a_doubt_is_settled_by_the_clockwork(make: Make, api: FakeBatchApi, clock: FakeClock) -> None:
    """From the lost answer to the outcome, without anybody asking."""
    store = MemoryStore()
    worker = make(store, own_class("often", Interval(every=SHORT)))
    api.after_create = lose_answer
    worker.start()
    request = own_queued("often")
    store.enqueue([request])
    wait_until(lambda: [one.candidates for one in store.open_batches()] == [("msgbatch_0",)], what="a find")
    api.end()

    wait_until(lambda: list(store.outcomes([request.request_id])), what="the answer")
    assert len(api.posted) == 1


def test_years_slept_over_are_not_listed_second_by_second(make: Make) -> None:
    """A machine without a clock of its own gets the year from the network: the engine goes on at once."""
    worker = make(MemoryStore(), own_class("often", Interval(every=SHORT)))
    worker.start()
    worker._scheduler.pause()
    job = worker._scheduler.get_job("watch")
    job.modify(next_run_time=datetime.now(UTC) - timedelta(days=20 * 365))

    assert len(job._get_run_times(datetime.now(UTC))) <= 3


def test_a_refusal_of_an_earlier_lease_does_not_lose_this_one() -> None:
    """A thread that was slow came with the lease before."""
    store, clock = MemoryStore(), FakeClock()
    keeper = LeaseKeeper(store)
    keeper.run_once(clock.now())
    keeper.lose()
    assert keeper.lease is not None
    store.release_lease(keeper.lease)
    keeper.lose()
    assert keeper.lease is None


def test_what_has_no_time_for_a_batch_is_answered_live(clock: FakeClock, api: FakeBatchApi) -> None:
    """By the clockwork alone; and stopping waits for what is under way."""
    store, live = MemoryStore(), FakeLiveApi()
    engine = make_engine(store, api, clock, own_class("yearly", YEARLY), live=live)
    worker = Worker(engine, poll=SHORT, timezone=ZoneInfo("UTC"))
    worker.start()
    request = queued(latency="yearly", window=timedelta(minutes=5))
    store.enqueue([request])
    wait_until(lambda: list(store.outcomes([request.request_id])), what="the answer")
    live.slow = True
    other = queued(latency="yearly", window=timedelta(minutes=5))
    store.enqueue([other])
    wait_until(lambda: len(live.began) == 2, what="the call")
    stopping = threading.Thread(target=worker.stop)
    stopping.start()
    live.let_go()
    stopping.join(30)

    assert not stopping.is_alive()
    assert list(store.outcomes([other.request_id]))
    assert (api.posted, store.open_batches()) == ([], [])


def test_a_problem_of_the_sender_is_told_until_it_is_over(clock: FakeClock, api: FakeBatchApi) -> None:
    """Answers that cannot be written were paid for."""
    store = FailingStore()
    engine = make_engine(store, api, clock, own_class("yearly", YEARLY))
    worker = Worker(engine, poll=SHORT, timezone=ZoneInfo("UTC"))
    store.failures = {"answer": [StoreBusyError("locked")] * 2}
    worker.start()
    request = queued(latency="yearly", window=timedelta(minutes=5))
    store.enqueue([request])
    wait_until(lambda: "locked" in worker.problems.get("escalate", ""), what="the problem")
    wait_until(lambda: list(store.outcomes([request.request_id])), what="the answer")
    wait_until(lambda: worker.problems == {}, what="the problem to pass")
    worker.stop()
