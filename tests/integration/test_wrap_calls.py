"""Calls on wrapped clients over HTTP: what is paid as a batch, what stays live, and who waits how."""

from __future__ import annotations

import asyncio
import contextvars
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import anthropic
import pytest

import llmrouter
from llmrouter.errors import RouterClosedError
from llmrouter.sandbox import Turnaround
from support.requests import ask
from support.waiting import wait_until
from support.world import World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.timeout(60)

DAILY = llmrouter.tag("daily")
LONGEST_STANDSTILL_SECONDS = 0.5


@pytest.fixture
def prompt(tmp_path: Path) -> Iterator[World]:
    """A sandbox whose batches end as soon as they are created."""
    with World(tmp_path, turnaround=Turnaround.fixed(timedelta(0))) as one:
        yield one


def async_client(world: World, **options: Any) -> anthropic.AsyncAnthropic:
    """An asynchronous client of the sandbox; to be closed in its loop."""
    return anthropic.AsyncAnthropic(api_key=world.server.api_key, base_url=world.server.base_url, **options)


def test_a_tagged_call_is_a_batch_and_an_untagged_one_is_live(prompt: World) -> None:
    """The same code, the same answer, half the price."""
    client = prompt.router().wrap(prompt.client())
    live = client.messages.create(**ask())
    batched = client.messages.create(**ask("other"), extra_headers=DAILY)
    with llmrouter.latency("hourly"):
        again = client.messages.create(**ask("third"))

    assert [one.usage.service_tier for one in (live, batched, again)] == ["standard", "batch", "batch"]
    assert prompt.sandbox.books.calls["messages.create"] == 1
    assert [item["params"] for item in prompt.batch_items()] == [ask("other"), ask("third")]
    prompt.check_books(3)


def test_live_calls_of_a_wrapped_client_count_against_the_limits(tmp_path: Path) -> None:
    """Escalations share them: what the headers name is known before the first of those."""
    with World(tmp_path, requests_per_minute=1_000) as world:
        router = world.router(worker=False)
        pace = router._lifetime._parts.pace
        client = router.wrap(world.client())
        assert not pace.knows_limits

        client.messages.create(**ask())
        assert pace.knows_limits
        assert pace.rate([ask()["model"]]).requests <= 0.8 * 999


def test_an_asynchronous_client_does_the_same(prompt: World) -> None:
    """Its calls share a batch where they come together."""
    router = prompt.router()

    async def main() -> list[Any]:
        async with async_client(prompt) as given:
            client = router.wrap(given)
            with llmrouter.latency("daily"):
                some = [client.messages.create(**ask(number)) for number in range(20)]
                messages = await asyncio.gather(*some)
            return [*messages, await client.messages.create(**ask("live"))]

    *batched, live = asyncio.run(main())
    assert {one.usage.service_tier for one in batched} == {"batch"}
    assert len({one.id for one in batched}) == 20
    assert live.usage.service_tier == "standard"
    assert prompt.sandbox.books.calls["batches.create"] < 10
    prompt.check_books(21)


def test_betas_travel_in_a_lane_of_their_own(prompt: World) -> None:
    """In the header of their batch, and nowhere else."""
    client = prompt.router().wrap(prompt.client())
    with llmrouter.latency("daily"):
        message = client.beta.messages.create(**ask("beta"), betas=["b-2", "b-1"])
        client.messages.create(**ask("plain"))

    assert message.usage.service_tier == "batch"
    first, second = prompt.batches
    assert (first.headers.get("anthropic-beta"), second.headers.get("anthropic-beta")) == ("b-1,b-2", None)
    assert [set(item["params"]) for item in prompt.batch_items()] == [set(ask())] * 2


def test_count_tokens_and_lists_are_as_before(prompt: World) -> None:
    """In a block, too."""
    client = prompt.router().wrap(prompt.client())
    with llmrouter.latency("daily"):
        assert client.messages.count_tokens(model="m", messages=ask()["messages"]).input_tokens > 0
        assert list(client.messages.batches.list()) == []
    assert prompt.batches == []


def test_a_long_answer_that_only_a_batch_gives(prompt: World) -> None:
    """More than a live call may ask for."""
    client = prompt.router().wrap(prompt.client())
    betas = ["output-300k-2026-03-24"]
    message = client.beta.messages.create(
        **ask(max_tokens=300_000), betas=betas, timeout=1, extra_headers=DAILY
    )

    assert message.usage.service_tier == "batch"
    assert prompt.sandbox.books.calls["messages.create"] == 0


