"""A process killed or stopped at each step of going live, and what the next one makes of it.

The batches of these tests do not end: what is answered in time goes live. The sandbox's own books say
what was paid, and the store's tally what the router knows of it.
"""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from llmrouter.domain.requests import Route
from llmrouter.stores.disk import DiskStore
from support.processes import Puppet
from support.recovery import IDLE
from support.waiting import wait_until
from support.world import BULK

if TYPE_CHECKING:
    from llmrouter.domain.ledger import ClassTally
    from support.world import World

pytestmark = [pytest.mark.crash, pytest.mark.timeout(120)]

COUNT = 12
PRESSING: dict[str, Any] = {
    "classes": {BULK: {"deadline": 3, "flush": 0.05}},
    "policy": {"margin_min": 0.5, "margin_max": 0.5, "min_window": 0.1, "cancel_lead": 0.5, "ramp": 0.001},
    "live_concurrency": 200,
    "live_requests_per_minute": 60_000,
}


def kill_at(point: str, world: World) -> None:
    """A process submits, flushes, and is killed when it goes live."""
    with Puppet(world, failpoint=point) as process:
        submit(process)
        process.wait_until_killed()


def submit(process: Puppet) -> None:
    """Lets it submit what will be late unless it goes live."""
    process.ask("open", "opened", **PRESSING)
    process.ask("submit_many", "submitted", first=0, count=COUNT)


def answer_all(world: World, **haste: float) -> list[str]:
    """Another process answers everything; returns what it had to say."""
    with Puppet(world) as process:
        if haste:
            process.ask("hasten", "hastened", **haste)
        process.ask("open", "opened", **PRESSING)
        process.ask("wait", "waiting", numbers=list(range(COUNT)))
        process.wait_for(lambda _: len(process.values("answered")) == COUNT, what="all answers")
        wait_until(lambda: escalating(world) == 0, what="no more to go live")
        world.finish()  # The batch that was raced ends, too, with nothing more to say.
        wait_until(lambda: process.status() == IDLE, what="nothing to be left")
        process.kill()
        return [line.rstrip() for line in process.stderr]


def opened(world: World) -> DiskStore:
    return DiskStore(Path(world.store.removeprefix("disk://")))


def escalating(world: World) -> int:
    """Batches of requests that go live."""
    store = opened(world)
    try:
        return sum(batch.state.value == "escalating" for batch in store.open_batches())
    finally:
        store.close()


def tally(world: World) -> ClassTally:
    """What the store says came of the requests."""
    store = opened(world)
    try:
        return store.tally()[BULK]
    finally:
        store.close()


def charged(world: World) -> Counter[int]:
    """How many requests were charged how often."""
    return Counter(world.sandbox.books.count_charges().values())


@pytest.mark.parametrize("point", ["recalled", "canceling", "escalating"])
def test_killed_before_a_call_is_made(world: World, point: str) -> None:
    """The decision is on disk, and nothing was sent live: the next process goes on, and pays once."""
    kill_at(point, world)
    assert not world.sandbox.books.calls["messages.create"]

    answer_all(world)
    found = tally(world)
    assert sum(found.settled.values()) == COUNT
    assert (found.resent, found.wasted) == (0, 0)
    assert charged(world) == {1: COUNT}


def test_killed_before_its_calls_are_sent(world: World) -> None:
    """The intents are on disk: nobody can know whether they were paid, so they are counted, and made."""
    kill_at("calling", world)
    assert not world.sandbox.books.calls["messages.create"]

    answer_all(world)
    found = tally(world)
    assert found.settled == {Route.ESCALATED: COUNT}
    assert found.resent > 0
    assert charged(world) == {1: COUNT}


def test_killed_with_answers_that_are_not_written(world: World) -> None:
    """They were paid for and are lost: those requests are sent again, and counted."""
    kill_at("answered", world)
    paid = sum(charged(world).values())
    assert paid > 0

    answer_all(world)
    found = tally(world)
    assert found.settled == {Route.ESCALATED: COUNT}
    counts = charged(world)
    assert counts[1] + counts[2] == COUNT
    assert paid <= counts[2] + found.resent
    assert counts[2] <= found.resent
    assert found.wasted == 0


def test_stopped_with_answers_that_are_not_written(world: World) -> None:
    """Another process takes over meanwhile. What the stopped one was answered is a fact, and is counted."""
    with Puppet(world, failpoint="answered:stop") as process:
        submit(process)
        process.wait_until_stopped()
        answer_all(world, lease_seconds=0.5)
        assert tally(world).settled == {Route.ESCALATED: COUNT}
        before = tally(world).wasted
        process.send(signal.SIGCONT)
        wait_until(lambda: tally(world).wasted > before, what="the late answers to be counted")
        assert tally(world).settled == {Route.ESCALATED: COUNT}
        assert tally(world).wasted - before <= charged(world)[2]


def test_killed_between_a_batch_and_the_live_calls_for_what_it_left(world: World) -> None:
    """The cancel is final and half of it was answered: that half is kept, the rest goes live once."""
    with Puppet(world, failpoint="half-settled") as process:
        process.ask("open", "opened", **{**PRESSING, "policy": {**PRESSING["policy"], "cancel_lead": 2}})
        process.ask("submit_many", "submitted", first=0, count=COUNT)
        wait_until(
            lambda: world.batches and world.batches[0].cancel_initiated_at, what="the batch to be canceled"
        )
        world.finish()
        process.wait_until_killed()

    answer_all(world)
    found = tally(world)
    assert sum(found.settled.values()) == COUNT
    assert (found.resent, found.wasted) == (0, 0)
    assert charged(world) == {1: COUNT}
