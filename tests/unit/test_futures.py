"""The future of a message: for threads, for asyncio, and when nobody holds it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import logging
import threading
import weakref
from typing import TYPE_CHECKING

import pytest

from llmrouter.domain.requests import OutcomeKind
from llmrouter.engine.resolver import Resolver
from llmrouter.errors import RouterClosedError
from llmrouter.stores.memory import MemoryStore
from support.owners import FakeOwner, canceled, message, outcome
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmrouter import MessageFuture

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def owner() -> FakeOwner:
    """Whoever made the futures."""
    return FakeOwner()


@pytest.fixture
def resolver() -> Iterator[Resolver[MessageFuture]]:
    """A resolver over an empty store."""
    one: Resolver[MessageFuture] = Resolver(MemoryStore(), lambda error: pytest.fail(str(error)))
    yield one
    one.close()


def settle_soon(*futures: MessageFuture) -> threading.Thread:
    """Settles futures in a thread of its own, as the resolver does."""

    def settle() -> None:
        for future in futures:
            future.settle(outcome(future.request_id))

    thread = threading.Thread(target=settle)
    thread.start()
    return thread


def test_an_outcome_becomes_the_message(owner: FakeOwner) -> None:
    """And stays at hand, with its times and its batch."""
    future = owner.future()
    future.settle(outcome())

    assert future.done()
    assert future.result(0).id == "msg_req_1"
    assert future.outcome == outcome()
    assert future.status() == "succeeded"


def test_an_error_is_raised_as_it_is(owner: FakeOwner) -> None:
    """Typed by whoever decodes it."""
    owner.answer = lambda _: ValueError("the API said no")
    future = owner.future()
    future.settle(outcome(kind=OutcomeKind.ERRORED))

    with pytest.raises(ValueError, match="the API said no"):
        future.result(0)
    assert future.status() == "errored"


def test_an_outcome_that_cannot_be_read_fails_the_future(owner: FakeOwner) -> None:
    """Whoever waits hears of it: silence would be waited for for ever."""

    def fail(_: object) -> Exception:
        raise KeyError("result")

    owner.answer = fail
    future = owner.future()
    future.settle(outcome())

    with pytest.raises(KeyError, match="result"):
        future.result(0)


def test_a_second_outcome_changes_nothing(owner: FakeOwner) -> None:
    """First answer wins."""
    future = owner.future()
    future.settle(outcome())
    owner.answer = lambda _: ValueError("late")
    future.settle(outcome(kind=OutcomeKind.ERRORED))

    assert future.result(0).id == "msg_req_1"
    assert future.outcome == outcome()


def test_the_status_is_where_the_request_is_until_it_ends(owner: FakeOwner) -> None:
    """Asked of the store, which knows."""
    future = owner.future()
    assert future.status() == "queued"
    owner.where = "in_flight"
    assert future.status() == "in_flight"
    future.settle(outcome())
    assert future.status() == "succeeded"


def test_a_live_answer_ends_it_without_an_outcome(owner: FakeOwner) -> None:
    """Real-time requests are not stored."""
    answered, failed, empty = (owner.future() for _ in range(3))
    answered.take(message(), None)
    failed.take(None, ValueError("no"))
    empty.take(None, None)

    assert (answered.status(), answered.outcome, answered.result(0).id) == ("succeeded", None, "msg_hello")
    assert failed.status() == "errored"
    assert isinstance(failed.exception(0), ValueError)
    assert isinstance(empty.exception(0), RuntimeError)


def test_wait_and_as_completed_of_the_standard_library_work(owner: FakeOwner) -> None:
    """It is a `concurrent.futures.Future`."""
    futures = [owner.future(f"req_{number}") for number in range(5)]
    thread = settle_soon(*futures[:3])

    done, pending = concurrent.futures.wait(futures, 10, concurrent.futures.FIRST_COMPLETED)
    thread.join()
    assert done <= set(futures[:3])
    assert pending >= set(futures[3:])

    settle_soon(*futures[3:]).join()
    assert set(concurrent.futures.as_completed(futures, 10)) == set(futures)
    assert concurrent.futures.wait(futures, 10).not_done == set()


def test_result_gives_up_after_its_timeout_and_the_request_goes_on(owner: FakeOwner) -> None:
    """A timeout says nothing of the request."""
    future = owner.future()
    with pytest.raises(TimeoutError):
        future.result(0.01)

    assert not future.done()
    assert owner.canceled == []


def test_await_gives_the_message(owner: FakeOwner) -> None:
    """On any loop, also when it is there already."""

    async def main() -> None:
        pending, there = owner.future("req_1"), owner.future("req_2")
        there.settle(outcome("req_2"))
        thread = settle_soon(pending)
        assert (await pending).id == "msg_req_1"
        assert (await there).id == "msg_req_2"
        assert (await pending).id == "msg_req_1"
        thread.join()

    asyncio.run(main())


def test_await_raises_the_error(owner: FakeOwner) -> None:
    """The same that `result` raises."""
    owner.answer = lambda _: ValueError("the API said no")

    async def main() -> None:
        future = owner.future()
        thread = settle_soon(future)
        with pytest.raises(ValueError, match="the API said no"):
            await future
        thread.join()

    asyncio.run(main())


def test_gather_and_as_completed_of_asyncio_work(owner: FakeOwner) -> None:
    """With many, in their order and in the order of their ends."""

    async def main() -> None:
        futures = [owner.future(f"req_{number}") for number in range(50)]
        thread = settle_soon(*futures)
        messages = await asyncio.gather(*futures)
        assert [one.id for one in messages] == [f"msg_req_{number}" for number in range(50)]
        again = {(await one).id for one in asyncio.as_completed(futures)}
        assert again == {one.id for one in messages}
        thread.join()

    asyncio.run(main())


def test_many_tasks_may_await_one_future(owner: FakeOwner) -> None:
    """All of them get the message."""

    async def main() -> None:
        future = owner.future()
        waiting = asyncio.gather(*(future for _ in range(10)))
        await asyncio.sleep(0)
        thread = settle_soon(future)
        assert {one.id for one in await waiting} == {"msg_req_1"}
        thread.join()

    asyncio.run(main())


def test_two_loops_may_await_one_future(owner: FakeOwner) -> None:
    """It belongs to no loop."""
    future = owner.future()
    found: list[str] = []

    async def wait() -> None:
        found.append((await future).id)

    threads = [threading.Thread(target=asyncio.run, args=(wait(),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(owner.pinned) == 2, what="both loops waiting")
    settle_soon(future).join()
    for thread in threads:
        thread.join(10)

    assert found == ["msg_req_1"] * 2


def test_a_timeout_of_asyncio_leaves_the_request_where_it_is(owner: FakeOwner) -> None:
    """Awaiting never cancels: it can be awaited again."""
    owner.cancels = True

    async def main() -> None:
        future = owner.future()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(future, 0.01)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await future
        assert owner.canceled == []
        assert not future.done()
        thread = settle_soon(future)
        assert (await future).id == "msg_req_1"
        thread.join()

    asyncio.run(main())


def test_a_cancelled_task_leaves_the_request_where_it_is(owner: FakeOwner) -> None:
    """And the future of the others."""
    owner.cancels = True

    async def main() -> None:
        future = owner.future()

        async def wait() -> str:
            return (await future).id

        gone, stays = asyncio.create_task(wait()), asyncio.create_task(wait())
        await asyncio.sleep(0)
        gone.cancel()
        thread = settle_soon(future)
        assert await stays == "msg_req_1"
        assert gone.cancelled()
        assert owner.canceled == []
        thread.join()

    asyncio.run(main())


def test_a_loop_that_ended_does_not_hurt_the_others(
    owner: FakeOwner, caplog: pytest.LogCaptureFixture
) -> None:
    """Its answer comes to nobody, silently."""
    future = owner.future()

    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(future, 0.01)

    asyncio.run(give_up())
    future.settle(outcome())

    assert future.result(0).id == "msg_req_1"
    assert caplog.records == []


def test_cancel_succeeds_while_the_request_is_queued(owner: FakeOwner) -> None:
    """Then nobody pays for it, and whoever waits is told."""
    owner.cancels = True
    future = owner.future()
    told: list[MessageFuture] = []
    future.add_done_callback(told.append)  # type: ignore[arg-type]

    assert future.cancel()
    assert future.cancel()
    assert (future.cancelled(), future.done(), future.status()) == (True, True, "canceled")
    assert told == [future]
    assert concurrent.futures.wait([future], 0).done == {future}
    with pytest.raises(concurrent.futures.CancelledError):
        future.result(0)


def test_cancel_fails_once_the_request_has_left_the_queue(owner: FakeOwner) -> None:
    """It cannot be stopped, and its answer still comes."""
    future = owner.future()

    assert not future.cancel()
    assert not future.done()
    future.settle(outcome())
    assert future.result(0).id == "msg_req_1"
    assert not future.cancel()
    assert owner.canceled == ["req_1"]


def test_a_request_canceled_elsewhere_cancels_the_future(owner: FakeOwner) -> None:
    """By another process, or another future of the same request."""
    future = owner.future()
    future.settle(canceled())

    assert (future.cancelled(), future.status(), future.outcome) == (True, "canceled", canceled())


def test_a_request_that_was_given_up_in_a_batch_cancels_the_future(owner: FakeOwner) -> None:
    """Like one that was canceled in the queue; one that the API canceled fails."""
    given_up, by_the_api = owner.future("req_1"), owner.future("req_2")
    given_up.settle(outcome("req_1", OutcomeKind.CANCELED, raw=b""))
    owner.answer = lambda _: ValueError("the API canceled it")
    by_the_api.settle(outcome("req_2", OutcomeKind.CANCELED))

    assert (given_up.cancelled(), given_up.status()) == (True, "canceled")
    assert isinstance(by_the_api.exception(0), ValueError)
    assert (by_the_api.cancelled(), by_the_api.status()) == (False, "canceled")


def test_a_cancel_that_the_log_tells_of_first_is_no_error(
    owner: FakeOwner, caplog: pytest.LogCaptureFixture
) -> None:
    """The resolver may read of it before the caller's own cancel has returned."""
    owner.cancels = True
    future = owner.future()
    owner.on_cancel = lambda: future.settle(canceled())

    assert future.cancel()
    assert future.cancelled()
    assert caplog.records == []


