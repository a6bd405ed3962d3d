"""Several routers and processes on one store, forks, exits, and an event loop that must not stand still."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from llmrouter.errors import RouterClosedError
from support.processes import Puppet
from support.recovery import AT_ONCE
from support.requests import ask
from support.waiting import wait_until
from support.world import BULK

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.world import World

pytestmark = pytest.mark.timeout(60)


LONGEST_STANDSTILL_SECONDS = 0.5
SLOWEST_ENQUEUE_SECONDS = 5.0
"""Far below the 30 s after which a caller would hear that the store is busy; usually it is hundredths."""


def test_two_routers_share_a_store(world: World) -> None:
    """One of them works; the futures of both resolve."""
    working, other = world.router(), world.router()
    assert (working.status().working, other.status().working) == (True, False)
    futures = [router.submit(ask(number), latency=BULK) for number, router in enumerate([working, other] * 5)]
    assert other.flush() == 0
    world.finish_when_sent(10)

    assert len({future.result(10).id for future in futures}) == 10
    world.check_books(10)


def test_a_flush_of_the_other_is_a_flush_of_all(world: World) -> None:
    """It asks whoever works, and `drain` does too."""
    world.router()
    other = world.router(worker=False)
    futures = other.submit_many([ask(number) for number in range(3)], latency=BULK)
    assert other.drain(0.01) is False
    world.finish()

    assert other.drain(10) is True
    assert all(future.result(10).content for future in futures)


def test_when_the_working_one_closes_the_other_takes_over(world: World) -> None:
    """With what is in flight and what waits."""
    working, other = world.router(), world.router()
    flying = other.submit(ask(1), latency=BULK)
    working.flush()
    queued = other.submit(ask(2), latency=BULK)
    working.close()
    wait_until(lambda: other.status().working, what="the other one to work")
    other.flush()
    world.finish(2)

    assert flying.result(10).content
    assert queued.result(10).content
    world.check_books(2)


def test_one_enqueues_and_another_process_works(world: World) -> None:
    """`worker=False`: the answers come all the same."""
    with Puppet(world) as process:
        assert process.ask("open", "opened") is True
        router = world.router(worker=False)
        assert router.status().working is False
        futures = router.submit_many([ask(number) for number in range(20)], latency="daily")
        keyed = router.submit(ask("keyed"), latency="daily", key="k")
        world.finish_when_sent(21)

        assert len({future.result(10).id for future in futures}) == 20
        assert router.future(key="k").result(10).id == keyed.result(10).id
        process.stop()
    world.check_books(21)


def test_many_processes_enqueue_at_once(world: World) -> None:
    """Nothing is lost or doubled between them; the same keys are the same requests."""
    with Puppet(world) as first, Puppet(world) as second:
        for process in (first, second):
            process.tell("open", worker=False)
            process.tell("submit", first=0, count=50)
        for process in (first, second):
            process.wait_for(lambda line: "submitted" in line, what="its submits")
        ids = [
            {line["accepted"]: line["request_id"] for line in process.said if "accepted" in line}
            for process in (first, second)
        ]
        assert ids[0] == ids[1]
        assert len(set(ids[0].values())) == 50
        first.stop()
        second.stop()

    router = world.router()
    assert router.status().queued == 50
    router.flush()
    world.finish()
    assert all(router.future(key=f"key-{number}").result(10).content for number in range(50))
    world.check_books(50)


LEASE_SECONDS = 3.0
TAKE_OVER: dict[str, Any] = {"in_doubt_grace": 0.5, **AT_ONCE}
"""Settings of one that finds out quickly what became of a create, and then sends what waits."""

COUNT = 10


def stop_at(point: str, stack: contextlib.ExitStack, world: World) -> Puppet:
    """A process with the lease that has submitted, and is stopped while it flushes."""
    process = stack.enter_context(Puppet(world, failpoint=f"{point}:stop"))
    process.ask("hasten", "hastened", lease_seconds=LEASE_SECONDS)
    assert process.ask("open", "opened") is True
    process.ask("submit_many", "submitted", first=0, count=COUNT)
    process.tell("flush")
    process.wait_until_stopped()
    return process


def take_over(stack: contextlib.ExitStack, world: World, **settings: Any) -> Puppet:
    """Another process, once it has the lease."""
    process = stack.enter_context(Puppet(world))
    process.ask("hasten", "hastened", lease_seconds=LEASE_SECONDS)
    process.ask("open", "opened", **settings)
    process.ask("wait", "waiting", numbers=list(range(COUNT)))
    wait_until(lambda: process.status()["working"], what="it to take over")
    return process


def nothing_left(process: Puppet) -> bool:
    """Whether all is settled, whoever works on the store."""
    status = process.status()
    return (status["queued"], status["states"]) == (0, [])


@pytest.mark.parametrize("point", ["claimed", "sending"])
def test_a_flusher_that_was_stopped_before_its_create_creates_nothing(world: World, point: str) -> None:
    """Before the first byte or the last: another has sent its requests; it wakes up, and sends nothing."""
    with contextlib.ExitStack() as stack:
        late = stop_at(point, stack, world)
        other = take_over(stack, world, **TAKE_OVER)
        wait_until(lambda: world.batches, what="the other one to send them")
        late.send(signal.SIGCONT)
        assert late.wait_for(lambda line: "flushed" in line, what="the end of its flush")["flushed"] == 0
        world.finish()
        other.wait_for(lambda _: len(other.values("answered")) == COUNT, what="all answers")
        late.ask("wait", "waiting", numbers=list(range(COUNT)))
        late.wait_for(lambda _: len(late.values("answered")) == COUNT, what="the same answers")
        wait_until(lambda: nothing_left(other), what="nothing to be left")
    assert [len(batch.items) for batch in world.batches] == [COUNT]
    world.check_books(COUNT)


def test_a_flusher_that_was_stopped_after_its_create_tells_of_it(world: World) -> None:
    """A fact, whoever works now: the one that took over need not wait for results to know."""
    with contextlib.ExitStack() as stack:
        late = stop_at("created", stack, world)
        other = take_over(stack, world, **TAKE_OVER)
        wait_until(lambda: other.status()["states"] == ["in_doubt"], what="the doubt")
        late.send(signal.SIGCONT)
        wait_until(lambda: other.status()["states"] == ["in_flight"], what="the record")
        world.finish()
        other.wait_for(lambda _: len(other.values("answered")) == COUNT, what="all answers")
    assert world.sandbox.books.calls["batches.create"] == 1
    world.check_books(COUNT)


def test_a_batch_that_was_given_up_too_early_is_canceled(world: World) -> None:
    """The list hid it longer than the grace time, so it was sent again; who created it takes it back."""
    world.fault(kind="hide", calls=0, lists=10_000)
    with contextlib.ExitStack() as stack:
        late = stop_at("created", stack, world)
        other = take_over(stack, world, **TAKE_OVER)
        wait_until(lambda: len(world.batches) == 2, what="the second create")
        late.send(signal.SIGCONT)
        wait_until(lambda: world.batches[0].cancel_initiated_at, what="the cancel")
        world.finish()
        other.wait_for(lambda _: len(other.values("answered")) == COUNT, what="all answers")
        wait_until(lambda: any("it will be canceled" in line for line in late.stderr), what="its word of it")
    world.check_books(COUNT)


def test_whoever_is_stopped_while_it_collects_settles_nothing_later(world: World) -> None:
    """Another settles; the first one wakes up in the middle of the results, and changes nothing."""
    with contextlib.ExitStack() as stack:
        late = stack.enter_context(Puppet(world, failpoint="polling:stop"))
        late.ask("hasten", "hastened", lease_seconds=LEASE_SECONDS)
        late.ask("open", "opened", poll=0.3)
        late.ask("submit_many", "submitted", first=0, count=COUNT)
        late.tell("flush")
        world.finish()
        late.wait_until_stopped()
        other = take_over(stack, world)
        other.wait_for(lambda _: len(other.values("answered")) == COUNT, what="all answers")
        late.send(signal.SIGCONT)
        late.ask("wait", "waiting", numbers=list(range(COUNT)))
        late.wait_for(lambda _: len(late.values("answered")) == COUNT, what="the same answers")
        assert sorted(late.values("text")) == sorted(other.values("text"))
        wait_until(lambda: nothing_left(late), what="nothing to be left")
    world.check_books(COUNT)


@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_a_dead_workers_child_delays_the_next_by_the_lease_at_most(world: World) -> None:
    """It keeps the files of its parent open, their locks with them: then the lease decides."""
    with Puppet(world) as first, Puppet(world) as second:
        first.ask("hasten", "hastened", lease_seconds=LEASE_SECONDS)
        first.ask("open", "opened")
        child = first.ask("fork", "forked")
        try:
            first.kill()
            second.ask("hasten", "hastened", lease_seconds=LEASE_SECONDS)
            second.ask("open", "opened", **AT_ONCE)
            wait_until(lambda: second.status()["working"], within=LEASE_SECONDS * 4, what="the next one")
            second.ask("submit_many", "submitted", first=0, count=COUNT)
            second.ask("wait", "waiting", numbers=list(range(COUNT)))
            world.finish_when_sent(COUNT)
            second.wait_for(lambda _: len(second.values("answered")) == COUNT, what="all answers")
        finally:
            os.kill(child, signal.SIGKILL)
    world.check_books(COUNT)


def test_four_enqueue_while_one_flushes(world: World) -> None:
    """None of them hears of a lock; all of it is sent once."""
    each = 150
    with contextlib.ExitStack() as stack:
        worker, *others = [stack.enter_context(Puppet(world)) for _ in range(5)]
        worker.ask("open", "opened", batch_max_requests=20, **AT_ONCE)
        for place, process in enumerate(others):
            process.tell("open", worker=False)
            process.tell("submit", first=place * each, count=each)
        for process in others:
            process.wait_for(lambda line: "submitted" in line, what="its submits")
            assert process.values("slowest_seconds")[0] < SLOWEST_ENQUEUE_SECONDS
            process.stop()
        world.finish_when_sent(4 * each)
        wait_until(lambda: worker.status() == {"working": True, "queued": 0, "states": []}, what="the end")
        worker.stop()
    assert len(world.batches) > 4
    world.check_books(4 * each)


def test_a_future_resolves_soon_after_another_process_has_settled_it(world: World) -> None:
    """Within a second; the test gives a busy machine one more."""
    router = world.router(worker=False)
    resolved_at: dict[str, datetime] = {}

    def note(future: Any) -> None:
        resolved_at[future.request_id] = datetime.now(UTC)

    with Puppet(world) as process:
        process.ask("open", "opened", **AT_ONCE)
        futures = router.submit_many([ask(number) for number in range(200)], latency=BULK)
        for future in futures:
            future.add_done_callback(note)
        world.finish_when_sent(200)
        wait_until(lambda: len(resolved_at) == 200, what="all to be resolved")
        process.stop()
    spans = [resolved_at[one.request_id] - one.outcome.settled_at for one in futures if one.outcome]
    assert len(spans) == 200
    assert max(spans) < timedelta(seconds=2)


async def longest_standstill(until: Callable[[], bool]) -> float:
    """The longest time between two beats of the loop, in seconds."""
    longest, last = 0.0, time.monotonic()
    while not until():
        await asyncio.sleep(0.005)
        now = time.monotonic()
        longest, last = max(longest, now - last), now
    return longest


def test_the_loop_goes_on_while_another_process_holds_the_lock(world: World) -> None:
    """200 callers of `asubmit` wait for the store; nothing else on the loop does."""

    async def main() -> None:
        router = world.router(worker=False)
        with Puppet(world) as process:
            process.ask("lock", "locked")
            waiting = [
                asyncio.create_task(router.asubmit(ask(number), latency=BULK)) for number in range(200)
            ]
            beats_end = time.monotonic() + 1
            longest = await longest_standstill(lambda: time.monotonic() > beats_end)
            assert not any(task.done() for task in waiting)
            process.tell("unlock")
            futures = await asyncio.gather(*waiting)
            longest = max(longest, await longest_standstill(lambda: all(task.done() for task in waiting)))
        assert len({future.request_id for future in futures}) == 200
        assert longest < LONGEST_STANDSTILL_SECONDS
        assert router.status().queued == 200

    asyncio.run(main())


def test_the_loop_goes_on_while_a_thousand_are_submitted_and_answered(world: World) -> None:
    """Encoding, writing, reading and resolving happen elsewhere, in pieces."""
    count = 1_000

    async def main() -> None:
        router = world.router()
        done = False

        async def work() -> None:
            nonlocal done
            futures = await router.asubmit_many((ask(number) for number in range(count)), latency=BULK)
            await asyncio.to_thread(router.flush)
            await asyncio.to_thread(world.finish)
            messages = await asyncio.gather(*futures)
            assert len({message.id for message in messages}) == count
            done = True

        task = asyncio.create_task(work())
        longest = await longest_standstill(lambda: done or task.done())
        await task
        assert longest < LONGEST_STANDSTILL_SECONDS * 2

    asyncio.run(main())


@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_a_forked_child_has_to_make_a_router_of_its_own(world: World) -> None:
    """The parent's refuses everything there, and its end does no harm to the parent's."""
    router = world.router()
    future = router.submit(ask(), latency=BULK)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        calls: list[Callable[[], object]] = [
            lambda: router.submit(ask(), latency=BULK),
            lambda: router.submit(ask(), latency="real-time"),
            lambda: router.submit_many([ask()], latency=BULK),
            lambda: router.future(future.request_id),
            lambda: asyncio.run(router.asubmit(ask(), latency=BULK)),
            router.flush,
            router.status,
            router.drain,
            future.cancel,
        ]
        refused = 0
        try:
            for call in calls:
                try:
                    call()
                except RouterClosedError:
                    refused += 1
            router.close()
            os.write(writing, f"{refused} of {len(calls)}".encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as said:
        assert said.read() == "9 of 9"
    os.waitpid(child, 0)

    router.flush()
    world.finish()
    assert future.result(10).content


def run_script(world: World, code: str) -> subprocess.CompletedProcess[str]:
    """Runs a script with a router on the store of this world."""
    script = (
        "import anthropic, sys, llmrouter\n"
        f"client = anthropic.Anthropic(api_key='k', base_url={world.server.base_url!r})\n"
        "request = {'model': 'claude-haiku-4-5', 'max_tokens': 5,"
        " 'messages': [{'role': 'user', 'content': 'hi'}]}\n"
        f"router = llmrouter.Router(client, store={world.store!r})\n{code}"
    )
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    ("end", "code"), [("", 0), ("sys.exit(3)", 3), ("raise SystemExit(4)", 4), ("import os; os._exit(5)", 5)]
)
def test_a_script_that_forgets_to_close_ends_and_loses_nothing(world: World, end: str, code: int) -> None:
    """Without a word, and without waiting for the answers."""
    result = run_script(world, f"print(router.submit(request, latency='weekly', key='k').request_id)\n{end}")

    assert (result.returncode, result.stderr) == (code, "")
    router = world.router(worker=False)
    assert router.future(key="k").request_id == result.stdout.strip()


def test_a_script_may_submit_and_flush_at_its_end(world: World) -> None:
    """In a function of `atexit`, where no thread can be started any more."""
    result = run_script(
        world,
        "import atexit\n"
        "def end():\n"
        "    router.submit(request, latency='weekly')\n"
        "    router.flush()\n"
        "atexit.register(end)",
    )

    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert sum(len(batch.items) for batch in world.batches) == 1


_CLOSES_AT_SIGTERM = (
    "import signal, os, threading\n"
    "def end(*_):\n"
    "    router.close()\n"
    "    print('closed', flush=True)\n"
    "    sys.exit(0)\n"
    "signal.signal(signal.SIGTERM, end)\n"
    "router.submit(request, latency='weekly', key='k')\n"
)


def test_a_signal_handler_may_close_the_router(world: World) -> None:
    """A process that is told to end does so, in order."""
    result = run_script(world, f"{_CLOSES_AT_SIGTERM}os.kill(os.getpid(), signal.SIGTERM)\nsignal.pause()")

    assert (result.returncode, result.stdout, result.stderr) == (0, "closed\n", "")
    assert world.router(worker=False).future(key="k").status() in {"queued", "in_flight"}


def test_a_signal_handler_may_close_the_router_in_the_middle_of_a_submit(world: World) -> None:
    """Which it interrupts, and which it must not wait for."""
    result = run_script(
        world,
        f"{_CLOSES_AT_SIGTERM}"
        "threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()\n"
        "while True:\n"
        "    router.submit(request, latency='weekly')\n",
    )

    assert result.stdout == "closed\n"
    assert world.router(worker=False).future(key="k").status() in {"queued", "in_flight"}


def test_a_script_that_fails_ends_with_its_own_error(world: World) -> None:
    """And with nothing else."""
    result = run_script(world, "router.submit(request, latency='weekly', key='k')\nraise ValueError('mine')")

    assert result.returncode == 1
    assert result.stderr.strip().endswith("ValueError: mine")
    assert result.stderr.count("Traceback") == 1
    assert world.router(worker=False).future(key="k").status() in {"queued", "in_flight"}
