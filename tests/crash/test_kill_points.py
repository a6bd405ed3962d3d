"""A process killed exactly at each named point of a request's life, and what the next one makes of it.

The sandbox's own books say what was paid. Each test kills a real process (`Puppet`) at a failpoint,
asserts that it died of SIGKILL, and starts another without one.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from llmrouter import failpoints
from llmrouter.sandbox import ScaledClock, Turnaround
from llmrouter.stores import _layout as layout
from llmrouter.stores.disk import DiskStore
from support.processes import Puppet
from support.recovery import AT_ONCE, IDLE, answer_all
from support.waiting import wait_until
from support.world import World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.crash, pytest.mark.timeout(120)]

GRACE = {"in_doubt_grace": 1.0}
DOUBT = "a process ended while it created a batch"
COUNT = 10


def kill_at(point: str, world: World, *, count: int = COUNT, finish: bool = False, **settings: Any) -> None:
    """Submits and flushes in a process that is killed at a point.

    Args:
        point: Where.
        world: What it works with.
        count: How many requests.
        finish: Whether the batch ends while it lives.
        settings: Of its router.
    """
    with Puppet(world, failpoint=point) as process:
        process.ask("open", "opened", **settings)
        process.ask("submit_many", "submitted", first=0, count=count)
        process.tell("flush")
        if finish:
            world.finish()
        process.wait_until_killed()


def kill_again_at(point: str, world: World, **settings: Any) -> None:
    """A process that does what the killed one has left to do, and is killed at a point."""
    with Puppet(world, failpoint=point) as process:
        process.tell("open", **AT_ONCE, **settings)
        process.wait_until_killed()


@contextlib.contextmanager
def opened_store(world: World) -> Iterator[DiskStore]:
    """The store, in the test's own process."""
    store = DiskStore(Path(world.store.removeprefix("disk://")))
    try:
        yield store
    finally:
        store.close()


def count_outcomes(world: World) -> int:
    """How many requests have an outcome."""
    with opened_store(world) as store:
        count, (chunk, cursor) = 0, store.outcomes_since(0)
        while chunk:
            count, (chunk, cursor) = count + len(chunk), store.outcomes_since(cursor)
        return count


def killed_at_queued(world: World) -> None:
    """Stored, not acknowledged: it is there, and submitting it again is no second request."""
    with Puppet(world, failpoint="queued:3") as process:
        process.ask("open", "opened", worker=False)
        process.tell("submit", first=0, count=5)
        process.wait_until_killed()
    assert process.values("accepted") == [0, 1]

    with Puppet(world) as process:
        process.ask("open", "opened", worker=False)
        process.ask("submit", "submitted", first=0, count=3)
        process.stop()
    answer_all(world, range(3))


def killed_at_claimed(world: World) -> None:
    """The intent is on disk and nothing was sent: in doubt for the grace time, then sent once."""
    kill_at("claimed", world)
    assert world.batches == []

    answer_all(world, range(COUNT), complaints=[DOUBT], **GRACE, **AT_ONCE)
    assert world.sandbox.books.calls["batches.create"] == 1


def killed_at_sending(world: World) -> None:
    """The API has got all of the body but its end: there is no batch, and all is sent once more."""
    kill_at("sending", world)
    assert world.batches == []

    answer_all(world, range(COUNT), complaints=[DOUBT], **GRACE, **AT_ONCE)
    assert [len(batch.items) for batch in world.batches] == [COUNT]


def killed_at_created(world: World) -> None:
    """The API has it and the store does not know: found by its results, and never sent again."""
    kill_at("created", world)

    with Puppet(world) as process:
        process.ask("open", "opened", **GRACE, **AT_ONCE)
        process.ask("wait", "waiting", numbers=list(range(COUNT)))
        world.wait_for_calls("batches.list", 30)  # Far more than the grace time is long, as it ages.
        assert process.status()["states"] == ["in_doubt"]
        world.finish()
        process.wait_for(lambda _: len(process.values("answered")) == COUNT, what="all answers")
        process.stop(DOUBT)
    assert world.sandbox.books.calls["batches.create"] == 1
    world.check_books(COUNT)


def killed_at_recorded(world: World) -> None:
    """In flight: the next process collects it."""
    kill_at("recorded", world)

    answer_all(world, range(COUNT))
    assert world.sandbox.books.calls["batches.create"] == 1


def killed_at_doubted(world: World) -> None:
    """The doubt is noted; the process after the next takes it from there."""
    kill_at("claimed", world)
    kill_again_at("doubted", world, **GRACE)

    answer_all(world, range(COUNT), **GRACE, **AT_ONCE)
    assert world.sandbox.books.calls["batches.create"] == 1