@pytest.mark.parametrize(
    ("error_type", "expected"),
    [("invalid_request_error", anthropic.BadRequestError), ("billing_error", anthropic.APIStatusError)],
)
def test_an_error_of_the_batch_is_raised_once_and_nothing_is_sent_again(
    prompt: World, error_type: str, expected: type[Exception]
) -> None:
    """By both kinds of clients, whose own retries stay out of it."""
    prompt.fault(kind="item", error_type=error_type, message="not like that", count=2)
    router = prompt.router()
    client = router.wrap(prompt.client(max_retries=5))

    async def main() -> None:
        async with async_client(prompt, max_retries=5) as given:
            await router.wrap(given).messages.create(**ask(2), extra_headers=DAILY)

    with pytest.raises(expected, match="not like that"):
        client.messages.create(**ask(1), extra_headers=DAILY)
    with pytest.raises(expected, match="not like that"):
        asyncio.run(main())
    assert len(prompt.batch_items()) == 2
    prompt.check_books(0)


def test_no_timeout_of_the_client_ends_the_wait(world: World) -> None:
    """Neither the client's nor the call's: it was told to wait."""
    client = world.router().wrap(world.client(timeout=0.05, max_retries=0))
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(client.messages.create, **ask(), extra_headers=DAILY, timeout=0.05)
        wait_until(lambda: len(world.batches) == 1)
        time.sleep(0.2)  # What must not happen has had its time.
        assert not waits.done()
        world.finish()
        assert waits.result(30).usage.service_tier == "batch"


def test_a_waiting_call_does_not_hold_up_its_loop(world: World) -> None:
    """Nor does its write, while another process holds the store."""
    router = world.router()

    async def main() -> float:
        async with async_client(world) as given:
            client = router.wrap(given)
            with llmrouter.latency("daily"):
                tasks = [asyncio.create_task(client.messages.create(**ask(n))) for n in range(10)]
            worst, last, end = 0.0, time.monotonic(), time.monotonic() + 0.5
            while time.monotonic() < end:
                await asyncio.sleep(0.005)
                worst, last = max(worst, time.monotonic() - last), time.monotonic()
            await asyncio.to_thread(world.finish_when_sent, 10)
            await asyncio.gather(*tasks)
            return worst

    assert asyncio.run(main()) < LONGEST_STANDSTILL_SECONDS
    world.check_books(10)


def test_a_cancelled_task_leaves_its_request_and_the_next_run_picks_it_up(world: World) -> None:
    """Whether it is cancelled or runs out of time; it is paid once."""
    router = world.router()

    async def main() -> Any:
        async with async_client(world) as given:
            client = router.wrap(given)
            with llmrouter.latency("daily", run="nightly"):
                task = asyncio.create_task(client.messages.create(**ask()))
                await asyncio.to_thread(wait_until, lambda: world.batches)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await client.messages.create(**ask())
            await asyncio.to_thread(world.finish)
            with llmrouter.latency("daily", run="nightly"):
                return await client.messages.create(**ask())

    assert asyncio.run(main()).usage.service_tier == "batch"
    world.check_books(1)
    assert len(world.batch_items()) == 1


def test_ctrl_c_ends_the_wait_and_the_next_run_picks_the_answer_up(world: World) -> None:
    """A signal reaches a thread that waits."""
    client = world.router().wrap(world.client())
    main = threading.get_ident()

    def interrupt() -> None:
        wait_until(lambda: world.batches)
        signal.pthread_kill(main, signal.SIGINT)

    def run() -> Any:
        with llmrouter.latency("daily", run="nightly"):
            return client.messages.create(**ask())

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run()
    thread.join()
    world.finish()

    assert run().usage.service_tier == "batch"
    assert len(world.batch_items()) == 1


