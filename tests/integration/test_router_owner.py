"""What the owner of a store asks of a router: cancel, pause, resume, why, find, prune."""

from __future__ import annotations

import gc
import subprocess
import sys
import time
from concurrent.futures import CancelledError, wait
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from llmrouter.errors import (
    InvalidRequestError,
    StoreBusyError,
    UnknownLatencyError,
    UnknownRequestError,
)
from llmrouter.wiring import SystemClock
from support.requests import LANE, ask
from support.waiting import wait_until
from support.world import BULK

if TYPE_CHECKING:
    from datetime import datetime

    from llmrouter import MessageFuture, Router
    from llmrouter.domain.batches import Canceled
    from support.world import World

pytestmark = pytest.mark.timeout(60)


def submit(router: Router, *keys: str) -> list[MessageFuture]:
    """A request for each key."""
    return router.submit_many([ask(key) for key in keys], latency=BULK, keys=keys)


def counts(done: Canceled) -> tuple[int, int, int]:
    """What a cancel did: canceled, asked, settled."""
    return done.canceled, done.asked, done.settled


def test_requests_are_canceled_in_the_queue(world: World) -> None:
    """By id, one or several; an unknown id and a second time count for nothing."""
    router = world.router()
    first, second, third = submit(router, "a", "b", "c")

    assert counts(router.cancel(first.request_id)) == (1, 0, 0)
    ids = [second.request_id, second.request_id, first.request_id, "req_unknown"]
    assert counts(router.cancel(iter(ids))) == (1, 0, 1)
    assert counts(router.cancel([])) == (0, 0, 0)
    for future in (first, second):
        with pytest.raises(CancelledError):
            future.result(10)
    assert third.status() == "queued"
    assert router.flush() == 1
    world.finish()
    assert third.result(10).content
    world.check_books(1)


def test_a_cancel_reaches_into_a_batch(world: World) -> None:
    """All that is left of it was given up: the API is asked to cancel it, nothing is paid."""
    router = world.router()
    futures = submit(router, "a", "b", "c")
    router.flush()

    assert counts(router.cancel(batch=world.batches[0].id)) == (0, 3, 0)
    assert [batch.cancel_wanted for batch in router.status().batches] == [True]
    world.wait_for_calls("batches.cancel", 1)
    assert "all that is left of it was canceled" in router.why(futures[0].request_id)
    world.sandbox.clock.advance(timedelta(minutes=1))
    wait(futures, 10)
    assert [future.status() for future in futures] == ["canceled"] * 3
    assert all(future.cancelled() for future in futures)
    assert counts(router.cancel([future.request_id for future in futures])) == (0, 0, 3)
    assert router.status().queued == 0
    world.check_books(0)


def test_an_answer_that_comes_first_is_handed_over(world: World) -> None:
    """It is paid; the rest of the batch is not touched by one that was given up."""
    router = world.router()
    given_up, wanted = submit(router, "a", "b")
    router.flush()

    assert counts(router.cancel(given_up.request_id)) == (0, 1, 0)
    assert [batch.cancel_wanted for batch in router.status().batches] == [False]
    world.finish()
    assert given_up.result(10).content
    assert wanted.result(10).content
    assert world.sandbox.books.calls["batches.cancel"] == 0


def test_what_was_given_up_is_not_sent_again(world: World) -> None:
    """A passing error ends it as canceled."""
    router = world.router()
    world.fault(kind="item", error_type="overloaded_error", count=None)
    given_up, goes_on = submit(router, "a", "b")
    router.flush()
    router.cancel(given_up.request_id)
    world.finish()

    wait([given_up], 10)
    assert (given_up.cancelled(), given_up.status()) == (True, "canceled")
    wait_until(lambda: router.status().queued == 1, what="the other one to wait again")
    assert goes_on.status() == "queued"