def killed_at_adopted(world: World) -> None:
    """Found again at the API, not yet collected."""
    kill_at("created", world)
    world.finish()
    kill_again_at("adopted", world, **GRACE)

    answer_all(world, range(COUNT), **GRACE)
    assert world.sandbox.books.calls["batches.create"] == 1


def killed_at_polling(world: World) -> None:
    """Between a look at the API and what follows from it."""
    kill_at("polling:3", world)

    answer_all(world, range(COUNT))
    assert world.sandbox.books.calls["batches.create"] == 1


def killed_at_half_settled(world: World) -> None:
    """2,000 outcomes are written; the others are read again, and nobody gets a second one."""
    kill_at("half-settled", world, count=2_500, finish=True)
    assert count_outcomes(world) == 2_000

    answer_all(world, range(2_500), every=50)
    assert count_outcomes(world) == 2_500
    assert world.sandbox.books.calls["batches.create"] == 1


def killed_at_settled(world: World) -> None:
    """All outcomes are written, the batch is not closed: it is read once more, and nothing comes of it."""
    kill_at("settled", world, finish=True)
    assert count_outcomes(world) == COUNT

    answer_all(world, range(COUNT))
    assert world.sandbox.books.calls["batches.results"] == 2


def killed_at_canceling(world: World) -> None:
    """The API was told, the store does not know: it is told again, and nothing is charged."""
    with Puppet(world, failpoint="canceling") as process:
        process.ask("open", "opened")
        process.ask("submit_many", "submitted", first=0, count=COUNT)
        process.ask("flush", "flushed")
        process.tell("cancel", pattern="key-*")
        process.wait_until_killed()
    assert [batch.cancel_initiated_at is not None for batch in world.batches] == [True]

    router = world.router()
    futures = [router.future(key=f"key-{number}") for number in range(COUNT)]
    world.sandbox.clock.advance(timedelta(minutes=1))
    wait_until(lambda: all(future.cancelled() for future in futures), what="all to be canceled")
    wait_until(lambda: not router.status().batches, what="the batch to be closed")
    assert len(world.batches) == 1
    world.check_books(0)


def killed_at_deleting(world: World) -> None:
    """The batch is gone at the API, and open in the store: its answers are there all the same."""
    kill_at("deleting", world, finish=True, delete_after_collect=True)
    assert [batch.deleted_at is not None for batch in world.batches] == [True]

    answer_all(world, range(COUNT), delete_after_collect=True)
    assert world.sandbox.books.calls["batches.create"] == 1


def killed_at_pruning(world: World) -> None:
    """Twice, in the middle of it: each time nothing is forgotten, and the third time all of it."""
    kill_at("settled", world, finish=True)
    answer_all(world, range(COUNT))
    for _ in range(2):
        with Puppet(world, failpoint="pruning") as process:
            process.ask("open", "opened")
            process.tell("prune")
            process.wait_until_killed()
        assert count_outcomes(world) == COUNT
        with opened_store(world) as store:
            assert all(store.find_key(f"key-{number}") for number in range(COUNT))

    with Puppet(world) as process:
        process.ask("open", "opened")
        assert process.ask("prune", "pruned") == COUNT
        assert process.status() == IDLE
        process.stop()
    assert count_outcomes(world) == 0
    world.check_books(COUNT)


def killed_at_store_created(world: World) -> None:
    """A store without its first row is made again."""
    with Puppet(world, failpoint="store-created") as process:
        process.tell("open")
        process.wait_until_killed()

    with Puppet(world) as process:
        process.ask("open", "opened")
        process.ask("submit_many", "submitted", first=0, count=COUNT)
        process.stop()
    answer_all(world, range(COUNT))


def killed_at_migrating(world: World) -> None:
    """A store of schema 1, with a batch in flight, killed while it is brought up to date."""
    kill_at("recorded", world)
    make_older(world)
    kill_again_at("migrating", world)
    assert schema_of(world) == 1

    answer_all(world, range(COUNT))
    assert schema_of(world) == layout.SCHEMA
    with opened_store(world) as store:
        assert store.find_batch(world.batches[0].id) is not None


def rows_of(world: World) -> sqlite3.Connection:
    """The rows of the store, as they lie on disk."""
    return sqlite3.connect(Path(world.store.removeprefix("disk://")) / "cache.db")


def make_older(world: World) -> None:
    """Turns a store into one of schema 1: it had no rows to find batches by their ids."""
    meta = json.dumps({"schema": 1, "secret": meta_of(world)["secret"]}).encode()
    with contextlib.closing(rows_of(world)) as rows, rows:
        rows.execute("DELETE FROM Cache WHERE key GLOB 'ibatch*' OR key GLOB 'pmsgbatch*'")
        rows.execute("UPDATE Cache SET value = ? WHERE key = ?", (meta, layout.META))


