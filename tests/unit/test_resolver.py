"""From the log of outcomes to whoever waits: nobody is missed, whatever comes first."""

from __future__ import annotations

import gc
import logging
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from llmrouter.domain.requests import OutcomeKind
from llmrouter.engine.resolver import Resolver
from llmrouter.errors import StoreBusyError
from llmrouter.stores.memory import MemoryStore
from support.clocks import START
from support.requests import queued
from support.stores import FailingStore
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from llmrouter.domain.requests import Outcome

    Make = Callable[..., "Resolver[FakeWaiter]"]

pytestmark = pytest.mark.timeout(60)


class FakeWaiter:
    """Implements `llmrouter.engine.resolver.Waiter`."""

    def __init__(self, request_id: str, then: Callable[[], None] = lambda: None) -> None:
        self.request_id = request_id
        self.outcomes: list[Outcome] = []
        self.abandoned = 0
        self.told = threading.Event()
        self._then = then

    def settle(self, outcome: Outcome) -> None:
        """See `Waiter.settle`."""
        self.outcomes.append(outcome)
        self.told.set()
        self._then()

    def abandon(self) -> None:
        """See `Waiter.abandon`."""
        self.abandoned += 1
        self.told.set()


class StillResolver(Resolver[FakeWaiter]):
    """A resolver that looks only when it is told to."""

    def _follow(self) -> None:
        return


class CountingStore(MemoryStore):
    """Counts how often the log is read, and lets something happen after a look at its end."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0
        self.looks = 0
        self.after_look: Callable[[], None] = lambda: None

    def outcome_cursor(self) -> int:
        """See `Store.outcome_cursor`."""
        end = super().outcome_cursor()
        self.looks += 1
        self.after_look()
        return end

    def outcomes_since(self, cursor: int) -> tuple[list[Outcome], int]:
        """See `Store.outcomes_since`."""
        self.reads += 1
        return super().outcomes_since(cursor)


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes resolvers that are closed at the end."""
    made: list[Resolver[FakeWaiter]] = []

    def make_resolver(store: MemoryStore, *, still: bool = True) -> Resolver[FakeWaiter]:
        kind = StillResolver if still else Resolver[FakeWaiter]
        made.append(kind(store, lambda error: logging.getLogger("tests").warning("%s", error)))
        return made[-1]

    yield make_resolver
    for resolver in made:
        resolver.close()


def enqueue(store: MemoryStore) -> str:
    """Puts a request into the queue."""
    request = queued()
    store.enqueue([request])
    return request.request_id


def settle(store: MemoryStore, *request_ids: str) -> None:
    """Ends requests, in the shortest way there is."""
    for request_id in request_ids:
        assert store.cancel([request_id], START, in_batches=False).canceled == 1


@pytest.mark.parametrize("notified", [True, False])
def test_an_outcome_comes_to_who_waits_for_it(make: Make, notified: bool) -> None:
    """Whether this process collected it, and says so, or another one."""
    store = MemoryStore()
    resolver = make(store, still=False)
    since, waiter = resolver.position(), FakeWaiter(enqueue(store))
    assert resolver.register([waiter], since) == ([waiter], False)
    settle(store, waiter.request_id)
    if notified:
        resolver.notify()

    assert waiter.told.wait(10)
    assert [(one.request_id, one.kind) for one in waiter.outcomes] == [
        (waiter.request_id, OutcomeKind.CANCELED)
    ]


def test_settled_before_it_was_registered_and_not_read_yet(make: Make) -> None:
    """The reader will come to it: no look-up is needed."""
    store = MemoryStore()
    resolver = make(store)
    since, waiter = resolver.position(), FakeWaiter(enqueue(store))
    settle(store, waiter.request_id)

    assert resolver.register([waiter], since) == ([waiter], False)
    assert resolver.run_once() == 1
    assert len(waiter.outcomes) == 1


def test_settled_and_read_before_it_was_registered(make: Make) -> None:
    """Then the reader is past it, and whoever registers is told to look."""
    store = MemoryStore()
    resolver = make(store)
    other = FakeWaiter(enqueue(store))
    resolver.register([other], resolver.position())
    since, waiter = resolver.position(), FakeWaiter(enqueue(store))
    settle(store, waiter.request_id)
    resolver.run_once()

    waiting, look = resolver.register([waiter], since)
    assert look
    resolver.look_up(waiting)
    assert len(waiter.outcomes) == 1


def test_settled_and_skipped_before_it_was_registered(make: Make) -> None:
    """While nobody waits the reader goes to the end without reading: the same holds."""
    store = MemoryStore()
    resolver = make(store)
    since, waiter = resolver.position(), FakeWaiter(enqueue(store))
    settle(store, waiter.request_id)
    resolver._skip()

    waiting, look = resolver.register([waiter], since)
    assert look
    resolver.look_up(waiting)
    assert len(waiter.outcomes) == 1


