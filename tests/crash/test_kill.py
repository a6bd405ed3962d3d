"""Processes killed with SIGKILL: nothing acknowledged is lost, and nothing is paid twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.processes import Puppet
from support.recovery import AT_ONCE, answer_all
from support.requests import ask
from support.waiting import wait_until

if TYPE_CHECKING:
    from support.world import World

pytestmark = [pytest.mark.crash, pytest.mark.timeout(120)]

TAKE_OVER_SECONDS = 15.0
"""Well below the 30 s after which a silent holder's lease runs out by itself."""

RENEW_SECONDS = 0.5
"""How often one that stands by asks for the lease: a tenth of what is usual."""


@pytest.mark.parametrize(("threads", "acknowledged"), [(1, 1), (1, 50), (4, 100)])
def test_killed_while_it_submits(world: World, threads: int, acknowledged: int) -> None:
    """Every request whose `submit` had returned is there, and is answered."""
    with Puppet(world) as process:
        process.ask("open", "opened", worker=False)
        process.tell("submit_on_and_on", threads=threads)
        wait_until(lambda: len(process.values("accepted")) >= acknowledged, what="acknowledged submits")
        process.kill()
    accepted = process.values("accepted")
    assert len(accepted) >= acknowledged

    router = world.router(worker=False)
    unacknowledged = router.status().queued - len(accepted)
    assert 0 <= unacknowledged <= threads
    assert all(router.future(key=f"key-{number}").status() == "queued" for number in accepted)
    router.close()
    answer_all(world, accepted, others=unacknowledged)


def test_killed_while_they_wait_in_the_queue(world: World) -> None:
    """Submitted one by one and in one call; the next process sends them."""
    with Puppet(world) as process:
        process.ask("open", "opened")
        process.ask("submit", "submitted", first=0, count=10)
        process.ask("submit_many", "submitted", first=10, count=300)
        process.kill()
    assert world.batches == []

    answer_all(world, range(310))
    assert len(world.batches) == 1


def test_killed_while_batches_are_in_flight(world: World) -> None:
    """The next process collects what the killed one has created; what it had queued goes out."""
    with Puppet(world) as process:
        process.ask("open", "opened", batch_max_requests=40)
        process.ask("submit_many", "submitted", first=0, count=80)
        process.ask("flush", "flushed")
        wait_until(lambda: len(world.batches) == 2, what="two batches")
        assert process.status()["states"] == ["in_flight", "in_flight"]
        process.ask("submit_many", "submitted", first=80, count=5)
        process.kill()

    answer_all(world, range(85))
    assert [len(batch.items) for batch in world.batches] == [40, 40, 5]


def test_killed_after_batches_have_ended(world: World) -> None:
    """Nobody was there when they did; the results are still read."""
    with Puppet(world) as process:
        process.ask("open", "opened", poll="1h")
        process.ask("submit_many", "submitted", first=0, count=20)
        process.ask("flush", "flushed")
        process.kill()
    world.finish()

    answer_all(world, range(20))


@pytest.mark.parametrize("settled", [0, 1, 29])
def test_killed_in_the_middle_of_collecting(world: World, settled: int) -> None:
    """Some outcomes are written, the rest is being read: each request gets one outcome, from one batch."""
    world.fault(kind="cut", lines=settled)
    world.fault(kind="delay", endpoint="batches.results", skip=1, seconds=60)
    with Puppet(world) as process:
        process.ask("open", "opened")
        process.ask("submit_many", "submitted", first=0, count=30)
        process.ask("wait", "waiting", numbers=list(range(30)))
        process.ask("flush", "flushed")
        world.finish()
        world.wait_for_calls("batches.results", 2)
        wait_until(lambda: len(process.values("answered")) == settled, what="the first answers")
        process.kill()
    told = dict(zip(process.values("answered"), process.values("text"), strict=True))
    world.sandbox.faults.clear()

    texts = answer_all(world, range(30))
    assert told.items() <= texts.items()
    assert world.sandbox.books.calls["batches.create"] == 1


def test_killed_while_thousands_are_collected(world: World) -> None:
    """Wherever it is in the file."""
    count = 5_000
    world.fault(kind="cut", lines=2_500)
    world.fault(kind="delay", endpoint="batches.results", skip=1, seconds=60)
    with Puppet(world) as process:
        process.ask("open", "opened")
        process.ask("submit_many", "submitted", first=0, count=count)
        process.ask("flush", "flushed")
        world.finish()
        world.wait_for_calls("batches.results", 1)
        process.kill()
    world.sandbox.faults.clear()

    answer_all(world, range(count), every=100)
    assert len(world.batches) == 1


