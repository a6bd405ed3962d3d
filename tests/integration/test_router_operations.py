"""What applications ask of a router: keys, futures, cancel, flush, drain, status, close."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed, wait
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from llmrouter import Router, Settings
from llmrouter.errors import (
    InvalidRequestError,
    KeyConflictError,
    RouterClosedError,
    SettingsError,
    UnknownRequestError,
)
from llmrouter.stores.memory import MemoryStore
from support.requests import ask
from support.stores import GatedStore
from support.waiting import wait_until
from support.world import BULK, quick

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmrouter import MessageFuture
    from support.world import World

pytestmark = pytest.mark.timeout(60)


def text_of(future: MessageFuture) -> str:
    """The text of its answer; the sandbox gives equal requests equal texts."""
    (block,) = future.result(10).content
    assert block.type == "text"
    return block.text


def test_a_batch_answers_each_with_its_own(world: World) -> None:
    """The message that a live call would have given, and how it came."""
    router, client = world.router(), world.client()
    futures = [router.submit(ask(number), latency=BULK) for number in range(20)]
    router.flush()
    world.finish()

    assert [text_of(future) for future in futures] == [
        client.messages.create(**ask(number)).content[0].text for number in range(20)
    ]
    outcome = futures[0].outcome
    assert outcome is not None
    assert (outcome.attempts, outcome.kind.value, outcome.latency) == (1, "succeeded", BULK)
    assert futures[0].result().usage.service_tier == "batch"


def test_submit_many_is_one_transaction(world: World) -> None:
    """All of them, in their order, or none."""
    router = world.router(worker=False)
    futures = router.submit_many((ask(number) for number in range(150)), latency="daily")
    assert len({future.request_id for future in futures}) == 150
    assert router.submit_many([], latency="daily") == []

    with pytest.raises(InvalidRequestError) as caught:
        router.submit_many([ask(), ask(), {"model": "m"}], latency="daily")
    assert (caught.value.index, caught.value.field) == (2, "max_tokens")
    with pytest.raises(InvalidRequestError) as caught:
        router.submit_many([ask(), ask(extra_headers={"x-api-key": "k"})], latency="daily")
    assert caught.value.index == 1
    router.submit(ask("known"), latency="daily", key="k")
    with pytest.raises(KeyConflictError) as conflict:
        router.submit_many([ask(), ask("other")], latency="daily", keys=[None, "k"])
    assert conflict.value.index == 1
    with pytest.raises(TypeError, match="2 requests need as many keys, not 1"):
        router.submit_many([ask(), ask()], latency="daily", keys=["k"])
    assert router.status().queued == 151


def test_a_key_gives_the_same_request(world: World) -> None:
    """Before it was answered and after; it is paid once."""
    router = world.router()
    first = router.submit(ask("a"), latency=BULK, key="report-1")
    again = router.submit(ask("a"), latency=BULK, key="report-1")
    many = router.submit_many([ask("a"), ask("b")], latency=BULK, keys=["report-1", None])
    router.flush()
    world.finish()

    assert again.request_id == first.request_id == many[0].request_id != many[1].request_id
    assert (first.key, many[1].key) == ("report-1", None)
    assert text_of(first) == text_of(again) == text_of(many[0])
    after = router.submit(ask("a"), latency=BULK, key="report-1")
    assert after.result(10).id == first.result(10).id
    assert after.outcome == first.outcome
    many[1].result(10)
    world.check_books(2)


def test_a_key_with_another_request_is_a_conflict(world: World) -> None:
    """Another body or another class."""
    router = world.router(worker=False)
    router.submit(ask("a"), latency="daily", key="k")

    for request, latency in ((ask("b"), "daily"), (ask("a"), "hourly")):
        with pytest.raises(KeyConflictError) as caught:
            router.submit(request, latency=latency, key="k")
        assert caught.value.field == "key"
    assert router.status().queued == 1


@pytest.mark.parametrize("store", ["disk", "memory"])
@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"key": 5}, "key"),
        ({"key": b"k"}, "key"),
        ({"key": "\ud800"}, "key"),
        ({"key": ""}, "key"),
        ({"site": 5}, "site"),
        ({"site": "\ud800"}, "site"),
    ],
)
def test_a_key_or_site_that_is_no_text_is_refused(
    world: World, store: str, options: dict[str, Any], field: str
) -> None:
    """At submit, whatever the store, and not in the commit of all others."""
    router = world.router(worker=False, store="memory://" if store == "memory" else world.store)

    with pytest.raises(InvalidRequestError) as caught:
        router.submit(ask(), latency="daily", **options)
    assert caught.value.field == field
    if field == "key":
        with pytest.raises(InvalidRequestError) as caught:
            router.submit_many([ask(), ask()], latency="daily", keys=["fine", options["key"]])
        assert (caught.value.field, caught.value.index) == ("key", 1)
    assert router.status().queued == 0


def test_a_future_for_what_was_submitted_before(world: World) -> None:
    """By id and by key, in the next process, before the answer and after."""
    first = world.router()
    plain, keyed = first.submit(ask(1), latency=BULK), first.submit(ask(2), latency=BULK, key="k")
    first.close()
    second = world.router()
    by_id, by_key = second.future(plain.request_id), second.future(key="k")
    assert (by_id.status(), by_key.key, by_key.latency) == ("queued", "k", BULK)
    assert by_key.request_id == keyed.request_id
    assert by_key.deadline == keyed.deadline
    second.flush()
    world.finish()
    texts = [text_of(by_id), text_of(by_key)]
    second.close()
    third = world.router(worker=False)

    assert [text_of(third.future(plain.request_id)), text_of(third.future(key="k"))] == texts
    assert third.future(key="k").status() == "succeeded"


def test_a_future_for_nothing_known_is_an_error(world: World) -> None:
    """Also where both or neither are given."""
    router = world.router(worker=False)

    for options in ({"request_id": "req_1"}, {"key": "k"}, {"request_id": "live_1"}, {"request_id": ""}):
        with pytest.raises(UnknownRequestError):
            router.future(**options)
    for wrong in ({}, {"request_id": "req_1", "key": "k"}):
        with pytest.raises(TypeError):
            router.future(**wrong)


def test_two_futures_of_one_request_both_resolve(world: World) -> None:
    """Whoever asks."""
    router = world.router()
    first = router.submit(ask(), latency=BULK)
    second = router.future(first.request_id)
    router.flush()
    world.finish()

    assert first.result(10).id == second.result(10).id


def test_a_request_can_be_canceled_while_it_is_queued(world: World) -> None:
    """Then it is never sent; one that has left cannot be."""
    router = world.router()
    goes, stays = router.submit(ask(1), latency=BULK), router.submit(ask(2), latency=BULK)
    assert goes.cancel()
    assert (goes.status(), router.future(goes.request_id).status()) == ("canceled", "canceled")
    with pytest.raises(CancelledError):
        router.future(goes.request_id).result(0)
    router.flush()
    assert (stays.cancel(), stays.status()) == (False, "in_flight")
    world.finish()

    assert stays.result(10).content
    assert [len(batch.items) for batch in world.batches] == [1]
    world.check_books(1)


def test_a_cancel_reaches_the_futures_of_other_processes(world: World) -> None:
    """They are told, like whoever canceled."""
    router, other = world.router(worker=False), world.router(worker=False)
    future = router.submit(ask(), latency=BULK)
    elsewhere = other.future(future.request_id)
    assert future.cancel()

    wait([elsewhere], 10)
    assert elsewhere.cancelled()


def test_the_status_follows_a_request(world: World) -> None:
    """Queued, in flight, succeeded."""
    router = world.router()
    future = router.submit(ask(), latency=BULK)
    states = [future.status()]
    router.flush()
    states.append(future.status())
    world.finish()
    future.result(10)
    states.append(future.status())

    assert states == ["queued", "in_flight", "succeeded"]


def test_the_status_of_a_router_shows_what_waits_and_what_flies(world: World) -> None:
    """By class and lane, with the earliest deadline."""
    router = world.router()
    router.submit_many([ask(number) for number in range(3)], latency=BULK)
    first = router.submit(ask(9), latency=BULK, deadline=timedelta(days=799, hours=23))
    before = router.status()
    router.flush()
    after = router.status()
    world.finish()
    wait_until(lambda: not router.status().batches, what="the batch to be collected")

    (line,) = before.backlog
    assert (line.latency, line.request_count, line.earliest_deadline_at) == (BULK, 4, first.deadline)
    assert (before.queued, before.in_batches, before.batches, before.working) == (4, 0, (), True)
    (batch,) = after.batches
    assert (after.queued, after.in_batches, batch.request_count) == (0, 4, 4)
    assert (batch.state.value, batch.provider_batch_id) == ("in_flight", world.batches[0].id)
    assert router.status().problems == {}


def test_flush_sends_what_waits_now(world: World) -> None:
    """And says how many batches that were."""
    router = world.router()
    router.submit(ask(), latency=BULK)

    assert [router.flush(), router.flush()] == [1, 0]


def test_drain_waits_until_everything_is_answered(world: World) -> None:
    """It flushes first; True when nothing is left."""
    router = world.router()
    futures = router.submit_many([ask(number) for number in range(5)], latency=BULK)
    with ThreadPoolExecutor(1) as pool:
        draining = pool.submit(router.drain)
        world.finish()
        assert draining.result(10) is True

    wait(futures, 10)
    assert all(future.done() for future in futures)
    assert router.drain(0) is True


def test_drain_gives_up_after_its_timeout(world: World) -> None:
    """False: something is left, and goes on."""
    router = world.router()
    future = router.submit(ask(), latency=BULK)

    assert router.drain(0.1) is False
    assert future.status() == "in_flight"
    world.finish()
    assert router.drain(10) is True


def test_drain_sends_again_what_a_batch_has_sent_back(world: World) -> None:
    """It does not wait for the schedule."""
    router = world.router()
    world.fault(kind="item", error_type="overloaded_error")
    future = router.submit(ask(), latency=BULK)
    with ThreadPoolExecutor(1) as pool:
        draining = pool.submit(router.drain)
        world.finish()
        world.finish(2)
        assert draining.result(10) is True

    assert future.result(10).content


@pytest.mark.parametrize("place", ["queue", "batch"])
def test_drain_is_not_fooled_by_what_moves_while_it_looks(world: World, place: str) -> None:
    """From the queue into a batch, or back, between a look at the one and a look at the other."""

    class Moving(MemoryStore):
        """Its one request moves after the first look."""

        moved = False

        def waiting(self) -> list[Any]:
            return self._look("queue")

        def open_batches(self) -> list[Any]:
            return self._look("batch")

        def _look(self, where: str) -> list[Any]:
            there = (place == where) != self.moved
            self.moved = True
            return ["it"] if there else []

    settings = Settings(**quick())
    with Router(world.client(), store=Moving(), settings=settings, worker=False) as router:
        assert router.drain(0.2) is False


def test_close_fails_who_waits_and_the_next_router_goes_on(world: World) -> None:
    """What is queued and what is in flight stays; the error says how to wait for it."""
    router = world.router()
    flying = router.submit(ask(1), latency=BULK)
    router.flush()
    queued = router.submit(ask(2), latency=BULK)
    told: list[object] = []
    queued.add_done_callback(told.append)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(flying.result, 10)
        wait_until(waiting.running, what="somebody to wait")
        router.close()
        with pytest.raises(RouterClosedError, match=flying.request_id):
            waiting.result(10)
    assert isinstance(queued.exception(0), RouterClosedError)
    assert told == [queued]

    following = world.router()
    futures = [following.future(one.request_id) for one in (flying, queued)]
    following.flush()
    world.finish(2)
    assert all(future.result(10).content for future in futures)
    world.check_books(2)


def test_a_closed_router_takes_nothing_more(world: World) -> None:
    """Whatever is asked of it; closing again is no error."""
    router = world.router()
    future = router.submit(ask(), latency=BULK)
    router.close()
    router.close()
    calls: list[Callable[[], object]] = [
        lambda: router.submit(ask(), latency=BULK),
        lambda: router.submit(ask(), latency="real-time"),
        lambda: router.submit_many([ask()], latency=BULK),
        lambda: router.submit_many([ask()], latency="real-time"),
        lambda: router.submit_many([], latency=BULK),
        lambda: asyncio.run(router.asubmit(ask(), latency=BULK)),
        lambda: asyncio.run(router.asubmit(ask(), latency="real-time")),
        lambda: asyncio.run(router.asubmit_many([ask()], latency=BULK)),
        lambda: router.future(future.request_id),
        router.flush,
        router.status,
        router.prune,
        lambda: router.drain(1),
        lambda: router.why(future.request_id),
        lambda: router.find(key="*"),
        lambda: router.cancel(future.request_id),
        lambda: router.pause(BULK),
        lambda: router.resume(BULK),
    ]
    for call in calls:
        with pytest.raises(RouterClosedError):
            call()
    assert future.cancel() is False
    empty = Router(world.client(), store="memory://", settings=Settings(**quick()), worker=False)
    empty.close()
    with pytest.raises(RouterClosedError):
        empty.drain()


def test_closing_waits_for_real_time_calls(world: World) -> None:
    """They are under way and will be paid."""
    router = world.router()
    world.fault(kind="delay", endpoint="messages.create", seconds=0.3)
    future = router.submit(ask(), latency="real-time")
    router.close()

    assert future.done()
    assert future.result(0).content


@pytest.mark.parametrize("count", [0, 10, 40])
def test_submits_that_race_with_close_are_stored_or_refused(world: World, count: int) -> None:
    """Each caller is told which; nobody waits for ever, and the number is right."""
    store = MemoryStore()
    router = Router(world.client(), store=store, settings=Settings(**quick()), worker=False)
    accepted: list[MessageFuture] = []
    started = threading.Barrier(5)

    def submit() -> None:
        started.wait()
        try:
            while True:
                accepted.append(router.submit(ask(), latency=BULK))
        except RouterClosedError:
            return

    threads = [threading.Thread(target=submit) for _ in range(4)]
    for thread in threads:
        thread.start()
    started.wait()
    wait_until(lambda: len(accepted) >= count, what="some submits")
    router.close()
    for thread in threads:
        thread.join(10)

    assert not wait(accepted, 10).not_done
    assert sum(line.request_count for line in store.waiting()) == len(accepted)


def test_async_with_closes_too(world: World) -> None:
    """Without blocking the loop."""

    async def main() -> MessageFuture:
        async with Router(world.client(), store=world.store, settings=Settings(**quick())) as router:
            return await router.asubmit(ask(), latency=BULK)

    assert isinstance(asyncio.run(main()).exception(0), RouterClosedError)


def test_asyncio_callers_are_answered(world: World) -> None:
    """Submitted and awaited on a loop."""

    async def main() -> None:
        router = world.router()
        futures = await asyncio.gather(*(router.asubmit(ask(number), latency=BULK) for number in range(50)))
        many = await router.asubmit_many((ask(100 + number) for number in range(50)), latency=BULK)
        live = await router.asubmit(ask(200), latency="real-time")
        await asyncio.to_thread(router.flush)
        await asyncio.to_thread(world.finish)
        messages = await asyncio.gather(*futures, *many, live)
        assert len({message.id for message in messages}) == 101

    asyncio.run(main())
    world.check_books(101)


def test_a_cancelled_asubmit_stores_nothing_before_its_commit(world: World) -> None:
    """And one that was already being committed is stored, as if nobody had cancelled."""
    store = GatedStore()

    async def main() -> None:
        with Router(world.client(), store=store, settings=Settings(**quick()), worker=False) as router:
            with store.closed_gate():
                leader = asyncio.create_task(router.asubmit(ask("leader"), latency=BULK))
                await asyncio.to_thread(store.entered.wait, 10)
                gone = asyncio.create_task(router.asubmit(ask("gone"), latency=BULK))
                stays = asyncio.create_task(router.asubmit(ask("stays"), latency=BULK))
                await asyncio.sleep(0)
                gone.cancel()
                leader.cancel()
                await asyncio.wait([gone, leader])
            await stays
            assert gone.cancelled()
            assert router.status().queued == 2

    asyncio.run(main())
    assert not any(b"gone" in request.body for commit in store.commits for request in commit)


def test_the_call_site_is_the_caller(world: World) -> None:
    """`module:function`, from whichever of the four it was called, also by way of asyncio."""
    store = GatedStore()
    site = f"{__name__}:test_the_call_site_is_the_caller.<locals>"
    with Router(world.client(), store=store, settings=Settings(**quick()), worker=False) as router:

        def threads() -> None:
            router.submit(ask(), latency=BULK)
            router.submit_many([ask()], latency=BULK)

        async def loop() -> None:
            await router.asubmit(ask(), latency=BULK)
            await router.asubmit_many([ask()], latency=BULK)

        async def gathered() -> None:
            await asyncio.gather(router.asubmit(ask(), latency=BULK), router.asubmit(ask(), latency=BULK))
            await asyncio.create_task(router.asubmit_many([ask()], latency=BULK))

        threads()
        asyncio.run(loop())
        asyncio.run(gathered())
        router.submit(ask(), latency=BULK, site="reports")

    sites = [request.group.site for commit in store.commits for request in commit]
    assert sites == [f"{site}.threads"] * 2 + [f"{site}.loop"] * 2 + [f"{site}.gathered"] * 3 + ["reports"]


def test_futures_work_with_the_standard_library(world: World) -> None:
    """`as_completed`, `wait`, callbacks, and a timeout that cancels nothing."""
    router = world.router()
    futures = router.submit_many([ask(number) for number in range(10)], latency=BULK)
    with pytest.raises(TimeoutError):
        futures[0].result(0.01)
    told: list[object] = []
    for future in futures:
        future.add_done_callback(told.append)
    router.flush()
    world.finish()

    assert set(as_completed(futures, 10)) == set(futures)
    wait_until(lambda: len(told) == 10, what="all callbacks")


def test_a_callback_may_close_the_router(world: World) -> None:
    """The first answer is enough, say; whoever waits for the others is told."""
    router = world.router()
    first, other = router.submit(ask(1), latency=BULK), router.submit(ask(2), latency="weekly")
    closed = threading.Event()

    def close(_: object) -> None:
        router.close()
        closed.set()

    first.add_done_callback(close)
    first.cancel()
    assert closed.wait(10)
    with pytest.raises(RouterClosedError):
        other.result(10)

    router = world.router()
    answered, other = router.submit(ask(3), latency=BULK), router.future(other.request_id)
    waits = router.submit(ask(4), latency=BULK)
    closed.clear()
    answered.add_done_callback(close)
    router.flush()
    world.finish_when_sent(3)
    assert closed.wait(10)
    assert answered.result(0).content
    assert waits.done()


def test_a_store_that_was_given_is_not_closed(world: World) -> None:
    """Whoever opened it closes it; the next router can use it."""
    closed: list[bool] = []

    class Noting(MemoryStore):
        def close(self) -> None:
            closed.append(True)

    store, settings = Noting(), Settings(**quick())
    with Router(world.client(), store=store, settings=settings) as router:
        request_id = router.submit(ask(), latency=BULK).request_id
    assert closed == []
    with Router(world.client(), store=store, settings=settings) as router:
        assert router.future(request_id).status() == "queued"


def test_a_callback_may_submit_the_next_request(world: World) -> None:
    """On the thread that brings the answers."""
    router = world.router()
    following: list[MessageFuture] = []
    first = router.submit(ask(1), latency="daily")
    first.add_done_callback(lambda _: following.append(router.submit(ask(2), latency="daily")))
    world.finish()
    first.result(10)
    wait_until(lambda: following, what="the next request")
    world.finish(2)

    assert following[0].result(10).content


def test_futures_that_nobody_holds_are_not_kept(world: World) -> None:
    """Their requests are; a callback keeps its future."""
    router = world.router()
    dropped, listened = router.submit_many([ask(1), ask(2)], latency=BULK)
    told: list[str] = []
    listened.add_done_callback(lambda done: told.append(done.result().id))
    request_id, gone = dropped.request_id, weakref.ref(dropped)
    del dropped, listened
    gc.collect()
    assert gone() is None
    router.flush()
    world.finish()

    wait_until(lambda: told, what="the callback")
    assert router.future(request_id).result(10).content


def test_settings_may_come_from_the_environment(
    world: World, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A router without arguments: client, store and schedule."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "k")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", world.server.base_url)
    monkeypatch.setenv("LLMROUTER_STORE", world.store)
    monkeypatch.setenv("LLMROUTER_POLL", "0.05")
    monkeypatch.setenv("LLMROUTER_CLASSES__DAILY__FLUSH", "0.05")
    with Router() as router:
        future = router.submit(ask(), latency="daily")
        world.finish()
        assert future.result(10).content
    assert (tmp_path / "store").is_dir()


def test_a_missing_api_key_is_told_at_submit(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what to do."""
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/nonexistent")

    with pytest.raises(SettingsError, match="set ANTHROPIC_API_KEY"):
        world.router(client=world.client(api_key=None)).submit(ask(), latency="daily")