def test_requests_are_found_and_canceled_by_their_keys(world: World) -> None:
    """By a shell pattern; what has its answer is not among them."""
    router = world.router()
    futures = submit(router, "nightly-1", "nightly-2", "other")
    router.cancel(futures[0].request_id)

    assert router.find(key="nightly-*") == [futures[1].request_id]
    assert sorted(router.find(key="*")) == sorted(future.request_id for future in futures[1:])
    assert router.find(key="weekly-*") == []
    assert counts(router.cancel(key="nightly-*")) == (1, 0, 0)
    assert futures[2].status() == "queued"


def test_requests_are_found_by_their_batch(world: World) -> None:
    """By our id and the API's; none is left in one that has ended."""
    router = world.router()
    (future,) = submit(router, "a")
    router.flush()
    (batch,) = router.status().batches

    assert router.find(batch=batch.batch_id) == [future.request_id]
    assert router.find(batch=batch.provider_batch_id) == [future.request_id]
    world.finish()
    future.result(10)
    wait_until(lambda: not router.status().batches, what="the batch to end")
    assert router.find(batch=batch.batch_id) == []
    assert counts(router.cancel(batch=batch.batch_id)) == (0, 0, 0)


def test_exactly_one_way_to_name_requests(world: World) -> None:
    """None or two of them is a mistake; a batch that is not known, too."""
    router = world.router(worker=False)
    for wrong in ({}, {"request_ids": [], "key": "k"}, {"key": "k", "batch": "b"}):
        with pytest.raises(TypeError):
            router.cancel(**wrong)  # type: ignore[arg-type]
    for wrong in ({}, {"key": "k", "batch": "b"}):
        with pytest.raises(TypeError):
            router.find(**wrong)
    for call in (router.cancel, router.find):
        with pytest.raises(UnknownRequestError, match="no batch 'msgbatch_x'"):
            call(batch="msgbatch_x")