def test_nothing_is_skipped_once_somebody_waits(make: Make) -> None:
    """They may have come between the look at the end of the log and the step to it."""
    store = CountingStore()
    resolver = make(store)
    since, waiter = resolver.position(), FakeWaiter(enqueue(store))
    settle(store, waiter.request_id)
    store.after_look = lambda: resolver.register([waiter], since) and None
    resolver._skip()
    store.after_look = lambda: None

    resolver.run_once()
    assert len(waiter.outcomes) == 1


def test_a_look_up_finds_only_what_has_ended(make: Make) -> None:
    """The others go on waiting."""
    store = MemoryStore()
    resolver = make(store)
    ended, pending = FakeWaiter(enqueue(store)), FakeWaiter(enqueue(store))
    settle(store, ended.request_id)
    waiting, _ = resolver.register([ended, pending], resolver.position())
    resolver.look_up(waiting)

    assert (len(ended.outcomes), len(pending.outcomes)) == (1, 0)
    settle(store, pending.request_id)
    resolver.run_once()
    assert len(pending.outcomes) == 1


def test_an_outcome_is_handed_over_once(make: Make) -> None:
    """Looked up and read in the log as well."""
    store = MemoryStore()
    resolver = make(store)
    waiter = FakeWaiter(enqueue(store))
    resolver.register([waiter], resolver.position())
    settle(store, waiter.request_id)
    resolver.look_up([waiter])
    resolver.run_once()

    assert len(waiter.outcomes) == 1


def test_who_waits_twice_for_a_request_waits_once(make: Make) -> None:
    """The second is given the first one, in its place in the order."""
    store = MemoryStore()
    resolver = make(store)
    first, other = FakeWaiter(enqueue(store)), FakeWaiter(enqueue(store))
    resolver.register([first], resolver.position())

    waiting, _ = resolver.register([other, FakeWaiter(first.request_id)], resolver.position())

    assert waiting == [other, first]


def test_a_long_log_is_read_to_its_end(make: Make) -> None:
    """Chunk after chunk."""
    store = MemoryStore()
    resolver = make(store)
    waiters = [FakeWaiter(enqueue(store)) for _ in range(2500)]
    resolver.register(waiters, resolver.position())
    settle(store, *(waiter.request_id for waiter in waiters))

    assert resolver.run_once() == 2500
    assert all(len(waiter.outcomes) == 1 for waiter in waiters)
    assert resolver.run_once() == 0


def test_the_log_is_not_read_while_nobody_waits(make: Make) -> None:
    """An application that only submits does not pay for the outcomes of others."""
    store = CountingStore()
    resolver = make(store, still=False)
    settle(store, *(enqueue(store) for _ in range(10)))
    looks = store.looks
    resolver.notify()
    wait_until(lambda: store.looks > looks, what="a look at the end of the log")

    assert store.reads == 0


def test_what_is_listened_to_is_held_until_its_outcome(make: Make) -> None:
    """And let go then."""
    store = MemoryStore()
    resolver = make(store)
    waiter = FakeWaiter(enqueue(store))
    resolver.register([waiter], resolver.position())
    resolver.pin(waiter)
    request_id, kept = waiter.request_id, weakref.ref(waiter)
    del waiter
    gc.collect()
    assert kept() is not None

    settle(store, request_id)
    resolver.run_once()
    gc.collect()
    assert kept() is None


def test_what_does_not_wait_here_is_not_held(make: Make) -> None:
    """A real-time future lives as long as its call."""
    resolver = make(MemoryStore())
    waiter = FakeWaiter("live_1")
    resolver.pin(waiter)
    kept = weakref.ref(waiter)
    del waiter
    gc.collect()

    assert kept() is None


def test_a_store_that_fails_is_asked_again(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """One bad look does not end all waiting."""
    store = FailingStore()
    resolver = make(store, still=False)
    store.failures = {name: [StoreBusyError("locked")] * 2 for name in ("outcomes_since", "outcome_cursor")}
    waiter = FakeWaiter(enqueue(store))
    resolver.register([waiter], resolver.position())
    settle(store, waiter.request_id)
    resolver.notify()

    assert waiter.told.wait(10)
    assert "locked" in caplog.text


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt])
def test_a_waiter_that_fails_does_not_hurt_the_others(make: Make, error: type[BaseException]) -> None:
    """Those in the same chunk, and those that come later: a callback may even call `sys.exit`."""

    def fail() -> None:
        raise error

    store = MemoryStore()
    resolver = make(store, still=False)
    bad, same = FakeWaiter(enqueue(store), fail), FakeWaiter(enqueue(store))
    later = FakeWaiter(enqueue(store))
    resolver.register([bad, same, later], resolver.position())
    settle(store, bad.request_id, same.request_id)
    assert same.told.wait(10)
    settle(store, later.request_id)

    assert later.told.wait(10)
    assert len(bad.outcomes) == 1


