"""Traffic that real processes count: nothing is lost when they end, a second or so when they are killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from llmrouter.stores.disk import DiskStore
from llmrouter.wiring import store_folder
from support.processes import Puppet
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.world import World

pytestmark = [pytest.mark.crash, pytest.mark.timeout(120)]

LATE_SECONDS = 1.5
"""A second, and what a busy machine adds."""


@pytest.fixture
def store(world: World) -> Iterator[DiskStore]:
    """The store, as another process has it open."""
    store = DiskStore(store_folder(world.store))
    yield store
    store.close()


def counted(store: DiskStore) -> int:
    """How many calls are in the store."""
    return sum(row.calls for row in store.traffic(None))


@pytest.mark.parametrize("ending", ["close", "leave"])
def test_a_process_that_ends_loses_no_call(world: World, store: DiskStore, ending: str) -> None:
    """Closed, or left to the end of the interpreter; whole answers and streams."""
    with Puppet(world) as puppet:
        puppet.ask("open", "opened", observe=True, worker=False)
        puppet.ask("call", "calls", count=100, threads=8)
        if ending == "leave":
            puppet.tell("leave")
        puppet.stop()
    rows = store.traffic(None)
    assert sum(row.calls for row in rows) == sum(row.use.requests for row in rows) == 100
    assert sum(row.errors for row in rows) == 0
    assert {row.streaming for row in rows} == {False, True}


def test_a_process_that_is_killed_loses_a_second_at_most(world: World, store: DiskStore) -> None:
    """What it had called before that is there; what is there is whole."""
    with Puppet(world) as puppet:
        puppet.ask("open", "opened", observe=True, worker=False)
        puppet.tell("call", count=100_000, threads=2)
        wait_until(lambda: counted(store) > 20)
        before = len(puppet.values("called"))
        time.sleep(LATE_SECONDS)  # The promise is about time.
        puppet.kill()
        called = len(puppet.values("called"))
    assert before <= counted(store) <= called + 2
    assert all(row.use.requests <= row.calls for row in store.traffic(None))


def test_processes_add_to_one_store(world: World, store: DiskStore) -> None:
    """At the same time."""
    with Puppet(world) as one, Puppet(world) as other:
        for puppet in (one, other):
            puppet.ask("open", "opened", observe=True, worker=False)
            puppet.tell("call", count=50, threads=4)
        for puppet in (one, other):
            puppet.wait_for(lambda line: "calls" in line)
            puppet.stop()
    assert counted(store) == 100


FORKS = """
import os, sys
from support.observed import observed
from support.requests import ask

with observed(store=sys.argv[1]) as seen:
    seen.sync.messages.create(**ask())
    child = os.fork()
    for _ in range(3):
        seen.sync.messages.create(**ask())
    if not child:
        waiting = len(seen.router._parts.observer._waiting)
        seen.router.close()
        os._exit(waiting)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_fork_counts_nothing_and_keeps_nothing(world: World, store: DiskStore) -> None:
    """What it has inherited is its parent's to write, and it has no thread to write its own."""
    tests = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", FORKS, world.store],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == "0"
    assert counted(store) == 4