def test_cancels_from_many_threads_are_no_error(owner: FakeOwner, caplog: pytest.LogCaptureFixture) -> None:
    """All of them are told yes, and the resolver as well is not disturbed."""
    owner.cancels = True
    for _ in range(50):
        future = owner.future()
        together = threading.Barrier(4)
        owner.on_cancel = together.wait

        def settle(future: MessageFuture = future, together: threading.Barrier = together) -> None:
            together.wait()
            future.settle(canceled())

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            cancels = [pool.submit(future.cancel) for _ in range(3)]
            pool.submit(settle).result(10)
            assert [one.result(10) for one in cancels] == [True] * 3
        assert future.cancelled()
    assert caplog.records == []


def test_awaiting_a_canceled_request_is_a_cancellation(owner: FakeOwner) -> None:
    """As for every future of asyncio."""

    async def main() -> None:
        owner.cancels = True
        future = owner.future()
        future.cancel()
        with pytest.raises(asyncio.CancelledError):
            await future

    asyncio.run(main())


def test_a_closed_router_fails_the_future_and_not_the_request(owner: FakeOwner) -> None:
    """The error says how to wait on."""
    future = owner.future()
    future.abandon()

    error = future.exception(0)
    assert isinstance(error, RouterClosedError)
    assert "router.future('req_1')" in str(error)
    assert future.status() == "closed"


