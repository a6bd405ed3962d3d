"""The whole engine, whatever happens to it: each request ends once and is paid for at most once."""

from __future__ import annotations

import logging
import os
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from llmrouter.stores import framing
from llmrouter.stores.disk import DiskStore
from llmrouter.stores.memory import MemoryStore
from support.engine_world import CALLS, CLASSES, FAULTS, LANES, LIVE_FAULTS, PARTS, TURN, World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from llmrouter.ports import Store
    from support.engine_world import OneRouter, Process

SPANS = st.sampled_from(
    [
        timedelta(**span)
        for span in (
            {"seconds": 1},
            {"seconds": 20},
            {"seconds": 35},
            {"seconds": 70},
            {"minutes": 3},
            {"minutes": 20},
            {"hours": 2},
            {"hours": 7},
            {"days": 1},
            {"days": 3},
            {"days": 9},
        )
    ]
)
WINDOWS = st.sampled_from(
    [
        *[timedelta(days=1)] * 3,
        timedelta(days=7),
        timedelta(hours=1),
        timedelta(minutes=30),
        timedelta(minutes=10),
    ]
)
PICK = st.integers(0, 3)
"""Which one of however many there are."""
WHICH = st.integers(0, 1)
"""Of two."""
SUCCEEDED = ("succeeded", None)
ENDS = st.lists(
    st.sampled_from(
        [
            SUCCEEDED,
            SUCCEEDED,
            ("errored", "invalid_request_error"),
            ("errored", "overloaded_error"),
            ("expired", None),
            ("canceled", None),
        ]
    ),
    min_size=1,
    max_size=3,
)
PART = st.sampled_from([*PARTS, "turn", "turn"])
MOMENT = st.one_of(
    st.tuples(PART, st.integers(0, 40)),
    st.builds(
        lambda side, call: (CALLS[call], f"{side} {call}"),
        st.sampled_from(["before", "amid", "after"]),
        st.sampled_from(sorted(CALLS)),
    ),
)
"""A part of the work, and after how many calls, or at which."""
MEANWHILE = st.lists(st.tuples(PICK, PART, SPANS), min_size=1, max_size=4)