def test_closing_tells_who_still_waits(make: Make) -> None:
    """Once, and not those that have their outcome."""
    store = MemoryStore()
    resolver = make(store)
    ended, pending = FakeWaiter(enqueue(store)), FakeWaiter(enqueue(store))
    resolver.register([ended, pending], resolver.position())
    settle(store, ended.request_id)
    resolver.run_once()
    resolver.close()

    assert (ended.abandoned, pending.abandoned) == (0, 1)


def test_who_registers_after_closing_is_told_at_once(make: Make) -> None:
    """A submit that lost the race with `close` must not wait for ever."""
    store = MemoryStore()
    resolver = make(store)
    since = resolver.position()
    resolver.close()
    waiter = FakeWaiter(enqueue(store))

    waiting, look = resolver.register([waiter], since)

    assert (waiting, look, waiter.abandoned) == ([waiter], False, 1)


def test_a_waiter_may_close_the_resolver(make: Make) -> None:
    """From a callback, which runs on its thread: the first answer ends a program, say."""
    store = MemoryStore()
    resolver = make(store, still=False)
    closed = threading.Event()

    def close() -> None:
        resolver.close()
        closed.set()

    waiter, other = FakeWaiter(enqueue(store), close), FakeWaiter(enqueue(store))
    resolver.register([waiter, other], resolver.position())
    settle(store, waiter.request_id)

    assert closed.wait(10)
    assert other.abandoned == 1


def test_a_waiter_may_begin_to_wait_for_another(make: Make) -> None:
    """A callback that submits the next step."""
    store = MemoryStore()
    resolver = make(store, still=False)
    following = FakeWaiter(enqueue(store))

    def go_on() -> None:
        resolver.register([following], resolver.position())
        settle(store, following.request_id)

    first = FakeWaiter(enqueue(store), go_on)
    resolver.register([first], resolver.position())
    settle(store, first.request_id)

    assert following.told.wait(10)


def test_nobody_is_missed_in_a_crowd(make: Make) -> None:
    """Threads submit, register and settle as they come; some settle before they register."""
    store = MemoryStore()
    resolver = make(store, still=False)
    waiters: list[FakeWaiter] = []

    def submit(number: int) -> None:
        for step in range(100):
            since = resolver.position()
            waiter = FakeWaiter(enqueue(store))
            waiters.append(waiter)
            early = (number + step) % 2
            if early:
                settle(store, waiter.request_id)
                resolver.notify()
            waiting, look = resolver.register([waiter], since)
            if look:
                resolver.look_up(waiting)
            if not early:
                settle(store, waiter.request_id)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(submit, range(8)))

    assert all(waiter.told.wait(10) for waiter in waiters)
    assert all(len(waiter.outcomes) == 1 for waiter in waiters)


class DeliveryStore(FailingStore):
    """Tells which outcomes are known to have reached somebody."""

    def __init__(self) -> None:
        super().__init__()
        self.delivered: list[str] = []
        self.told = threading.Event()

    def deliver(self, request_ids: Collection[str]) -> None:
        """See `Store.deliver`."""
        self.delivered += request_ids
        self.told.set()
        super().deliver(request_ids)


def test_the_store_learns_what_reached_somebody(make: Make) -> None:
    """What nobody waited for does not count: it is kept until somebody picks it up."""
    store = DeliveryStore()
    resolver = make(store, still=False)
    since, waiter = resolver.position(), FakeWaiter(enqueue(store))
    ignored = enqueue(store)
    resolver.register([waiter], since)
    settle(store, ignored, waiter.request_id)

    assert store.told.wait(10)
    assert store.delivered == [waiter.request_id]


def test_a_delivery_that_could_not_be_noted_is_noted_later(make: Make) -> None:
    """The store was busy at first; the answer went to its future all the same."""
    store = DeliveryStore()
    resolver = make(store, still=False)
    store.failures["deliver"] = [StoreBusyError("busy")]
    since, waiter = resolver.position(), FakeWaiter(enqueue(store))
    resolver.register([waiter], since)
    settle(store, waiter.request_id)

    assert waiter.told.wait(10)
    assert store.told.wait(10)
    assert store.delivered == [waiter.request_id]


def test_closing_notes_what_was_delivered(make: Make) -> None:
    """A process that ends in order leaves nothing behind that was picked up."""
    store = DeliveryStore()
    resolver = make(store)
    waiter = FakeWaiter(enqueue(store))
    settle(store, waiter.request_id)
    resolver.register([waiter], 0)
    resolver.look_up([waiter])
    resolver.close()

    assert store.delivered == [waiter.request_id]