@pytest.mark.parametrize("accepted", [True, False])
def test_killed_between_the_create_and_its_answer(world: World, accepted: bool) -> None:
    """Created, perhaps: in doubt, neither sent again nor given up; everything else goes its way."""
    world.fault(kind="delay", endpoint="batches.create", seconds=60, accepted=accepted)
    with Puppet(world) as process:
        process.ask("open", "opened")
        process.ask("submit_many", "submitted", first=0, count=10)
        process.tell("flush")
        world.wait_for_calls("batches.create", 1)
        if accepted:
            wait_until(lambda: world.batches, what="the batch")
        process.kill()
    created = len(world.batches)
    assert created == int(accepted)

    with Puppet(world) as process:
        process.ask("open", "opened", in_doubt_grace="1h")
        wait_until(lambda: process.status()["states"] == ["in_doubt"], what="the doubt")
        process.ask("submit_many", "submitted", first=10, count=5)
        process.ask("wait", "waiting", numbers=list(range(10, 15)))
        process.ask("flush", "flushed")
        assert process.status()["states"] == ["in_doubt", "in_flight"]
        assert world.sandbox.books.calls["batches.create"] == 2
        world.finish(created + 1)
        process.wait_for(lambda _: len(process.values("answered")) == 5, what="the later ones")
        assert process.ask("flush", "flushed") == 0
        if not accepted:
            assert process.status() == {"working": True, "queued": 0, "states": ["in_doubt"]}
        process.stop("a process ended while it created a batch")

    answer_all(world, range(10), already=5, in_doubt_grace=0.5, **AT_ONCE)
    assert world.sandbox.books.calls["batches.create"] == (2 if accepted else 3)


def test_killed_again_and_again(world: World) -> None:
    """Each time somewhere else: after the submits, after the create, after a part of the results."""
    world.fault(kind="cut", lines=7)
    world.fault(kind="delay", endpoint="batches.results", skip=1, seconds=60)
    with Puppet(world) as process:
        process.ask("open", "opened")
        process.ask("submit", "submitted", first=0, count=10)
        process.kill()
    with Puppet(world) as process:
        process.ask("open", "opened")
        process.ask("submit", "submitted", first=0, count=20)
        process.ask("flush", "flushed")
        process.kill()
    with Puppet(world) as process:
        process.ask("open", "opened")
        process.ask("submit", "submitted", first=10, count=20)
        world.finish()
        world.wait_for_calls("batches.results", 2)
        process.kill()
    world.sandbox.faults.clear()

    answer_all(world, range(30))
    assert [len(batch.items) for batch in world.batches] == [20, 10]


def test_a_worker_that_stands_by_takes_over_at_once(world: World) -> None:
    """The kernel says that the first one is dead: nobody waits for its lease to run out."""
    router = world.router(worker=False)
    with Puppet(world) as first, Puppet(world) as second:
        assert first.ask("open", "opened") is True
        second.ask("hasten", "hastened", renew_seconds=RENEW_SECONDS)
        assert second.ask("open", "opened") is False
        flying = router.submit_many([ask(number) for number in range(5)], latency="daily")
        world.finish_when_sent(5)
        assert len({future.result(10).id for future in flying}) == 5
        first.kill()
        wait_until(
            lambda: second.status()["working"], within=TAKE_OVER_SECONDS, what="the second one to take over"
        )
        after = router.submit_many([ask(number) for number in range(5, 10)], latency="daily")
        world.finish_when_sent(10)

        assert len({future.result(10).id for future in after}) == 5
        second.stop()
    world.check_books(10)


def test_whoever_waits_in_another_process_is_answered_though_the_worker_was_killed(world: World) -> None:
    """Killed with a batch in flight; the next worker collects it, and the waiting future resolves."""
    router = world.router(worker=False)
    with Puppet(world) as first, Puppet(world) as second:
        first.ask("open", "opened")
        second.ask("hasten", "hastened", renew_seconds=RENEW_SECONDS)
        second.ask("open", "opened")
        futures = router.submit_many([ask(number) for number in range(5)], latency="daily")
        wait_until(lambda: sum(len(batch.items) for batch in world.batches) == 5, what="all to be sent")
        wait_until(
            lambda: first.status()["states"].count("in_flight") == len(world.batches), what="the record"
        )
        first.kill()
        world.finish()

        assert len({future.result(30).id for future in futures}) == 5
        second.stop()
    world.check_books(5)