class EngineMachine(RuleBasedStateMachine):
    """Two routers in one workspace, each with processes that are killed, paused and overtaken."""

    def __init__(self, openings: Sequence[Callable[[], Store]]) -> None:
        """Begins with two empty stores.

        Args:
            openings: Each opens one and the same store each time.
        """
        super().__init__()
        self.world = World(openings)

    def teardown(self) -> None:
        """In the end everything is answered."""
        try:
            self.world.drain()
        finally:
            self.world.close()

    @initialize(
        names_bad=st.booleans(),
        hours=st.sampled_from([0, 0, -2, 2]),
        faults=st.lists(st.sampled_from(sorted(FAULTS)), max_size=2),
    )
    def begin(self, names_bad: bool, hours: int, faults: list[str]) -> None:
        """With something to do, with a clock that is wrong perhaps, and an API that is not well."""
        self.world.api.names_bad, self.world.api.faults = names_bad, faults
        self.world.set_clock(timedelta(hours=hours))
        for which in (0, 1):
            self.router(which).submit(2, LANES[0], CLASSES[0], None, bad=False)

    @rule(
        which=WHICH,
        count=st.integers(1, 7),
        lane=st.sampled_from(LANES),
        latency=st.sampled_from(CLASSES),
        key=st.sampled_from([None, None, None, "k1", "k2"]),
        bad=st.sampled_from([False] * 5 + [True]),
        window=WINDOWS,
    )
    def submit(self, which, count, lane, latency, key, bad, window) -> None:
        """Requests come in; some of them the API will not take."""
        if key is not None:
            latency = CLASSES[0]
        self.router(which).submit(1 if bad else count, lane, latency, key, bad=bad, window=window)

    @rule(which=WHICH, times=st.integers(1, 4))
    def take_turns(self, which: int, times: int) -> None:
        """A process does all of its work, some times over."""
        for _ in range(times):
            self.process(which, 0).run(*TURN)
            self.world.advance(timedelta(seconds=5))

    @rule(which=WHICH, pick=PICK, part=PART)
    def work(self, which: int, pick: int, part: str) -> None:
        """A process does some of its work."""
        self.run(self.process(which, pick), part)

    @rule(which=WHICH, pick=PICK, at=MOMENT, presses=st.booleans())
    def work_and_die(self, which: int, pick: int, at: tuple[str, int | str], presses: bool) -> None:
        """A process is killed in the middle of it."""
        process = self.process(which, pick)
        process.run("lease")
        self.press(which, process, at, presses=presses)
        part, process.fuse = at
        process.rest = None
        self.run(process, part)
        process.fuse = None

    @rule(which=WHICH, pick=PICK, at=MOMENT, meanwhile=MEANWHILE, presses=st.booleans())
    def work_and_rest(self, which: int, pick: int, at: tuple[str, int | str], meanwhile, presses) -> None:
        """A process stands still in the middle of it, and the others go on. Then it wakes up."""
        process = self.process(which, pick)
        process.run("lease")
        self.press(which, process, at, presses=presses)

        def rest() -> None:
            for other, what, span in meanwhile:
                self.world.advance(span)
                self.run(self.process(which, other), what, asleep=process)

        self.run_and_rest(process, at, rest)

    @rule(which=WHICH, pick=PICK, at=MOMENT, flushes=st.booleans(), presses=st.booleans())
    def work_and_be_overtaken(self, which: int, pick: int, at, flushes: bool, presses: bool) -> None:
        """Another process has the lease and has cleared up by the time it wakes up."""
        process = self.process(which, pick)
        process.run("lease")
        self.press(which, process, at, presses=presses)
        router = self.router(which)

        def rest() -> None:
            others = [one for one in router.alive() if one is not process]
            other = others[0] if others else router.spawn()
            for seconds in (35, 10, 130):
                self.world.advance(timedelta(seconds=seconds))
                other.run("lease", "tidy", "escalate", "send", "send", "reconcile", "poll")
                if flushes:
                    other.run("flush")

        self.run_and_rest(process, at, rest)

    @rule(which=WHICH, pick=PICK, part=PART, calls=st.integers(1, 3))
    def work_on_a_busy_store(self, which: int, pick: int, part: str, calls: int) -> None:
        """Some of its calls find the store locked."""
        process = self.process(which, pick)
        process.locked = calls
        self.run(process, part)
        process.locked = 0

    @rule(which=WHICH, pick=PICK, part=PART, calls=st.integers(1, 30), locked=st.integers(1, 2))
    def store_locks_up(self, which: int, pick: int, part: str, calls: int, locked: int) -> None:
        """In the middle of its work the store is locked for a while."""
        process = self.process(which, pick)

        def rest() -> None:
            process.locked = locked

        process.fuse, process.rest = calls, rest
        self.run(process, part)
        process.fuse, process.rest, process.locked = None, None, 0

    @rule(which=WHICH, pick=PICK)
    def kill(self, which: int, pick: int) -> None:
        """A process ends; the next one begins with nothing in memory."""
        self.process(which, pick).die()

    @rule(which=WHICH)
    def spawn(self, which: int) -> None:
        """A second process on the same store."""
        if len(self.router(which).alive()) < 2:
            self.router(which).spawn()

    @precondition(lambda self: self.world.api.running())
    @rule(pick=PICK, ends=ENDS, cut=st.sampled_from([False, False, True]), polls=st.integers(0, 4))
    def end(self, pick: int, ends, cut: bool, polls: int) -> None:
        """A batch ends; its results come cut short at first, perhaps."""
        running = self.world.api.running()
        self.world.api.finish(running[pick % len(running)], ends)
        if cut:
            self.trouble("cut", 30, 1)
        for which in (0, 1) * polls:
            self.process(which, 0).run("poll")

    @rule(span=SPANS)
    def advance(self, span: timedelta) -> None:
        """Time passes."""
        self.world.advance(span)

    @rule(faults=st.lists(st.sampled_from(sorted(FAULTS)), min_size=1, max_size=2))
    def spoil_creates(self, faults: list[str]) -> None:
        """The next creates go wrong."""
        self.world.api.faults = faults

    @rule(faults=st.lists(st.sampled_from([None, *sorted(LIVE_FAULTS)]), min_size=1, max_size=4))
    def spoil_calls(self, faults: list[str | None]) -> None:
        """The next live calls go wrong."""
        self.world.live.next.clear()
        self.world.live.next.extend(None if fault is None else LIVE_FAULTS[fault]() for fault in faults)

    @rule(fault=st.sampled_from([None, None, *sorted(LIVE_FAULTS)]))
    def spoil_all_calls(self, fault: str | None) -> None:
        """The live API is not well, or well again."""
        self.world.live.down = None if fault is None else LIVE_FAULTS[fault]()

    @rule(which=WHICH, minutes=st.sampled_from([0, 8, 45, 70, 1400]), times=st.integers(1, 3))
    def let_deadlines_press(self, which: int, minutes: int, times: int) -> None:
        """Time passes to about the latest start of something, and a process works on."""
        self.world.advance(timedelta(minutes=minutes))
        for _ in range(times):
            self.process(which, 0).run(*TURN)
            self.world.advance(timedelta(seconds=20))

    @rule(seconds=st.sampled_from([0, 30, 110]))
    def lag(self, seconds: int) -> None:
        """New batches are missing in the list, for less than the grace time."""
        self.world.api.lag = timedelta(seconds=seconds)

    @rule(
        trouble=st.sampled_from(["down", "shy", "cut"]),
        span=st.sampled_from([1, 30, 100]),
        after=st.integers(0, 2),
    )
    def have_trouble(self, trouble: str, span: int, after: int) -> None:
        """For some minutes the API is not reached, finds no batch, or cuts results short."""
        self.trouble(trouble, span, after)

    def trouble(self, trouble: str, span: int, after: int) -> None:
        api = self.world.api
        until = api.now() + timedelta(minutes=span)
        api.cut_after = after
        setattr(api, f"{trouble}_until", until)

    @rule(which=WHICH, places=st.lists(st.integers(0, 40), min_size=1, max_size=4), in_batches=st.booleans())
    def cancel(self, which: int, places: list[int], in_batches: bool) -> None:
        """Owners give requests up."""
        router = self.router(which)
        if router.accepted:
            ids = {router.accepted[place % len(router.accepted)] for place in places}
            router.store.cancel(ids, self.world.clock.now(), in_batches=in_batches)

    @rule(which=WHICH, latency=st.sampled_from(CLASSES), on=st.booleans())
    def pause(self, which: int, latency: str, on: bool) -> None:
        """A class is paused, or resumed."""
        store = self.router(which).store
        store.pause(latency, self.world.clock.now()) if on else store.resume(latency)

    @rule(which=WHICH)
    def deliver(self, which: int) -> None:
        """Those who waited have their answers: they may be pruned."""
        router = self.router(which)
        router.follow()
        router.store.deliver(list(router.outcomes))

    @rule(hours=st.sampled_from([-48, -2, -1, 1, 2, 48]))
    def set_clock(self, hours: int) -> None:
        """Somebody sets the machine's clock.

        Not back while a batch is in doubt: a process that begins after that cannot know how far the
        clock was ahead when the batch was claimed.
        """
        if hours > 0 or not self.world.in_doubt():
            self.world.set_clock(timedelta(hours=hours))

    @invariant()
    def all_is_well(self) -> None:
        """See `World.check`."""
        self.world.check()

    def router(self, which: int) -> OneRouter:
        return self.world.routers[which]

    def process(self, which: int, pick: int) -> Process:
        alive = self.router(which).alive()
        return alive[pick % len(alive)]

    def press(self, which: int, process: Process, at: tuple[str, int | str], *, presses: bool) -> None:
        """Sees to it, perhaps, that there is something to do for what decides, or for what sends."""
        part, _ = at
        if presses and part in ("escalate", "send"):
            self.router(which).submit(3, LANES[0], CLASSES[0], None, bad=False, window=timedelta(minutes=10))
            if part == "send":
                process.run("escalate", "send", "escalate")

    def run_and_rest(self, process: Process, at: tuple[str, int | str], rest: Callable[[], None]) -> None:
        process.run("lease")
        part, process.fuse = at
        process.rest = rest
        self.run(process, part)
        process.fuse = process.rest = None

    def run(self, process: Process, part: str, *, asleep: Process | None = None) -> None:
        parts = TURN if part == "turn" else (part,)
        if process is asleep:
            # Its other threads go on; only what leaves waits for its turn.
            parts = tuple(one for one in parts if one not in {*process.doing, "flush"})
        process.run(*parts)