@pytest.mark.parametrize("store", ["postgresql://x", "disk://", "/tmp/folder", "redis://x"])
def test_a_store_that_does_not_exist_is_refused(world: World, store: str) -> None:
    """With what to write instead."""
    with pytest.raises(SettingsError, match="disk:///path/to/folder"):
        Router(world.client(), store=store)


def test_deadlines_and_times_are_aware(world: World) -> None:
    """And in UTC, wherever they are shown."""
    router = world.router()
    future = router.submit(ask(), latency=BULK)
    router.flush()
    world.finish()
    future.result(10)
    outcome, at = future.outcome, router.status().at
    assert outcome is not None

    for instant in (future.deadline, outcome.accepted_at, outcome.settled_at, outcome.deadline_at, at):
        assert instant is not None
        assert instant.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - outcome.settled_at) < timedelta(minutes=1)


def test_real_time_is_answered_at_once(world: World) -> None:
    """Many at the same time, and nothing of them is stored."""
    router = world.router(worker=False)
    world.fault(kind="delay", endpoint="messages.create", seconds=0.2, count=None)
    began = time.monotonic()
    futures = [router.submit(ask(number), latency="real-time", key="k") for number in range(40)]
    assert time.monotonic() - began < 2
    texts = {text_of(future) for future in futures}

    assert time.monotonic() - began < 6
    assert len(texts) == 40
    assert {future.status() for future in futures} == {"succeeded"}
    assert {(future.deadline, future.outcome) for future in futures} == {(None, None)}
    assert router.status().queued == 0


def test_a_real_time_error_is_the_sdks(world: World) -> None:
    """As a direct call raises it."""
    router = world.router(worker=False)
    world.fault(kind="status", endpoint="messages.create", status=404, count=None)
    future = router.submit(ask(), latency="real-time")

    assert type(future.exception(10)).__name__ == "NotFoundError"
    assert future.status() == "errored"
    assert future.cancel() is False