def test_a_run_that_is_started_again_pays_for_what_is_new_only(world: World) -> None:
    """In another process, in another order, from several threads; equal requests keep their answers."""
    texts = ["a", "b", "c", "a", "a"]

    def run(router: llmrouter.Router, texts: list[str], *, during: Callable[[], None]) -> list[str]:
        client = router.wrap(world.client())

        def one(text: str) -> str:
            return client.messages.create(**ask(text)).id

        with llmrouter.latency("daily", run="nightly"), ThreadPoolExecutor(len(texts)) as pool:
            waits = [pool.submit(contextvars.copy_context().run, one, text) for text in texts]
            during()
            return [wait.result(30) for wait in waits]

    with world.router() as router:
        first = run(router, texts, during=lambda: world.finish_when_sent(5))
    with world.router() as router:
        again = run(router, [*reversed(texts), "d"], during=lambda: world.finish_when_sent(6))

    assert len(set(first)) == 5
    assert sorted(again[:-1]) == sorted(first)
    assert len(world.batch_items()) == 6


def test_a_run_with_another_class_keeps_what_it_has_paid_for(prompt: World) -> None:
    """For both kinds of clients."""
    router = prompt.router()
    client = router.wrap(prompt.client())

    async def main() -> Any:
        async with async_client(prompt) as given:
            with llmrouter.latency("weekly", run="nightly"):
                return await router.wrap(given).messages.create(**ask())

    with llmrouter.latency("daily", run="nightly"):
        first = client.messages.create(**ask())
    with llmrouter.latency("hourly", run="nightly"):
        second = client.messages.create(**ask())

    assert first.id == second.id == asyncio.run(main()).id
    prompt.check_books(1)


def test_what_failed_in_a_run_is_tried_again_by_the_next(prompt: World) -> None:
    """It was not paid. The one after that picks the answer up."""
    prompt.fault(kind="item", error_type="invalid_request_error", message="not today", count=1)
    client = prompt.router().wrap(prompt.client())

    def run() -> Any:
        with llmrouter.latency("daily", run="nightly"):
            return client.messages.create(**ask())

    with pytest.raises(anthropic.BadRequestError, match="not today"):
        run()
    assert run().id == run().id
    prompt.check_books(1)


def test_a_router_that_closes_tells_who_waits_and_keeps_the_request(world: World) -> None:
    """The next router answers it."""
    with ThreadPoolExecutor(1) as pool:
        with world.router() as router:
            client = router.wrap(world.client())
            headers = llmrouter.tag("daily", key="k")
            waits = pool.submit(client.messages.create, **ask(), extra_headers=headers)
            wait_until(lambda: world.batches)
        with pytest.raises(RouterClosedError):
            waits.result(30)
    assert client.messages.create(**ask("live")).usage.service_tier == "standard"

    router = world.router()
    world.finish()
    assert router.wrap(world.client()).messages.create(**ask(), extra_headers=headers).id
    assert len(world.batch_items()) == 1


def test_a_request_that_is_canceled_ends_the_call(world: World) -> None:
    """With an error of the SDK's."""
    router = world.router()
    client = router.wrap(world.client())
    with ThreadPoolExecutor(1) as pool, llmrouter.latency("bulk", run="nightly"):
        waits = pool.submit(contextvars.copy_context().run, lambda: client.messages.create(**ask()))
        wait_until(lambda: router.find(key="run:nightly:*"))
        router.cancel(key="run:nightly:*")
        with pytest.raises(anthropic.APIStatusError) as caught:
            waits.result(30)

    assert caught.value.status_code == 499


def test_a_rule_for_a_site_is_all_it_takes(prompt: World) -> None:
    """No tag in the code; what the rule does not name stays live."""
    here = f"{__name__}:test_a_rule_for_a_site*"
    client = prompt.router(sites={here: "hourly"}).wrap(prompt.client())
    live: list[Any] = []
    thread = threading.Thread(target=lambda: live.append(elsewhere(client)))
    thread.start()
    thread.join()

    assert client.messages.create(**ask()).usage.service_tier == "batch"
    assert [one.usage.service_tier for one in live] == ["standard"]


def elsewhere(client: anthropic.Anthropic) -> Any:
    """Another call site."""
    return client.messages.create(**ask("live"))


def test_what_must_never_be_in_a_batch_goes_live_by_submit_too(prompt: World) -> None:
    """Whatever class it is given."""
    router = prompt.router(never_batch=["billing.*"])
    assert (
        router.submit(ask(), latency="daily", site="billing.job").result(30).usage.service_tier == "standard"
    )

    async def main() -> Any:
        return await (await router.asubmit(ask(2), latency="daily", site="billing.job"))

    assert asyncio.run(main()).usage.service_tier == "standard"
    assert prompt.batches == []