def test_a_future_that_nobody_holds_is_forgotten(owner: FakeOwner, resolver: Resolver[MessageFuture]) -> None:
    """A million submits do not keep a million futures."""
    held, dropped = owner.future("req_1"), owner.future("req_2")
    gone = weakref.ref(dropped)
    resolver.register([held, dropped], resolver.position())
    del dropped
    gc.collect()

    assert gone() is None
    (again,), _ = resolver.register([owner.future("req_1")], resolver.position())
    assert again is held


def test_a_future_with_a_callback_outlives_its_holder(resolver: Resolver[MessageFuture]) -> None:
    """Submit, add a callback, forget: a common way to use one."""
    owner = FakeOwner()
    owner.pin = resolver.pin  # type: ignore[method-assign]
    told: list[str] = []
    future = owner.future()
    resolver.register([future], resolver.position())
    future.add_done_callback(lambda done: told.append(done.result().id))
    kept = weakref.ref(future)
    del future
    gc.collect()

    alive = kept()
    assert alive is not None
    alive.settle(outcome())
    assert told == ["msg_req_1"]


def test_an_awaited_future_outlives_its_holder(resolver: Resolver[MessageFuture]) -> None:
    """`await router.submit(...)` holds it by nothing else."""
    owner = FakeOwner()
    owner.pin = resolver.pin  # type: ignore[method-assign]
    made: list[weakref.ref[MessageFuture]] = []

    def submit() -> MessageFuture:
        future = owner.future()
        made.append(weakref.ref(future))
        return resolver.register([future], resolver.position())[0][0]

    async def main() -> str:
        waiting = asyncio.create_task(wait())
        await asyncio.sleep(0)
        gc.collect()
        future = made[0]()
        assert future is not None
        thread = settle_soon(future)
        del future
        found = await waiting
        thread.join()
        return found

    async def wait() -> str:
        return (await submit()).id

    assert asyncio.run(main()) == "msg_req_1"


def test_a_callback_that_raises_is_logged_and_hurts_nobody(
    owner: FakeOwner, caplog: pytest.LogCaptureFixture
) -> None:
    """As the standard library has it."""

    def fail(_: object) -> None:
        raise ValueError("mine")

    future = owner.future()
    told: list[object] = []
    future.add_done_callback(fail)
    future.add_done_callback(told.append)
    with caplog.at_level(logging.ERROR):
        future.settle(outcome())

    assert future.result(0).id == "msg_req_1"
    assert told == [future]
    assert "exception calling callback" in caplog.text