def meta_of(world: World) -> dict[str, Any]:
    """What is said of the whole store."""
    with contextlib.closing(rows_of(world)) as rows:
        ((value,),) = rows.execute("SELECT value FROM Cache WHERE key = ?", (layout.META,))
    meta: dict[str, Any] = json.loads(value)
    return meta


def schema_of(world: World) -> int:
    """Its version."""
    return int(meta_of(world)["schema"])


CASES: dict[str, Callable[[World], None]] = {
    "queued": killed_at_queued,
    "claimed": killed_at_claimed,
    "sending": killed_at_sending,
    "created": killed_at_created,
    "recorded": killed_at_recorded,
    "doubted": killed_at_doubted,
    "adopted": killed_at_adopted,
    "polling": killed_at_polling,
    "half-settled": killed_at_half_settled,
    "settled": killed_at_settled,
    "canceling": killed_at_canceling,
    "deleting": killed_at_deleting,
    "pruning": killed_at_pruning,
    "store-created": killed_at_store_created,
    "migrating": killed_at_migrating,
}


def test_every_point_has_a_case() -> None:
    """Whoever adds a point says what is to become of it; those of going live have a file of their own."""
    live = {"recalled", "escalating", "calling", "answered"}
    assert CASES.keys() | live == set(failpoints.POINTS)


@pytest.mark.parametrize("point", CASES)
def test_killed_at(world: World, point: str) -> None:
    """Everything accepted is answered once, and paid once; see the case of each point."""
    CASES[point](world)


@pytest.fixture
def quick_world(tmp_path: Path) -> Iterator[World]:
    """A sandbox whose batches end by themselves, in a moment."""
    turnaround = Turnaround.fixed(timedelta(seconds=0.2))
    with World(tmp_path, clock=ScaledClock(), turnaround=turnaround) as one:
        yield one


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("sending", "claimed"),
        ("claimed", "doubted"),
        ("created", "adopted"),
        ("created", "half-settled"),
        ("recorded", "settled"),
        ("half-settled", "deleting"),
    ],
)
def test_killed_and_killed_again(quick_world: World, first: str, second: str) -> None:
    """Once in its life, and once more while the next process makes good for it."""
    settings = {**GRACE, "delete_after_collect": True}
    kill_at(first, quick_world, **settings)
    kill_again_at(second, quick_world, **settings)

    with Puppet(quick_world) as process:
        process.ask("open", "opened", **AT_ONCE, **settings)
        process.ask("wait", "waiting", numbers=list(range(COUNT)))
        process.wait_for(lambda _: len(process.values("answered")) == COUNT, what="all answers")
        wait_until(lambda: process.status() == IDLE, what="nothing to be left")
        process.kill()
    assert len(set(process.values("text"))) == COUNT
    quick_world.check_books(COUNT)


def test_killed_after_a_create_that_the_list_shows_late(world: World) -> None:
    """It is looked for as long as the grace time, however often the list lacks it."""
    world.fault(kind="hide", calls=0, lists=8)
    kill_at("created", world)
    world.finish()

    answer_all(world, range(COUNT), complaints=[DOUBT], **GRACE, **AT_ONCE)
    assert world.sandbox.books.calls["batches.create"] == 1


def test_two_routers_of_one_workspace_do_not_take_each_others_batches(world: World, tmp_path: Path) -> None:
    """Both killed after a create of the same size at the same time; each finds its own by its results."""
    stores = [world.store, f"disk://{tmp_path / 'other'}"]
    for place, store in enumerate(stores):
        with Puppet(world, failpoint="created", store=store) as process:
            process.ask("open", "opened")
            process.ask("submit_many", "submitted", first=place * 100, count=COUNT)
            process.tell("flush")
            process.wait_until_killed()
    assert [len(batch.items) for batch in world.batches] == [COUNT, COUNT]

    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(Puppet(world, store=store)) for store in stores]
        for place, process in enumerate(processes):
            process.ask("open", "opened", **GRACE, **AT_ONCE)
            numbers = list(range(place * 100, place * 100 + COUNT))
            process.ask("wait", "waiting", numbers=numbers)
        world.wait_for_calls("batches.list", 60)
        assert [process.status()["states"] for process in processes] == [["in_doubt"], ["in_doubt"]]
        world.finish(2)
        for process in processes:
            process.wait_for(lambda _, one=process: len(one.values("answered")) == COUNT, what="all answers")
            wait_until(lambda one=process: one.status() == IDLE, what="nothing to be left")
            process.stop(DOUBT)
    texts = [set(process.values("text")) for process in processes]
    assert (len(texts[0]), len(texts[0] | texts[1])) == (COUNT, 2 * COUNT)
    assert world.sandbox.books.calls["batches.create"] == 2
    world.check_books(2 * COUNT)
