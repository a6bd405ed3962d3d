"""Several routers and processes on one store, forks, exits, and an event loop that must not stand still."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from llmrouter.errors import RouterClosedError
from support.processes import Puppet
from support.requests import ask
from support.waiting import wait_until
from support.world import BULK

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.world import World

pytestmark = pytest.mark.timeout(60)


LONGEST_STANDSTILL_SECONDS = 0.5


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