@pytest.fixture(autouse=True)
def _world(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No logs of thousands of troubles; bodies in several pieces."""
    monkeypatch.setattr(framing, "PIECE_BYTES", 100)
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


EXAMPLES = os.environ.get("LLMROUTER_MACHINE_EXAMPLES")
"""For a long search: so many, and others each time."""
SETTINGS = settings(
    max_examples=int(EXAMPLES or 400),
    stateful_step_count=int(os.environ.get("LLMROUTER_MACHINE_STEPS", "40")),
    deadline=None,
    derandomize=EXAMPLES is None,
    suppress_health_check=list(HealthCheck),
    print_blob=False,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
)


def test_each_request_ends_once_and_is_paid_once() -> None:
    """On a store in memory, whatever happens."""

    def machine() -> EngineMachine:
        stores = [MemoryStore(), MemoryStore()]
        return EngineMachine([lambda store=store: store for store in stores])

    run_state_machine_as_test(machine, settings=SETTINGS)


def test_each_request_ends_once_and_is_paid_once_on_disk(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Each process opens the store anew, and leaves it as it is when it is killed."""

    def machine() -> EngineMachine:
        folders = [tmp_path_factory.mktemp("queue") for _ in range(2)]
        return EngineMachine([partial(DiskStore, folder) for folder in folders])

    examples = SETTINGS.max_examples // 25
    run_state_machine_as_test(machine, settings=settings(SETTINGS, max_examples=examples))


ARRIVALS = st.lists(
    st.tuples(
        st.integers(0, 40),  # the minute
        st.integers(1, 6),
        st.sampled_from([timedelta(minutes=minutes) for minutes in (5, 14, 20, 45, 60)]),
    ),
    min_size=1,
    max_size=6,
)
TAKES = st.lists(st.sampled_from([1, 4, 15, 50, 1000]), min_size=1, max_size=4)
"""Minutes that batches take, by turns; and their cancels."""
STEP = timedelta(seconds=20)


@settings(SETTINGS, max_examples=max(100, SETTINGS.max_examples // 10))
@given(
    arrivals=ARRIVALS,
    takes=TAKES,
    cancels=TAKES,
    troubles=st.lists(st.sampled_from(["429", "500", "lost", "not connected"]), max_size=2),
)
def test_what_is_insured_makes_its_deadline(arrivals, takes, cancels, troubles) -> None:
    """However long batches and their cancels take, and with some calls that fail."""
    store = MemoryStore()
    world = World([lambda: store])
    router = world.routers[0]
    process = router.alive()[0]
    world.live.next.extend(LIVE_FAULTS[one]() for one in troubles)
    due = sorted(arrivals, key=lambda one: one[0])
    began = world.clock.now()
    while due or router.open_ids():
        assert world.clock.now() - began < timedelta(hours=3), "never answered"
        while due and world.clock.now() - began >= timedelta(minutes=due[0][0]):
            _, count, window = due.pop(0)
            router.submit(count, LANES[0], CLASSES[0], None, bad=False, window=window)
        process.run(*TURN)
        world.advance(STEP)
        for place, posted in enumerate(world.api.posted):
            after = timedelta(minutes=takes[place % len(takes)])
            asked = timedelta(minutes=cancels[place % len(cancels)])
            canceled = posted.canceled_at is not None and world.api.now() - posted.canceled_at >= asked
            if posted.ended_at is None and (canceled or world.api.now() - posted.created_at >= after):
                world.api.finish(posted, [("canceled", None)] if canceled else [SUCCEEDED])
        world.check()

    missed = [one for one in router.outcomes.values() if one.settled_at > one.deadline_at]
    assert [one for one in missed if one.insured] == []
    assert {one.kind for one in router.outcomes.values()} == {"succeeded"}
    assert missed == [], "a load that can be insured"