def test_many_are_canceled_in_pieces(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """No other process waits long for the lock; the sum is right."""
    monkeypatch.setattr("llmrouter.operations._CANCELED_AT_ONCE", 4)
    router = world.router(worker=False)
    submit(router, *(f"k{number}" for number in range(10)))

    assert counts(router.cancel(key="k*")) == (10, 0, 0)
    assert router.status().queued == 0


def test_a_paused_class_stays_in_the_queue(world: World) -> None:
    """Also when somebody asks for a flush, and in whatever process; the others go."""
    router, other = world.router(), world.router(worker=False)
    other.pause(BULK)
    paused, goes = router.submit(ask(1), latency=BULK), router.submit(ask(2), latency="daily")
    router.flush()
    world.finish()
    goes.result(10)

    assert paused.status() == "queued"
    status = router.status()
    (line,) = status.backlog
    assert (line.paused, line.will_miss, list(status.paused)) == (True, True, [BULK])
    assert "its class is paused since" in router.why(paused.request_id)
    assert router.drain(0.1) is False
    assert (router.resume(BULK), router.resume(BULK)) == (True, False)
    assert router.flush() == 1
    world.finish(2)
    assert paused.result(10).content


@pytest.mark.parametrize("latency", ["hurly", "real-time", "", 5, [], None])
def test_only_a_class_can_be_paused(world: World, latency: Any) -> None:
    """With the one that was meant; real-time requests do not wait."""
    router = world.router(worker=False)
    for call in (router.pause, router.resume):
        with pytest.raises(UnknownLatencyError) as caught:
            call(latency)
        if latency == "hurly":
            assert "did you mean 'hourly'" in str(caught.value)
        if latency == "real-time":
            assert "real-time requests do not wait" in str(caught.value)
    assert router.status().paused == {}


def test_a_class_that_is_gone_from_the_settings_can_be_paused_and_resumed(world: World) -> None:
    """While something of it waits, or it is paused still."""
    before = world.router(worker=False, classes={"old": {"deadline": "800d", "flush": "0 0 1 1 *"}})
    future = before.submit(ask(), latency="old")
    router = world.router(worker=False)
    router.pause("old")
    router.cancel(future.request_id)

    assert router.resume("old") is True
    with pytest.raises(UnknownLatencyError):
        router.resume("old")


def test_why_follows_a_request(world: World) -> None:
    """From the queue to its answer; neither prompt nor answer is in it."""
    router, other = world.router(), world.router(worker=False)
    future = router.submit(ask("my secret prompt"), latency=BULK)
    said = [other.why(future.request_id)]
    router.flush()
    said.append(other.why(future.request_id))
    world.finish()
    answer = future.result(10).content[0].text  # type: ignore[union-attr]
    said.append(other.why(future.request_id))

    queued, flying, answered = said
    assert "waits in the queue: it leaves with the next flush of its class (at '0 0 1 1 *')" in queued
    assert f"is in flight in {world.batches[0].id}, created" in flying
    assert f"was answered in batch {world.batches[0].id} at" in answered
    assert not any(word in " ".join(said) for word in ("secret", answer))


def test_why_names_what_the_api_found_wrong(world: World) -> None:
    """By the name of the exception."""
    router = world.router()
    world.fault(kind="item", error_type="invalid_request_error")
    (future,) = submit(router, "a")
    router.flush()
    world.finish()
    future.exception(10)

    assert f"{future.request_id} failed with BadRequestError in batch" in router.why(future.request_id)


def test_why_tells_of_a_lane_that_waits(world: World) -> None:
    """With the API's words, also in a process that does not work."""
    router = world.router()
    world.fault(
        kind="status",
        endpoint="batches.create",
        status=429,
        headers={"retry-after": "30"},
        message="slow down",
        count=None,
    )
    (future,) = submit(router, "a")
    router.flush()
    assert "(limited: " in router.why(future.request_id)
    other = world.router(worker=False)
    wait_until(lambda: other.status().holds, what="the report of the one that works")

    said = other.why(future.request_id)
    assert "slow down" in said
    assert "which is tried again at" in said


def test_why_tells_that_nobody_works(world: World) -> None:
    """As long as it is so."""
    router = world.router(worker=False)
    (future,) = submit(router, "a")
    assert "no process works on this store" in router.why(future.request_id)
    assert router.status().unattended
    world.router()

    assert "no process works" not in router.why(future.request_id)
    assert not router.status().unattended


@pytest.mark.parametrize("request_id", ["req_x", "", "live_1", "\ud800"])
def test_why_of_nothing_known_is_an_error(world: World, request_id: str) -> None:
    """Of the kind that a lookup raises."""
    with pytest.raises(UnknownRequestError):
        world.router(worker=False).why(request_id)


def answered(world: World, router: Router, *keys: str) -> list[str]:
    """Requests that were answered, and whose answers were picked up."""
    futures = submit(router, *keys)
    router.flush()
    world.finish()
    assert all(future.result(10).content for future in futures)
    return [future.request_id for future in futures]


def prune_until(router: Router, count: int, **options: Any) -> None:
    """Prunes until so many are gone: that they were delivered is noted a moment after."""
    pruned: list[int] = []

    def prune() -> bool:
        pruned.append(router.prune(timedelta(0), **options))
        return sum(pruned) == count

    wait_until(prune, what=f"{count} to be pruned")


def test_prune_forgets_what_was_answered_long_ago(world: World) -> None:
    """By the limit that is given; never what still waits. The key is free again."""
    router = world.router()
    request_ids = answered(world, router, "a", "b")
    waits = router.submit(ask("waits"), latency=BULK, key="w")

    assert router.prune() == 0
    assert router.prune(timedelta(hours=1)) == 0
    prune_until(router, 2)
    for request_id in request_ids:
        with pytest.raises(UnknownRequestError):
            router.future(request_id)
    assert router.find(key="*") == [waits.request_id]
    assert router.submit(ask("a"), latency=BULK, key="a").request_id not in request_ids


def test_prune_keeps_answers_that_nobody_has_picked_up(world: World) -> None:
    """Unless it is told otherwise."""
    router = world.router()
    (future,) = submit(router, "a")
    request_id = future.request_id
    del future
    gc.collect()
    router.flush()
    world.finish()
    wait_until(lambda: not router.status().batches, what="the batch to be collected")

    assert router.prune(timedelta(0)) == 0
    assert router.prune(timedelta(0), undelivered=True) == 1
    with pytest.raises(UnknownRequestError):
        router.future(request_id)


def test_prune_takes_the_lease_where_nobody_works(world: World) -> None:
    """And gives it back."""
    working = world.router()
    answered(world, working, "a")
    working.close()
    router = world.router(worker=False)
    prune_until(router, 1)

    assert router.status().engine is None
    assert world.router().status().working


def test_prune_is_refused_while_another_process_works(world: World) -> None:
    """That one prunes by itself: the error says so."""
    world.router()
    for other in (world.router(worker=False), world.router()):
        with pytest.raises(StoreBusyError, match="prunes it every hour by itself, by its setting retention"):
            other.prune()


def test_prune_prolongs_its_lease(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it takes, nobody takes over in the middle of it."""
    monkeypatch.setattr("llmrouter.engine.lease.RENEW_EVERY", timedelta(milliseconds=10))
    router = world.router(worker=False)
    other = world.router(worker=False)
    untils: list[datetime] = []

    def look(*_: object, **__: object) -> int:
        def prolonged() -> bool:
            engine = other.status().engine
            assert engine is not None
            untils.append(engine.until)
            return untils[-1] > untils[0]

        wait_until(prolonged, what="the lease to be prolonged")
        return 0

    monkeypatch.setattr("llmrouter.engine.janitor.Janitor.prune", look)
    assert router.prune() == 0
    assert untils[0] < untils[-1] < SystemClock().now() + timedelta(seconds=31)


@pytest.mark.parametrize("span", [timedelta(seconds=-1), timedelta.max])
def test_prune_refuses_a_span_that_is_none(world: World, span: timedelta) -> None:
    """Before it does anything."""
    with pytest.raises(InvalidRequestError) as caught:
        world.router().prune(span)
    assert caught.value.field == "older_than"


def test_drain_keeps_its_timeout_while_a_create_hangs(world: World) -> None:
    """It does not wait for the create."""
    router = world.router()
    world.fault(kind="delay", endpoint="batches.create", seconds=3)
    submit(router, "a")
    began = time.monotonic()

    assert router.drain(0.3) is False
    assert time.monotonic() - began < 2


def test_a_closed_router_closes_the_status_of_its_futures(world: World) -> None:
    """Their requests did not fail."""
    router = world.router()
    (future,) = submit(router, "a")
    router.close()

    assert future.status() == "closed"
    assert world.router().future(future.request_id).status() == "queued"


def test_a_router_that_is_dropped_says_so_and_works_on(world: World) -> None:
    """Its request is safe, Python can show who forgot to close it, and the end of the process closes it."""
    ended = run_dropping(world)

    assert (ended.returncode, ended.stdout) == (0, "queued\nclosed\n"), ended.stderr
    assert "ResourceWarning" in ended.stderr
    assert "was dropped without close()" in ended.stderr
    assert world.router(worker=False).status().engine is None


def run_dropping(world: World) -> subprocess.CompletedProcess[str]:
    """A process that loses its router, and ends."""
    script = (
        "import anthropic, llmrouter\n"
        f"client = anthropic.Anthropic(api_key='k', base_url={world.server.base_url!r})\n"
        "request = {'model': 'claude-haiku-4-5', 'max_tokens': 5,"
        " 'messages': [{'role': 'user', 'content': 'hi'}]}\n"
        f"router = llmrouter.Router(client, store={world.store!r})\n"
        "future = router.submit(request, latency='weekly')\n"
        "future.add_done_callback(lambda done: print(done.status()))\n"
        "del router\n"
        "print(future.status())\n"
    )
    return subprocess.run(
        [sys.executable, "-W", "always::ResourceWarning", "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_call_sites_by_the_thousand_take_no_memory(world: World) -> None:
    """A name of each request's own is allowed."""
    router = world.router(worker=False)
    for number in range(1_500):
        router._submission._group(LANE, BULK, f"site-{number}", "m", "")

    assert router._submission._group.cache_info().currsize <= 1_024
