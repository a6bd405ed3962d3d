"""The first reading: what llmrouter does, one idea a test.

The fixtures are in `conftest.py`: a `client` of an API on this machine, a `store` in a folder, and
`settings` that make hours pass in a moment.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import CancelledError, as_completed
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import anthropic
import pytest

from llmrouter import LlmrouterError, MessageFuture, Router, Settings
from llmrouter.errors import (
    InvalidDeadlineError,
    InvalidRequestError,
    KeyConflictError,
    RouterClosedError,
    SettingsError,
    UnknownLatencyError,
    UnknownRequestError,
)
from llmrouter.sandbox import Fault, Sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.timeout(60)

Request = dict[str, Any]


@pytest.fixture
def router(client: anthropic.Anthropic, store: str, settings: Settings) -> Iterator[Router]:
    """What an application makes once, and closes at its end."""
    with Router(client, store=store, settings=settings) as one:
        yield one


@pytest.fixture
def queue_only(client: anthropic.Anthropic, store: str, settings: Settings) -> Iterator[Router]:
    """A router that only enqueues: a separate worker would do the rest, and here there is none."""
    with Router(client, store=store, settings=settings, worker=False) as one:
        yield one


def translate(word: str) -> Request:
    """A request for each word."""
    content = f"Translate to French: {word}"
    return {
        "model": "claude-haiku-4-5",
        "max_tokens": 100,
        "messages": [{"role": "user", "content": content}],
    }


def test_submit_gives_a_future_and_the_future_the_message(router: Router) -> None:
    """Say how long you can wait; `result` waits for the answer."""
    future = router.submit(translate("cheese"), latency="daily")
    message = future.result()

    assert isinstance(message, anthropic.types.Message)
    assert message.role == "assistant"


def test_a_future_can_be_awaited(router: Router) -> None:
    """In asyncio code."""

    async def main() -> anthropic.types.Message:
        future = await router.asubmit(translate("cheese"), latency="daily")
        return await future

    assert asyncio.run(main()).content


def test_many_futures_can_be_gathered(router: Router) -> None:
    """With what asyncio has for it."""

    async def main() -> list[anthropic.types.Message]:
        futures = [await router.asubmit(translate(word), latency="daily") for word in ("cheese", "bread")]
        return await asyncio.gather(*futures)

    assert len(asyncio.run(main())) == 2


def test_many_futures_can_be_waited_for_by_threads(router: Router) -> None:
    """With what the standard library has for it."""
    futures = [router.submit(translate(word), latency="daily") for word in ("cheese", "bread", "wine")]

    assert {future.result().stop_reason for future in as_completed(futures)} == {"end_turn"}


def test_submit_many_takes_all_of_them_or_none(router: Router) -> None:
    """In one transaction, and in order."""
    futures = router.submit_many([translate(word) for word in ("cheese", "bread")], latency="daily")
    assert len([future.result() for future in futures]) == 2

    with pytest.raises(InvalidRequestError) as caught:
        router.submit_many([translate("cheese"), {"model": "claude-haiku-4-5"}], latency="daily")
    assert (caught.value.index, caught.value.field) == (1, "max_tokens")


def test_what_can_wait_costs_half(router: Router, sandbox: Sandbox) -> None:
    """It goes through the Message Batches API, together with others."""
    futures = router.submit_many([translate(word) for word in ("cheese", "bread", "wine")], latency="daily")
    for future in futures:
        assert future.result().usage.service_tier == "batch"

    assert [charge.route for charge in sandbox.books.charges] == ["batch"] * 3
    assert len(sandbox.batches) == 1


def test_real_time_is_answered_at_once(queue_only: Router, sandbox: Sandbox) -> None:
    """Without the queue: the same call as without llmrouter."""
    message = queue_only.submit(translate("cheese"), latency="real-time").result()

    assert message.content
    assert [charge.route for charge in sandbox.books.charges] == ["live"]


def test_there_are_three_classes_to_begin_with(router: Router) -> None:
    """Hourly, daily, weekly: by when the answer is there at the latest."""
    for latency in ("hourly", "daily", "weekly"):
        assert router.submit(translate(latency), latency=latency).result().content


def test_a_class_of_your_own_has_a_deadline_and_a_schedule(client: anthropic.Anthropic, store: str) -> None:
    """An interval, or a line of cron."""
    settings = Settings(
        poll=0.05,
        classes={
            "over-lunch": {"deadline": "90m", "flush": "50ms"},
            "nightly": {"deadline": "30h", "flush": "0 22 * * *"},
        },
    )
    with Router(client, store=store, settings=settings) as router:
        assert router.submit(translate("cheese"), latency="over-lunch").result().content


def test_a_deadline_overrides_that_of_the_class(router: Router) -> None:
    """For one request."""
    future = router.submit(translate("cheese"), latency="weekly", deadline=timedelta(hours=8))
    future.result()

    assert future.outcome is not None
    assert future.outcome.deadline_at - future.outcome.accepted_at == timedelta(hours=8)


def test_the_same_key_gives_the_same_request(router: Router, sandbox: Sandbox) -> None:
    """Run a script twice, pay once."""
    first = router.submit(translate("cheese"), latency="daily", key="menu-cheese")
    again = router.submit(translate("cheese"), latency="daily", key="menu-cheese")

    assert first.request_id == again.request_id
    assert first.result().id == again.result().id
    assert len(sandbox.books.charges) == 1


def test_a_key_belongs_to_one_request(queue_only: Router) -> None:
    """Another request under it is a mistake, and is told."""
    queue_only.submit(translate("cheese"), latency="daily", key="menu-1")

    with pytest.raises(KeyConflictError):
        queue_only.submit(translate("bread"), latency="daily", key="menu-1")


def test_the_next_process_finds_it_by_its_key(
    client: anthropic.Anthropic, store: str, settings: Settings
) -> None:
    """What was submitted survives the end of the process."""
    with Router(client, store=store, settings=settings, worker=False) as yesterday:
        yesterday.submit(translate("cheese"), latency="daily", key="menu-cheese")

    with Router(client, store=store, settings=settings) as today:
        assert today.future(key="menu-cheese").result().content


def test_closing_ends_the_waiting_and_not_the_request(
    client: anthropic.Anthropic, store: str, settings: Settings
) -> None:
    """The next router goes on."""
    with Router(client, store=store, settings=settings, worker=False) as first:
        future = first.submit(translate("cheese"), latency="daily")
    with pytest.raises(RouterClosedError):
        future.result()

    with Router(client, store=store, settings=settings) as second:
        assert second.future(future.request_id).result().content


def test_a_request_can_be_canceled_while_it_is_queued(queue_only: Router) -> None:
    """Then it is never sent."""
    future = queue_only.submit(translate("cheese"), latency="daily")

    assert future.cancel()
    assert future.status() == "canceled"
    with pytest.raises(CancelledError):
        future.result()


def test_a_request_that_was_answered_can_not(router: Router) -> None:
    """It is paid for, and its answer stays."""
    future = router.submit(translate("cheese"), latency="daily")
    future.result()

    assert not future.cancel()
    assert future.status() == "succeeded"


def test_a_future_tells_where_its_request_is(queue_only: Router) -> None:
    """And by when the answer is there."""
    future = queue_only.submit(translate("cheese"), latency="daily")

    assert isinstance(future, MessageFuture)
    assert (future.status(), future.latency, future.key) == ("queued", "daily", None)
    assert future.deadline is not None


def test_the_status_tells_what_waits(queue_only: Router) -> None:
    """Of everybody who uses the store."""
    queue_only.submit_many([translate("cheese"), translate("bread")], latency="daily")
    status = queue_only.status()

    assert status.queued == 2
    assert status.backlog[0].latency == "daily"


def test_flush_does_not_wait_for_the_schedule(client: anthropic.Anthropic, store: str) -> None:
    """And `drain` waits until nothing is left."""
    settings = Settings(poll=0.05)
    with Router(client, store=store, settings=settings) as router:
        future = router.submit(translate("cheese"), latency="weekly")
        router.flush()
        assert router.drain(timeout=30)
        assert future.result().content


def test_an_error_of_the_api_is_the_sdks_own(router: Router, sandbox: Sandbox) -> None:
    """The same `except` works as around a live call."""
    sandbox.faults.add(Fault(kind="item", error_type="invalid_request_error", message="too clever"))
    future = router.submit(translate("cheese"), latency="daily")

    with pytest.raises(anthropic.BadRequestError, match="too clever"):
        future.result()


def test_what_fails_for_a_moment_is_sent_again(router: Router, sandbox: Sandbox) -> None:
    """An overloaded API is no reason to bother you."""
    sandbox.faults.add(Fault(kind="item", error_type="overloaded_error"))
    future = router.submit(translate("cheese"), latency="daily")

    assert future.result().content
    assert future.outcome is not None
    assert future.outcome.attempts == 2


@pytest.mark.parametrize(
    ("wrong", "error", "field"),
    [
        ({"latency": "dayly"}, UnknownLatencyError, "latency"),
        ({"deadline": timedelta(hours=-1)}, InvalidDeadlineError, "deadline"),
        ({"request": {"model": "m", "messages": []}}, InvalidRequestError, "max_tokens"),
        ({"request": {**translate("x"), "max_token": 5}}, InvalidRequestError, "max_token"),
        ({"request": {**translate("x"), "stream": True}}, InvalidRequestError, "stream"),
        ({"request": {**translate("x"), "speed": "fast"}}, InvalidRequestError, "speed"),
    ],
)
def test_a_mistake_is_told_at_submit_and_names_the_field(
    queue_only: Router, wrong: Request, error: type[LlmrouterError], field: str
) -> None:
    """Nothing is stored then."""
    with pytest.raises(error) as caught:
        queue_only.submit(**{"request": translate("cheese"), "latency": "daily", **wrong})

    assert getattr(caught.value, "field", None) == field
    assert str(caught.value).startswith(f"{field}: ")
    assert queue_only.status().queued == 0


def test_a_wrong_setting_suggests_the_right_one() -> None:
    """Wherever it stands."""
    with pytest.raises(SettingsError, match=r"did you mean poll\?"):
        Settings(pol="10s")


def test_a_request_that_nobody_submitted_is_an_error(queue_only: Router) -> None:
    """Not an endless wait."""
    with pytest.raises(UnknownRequestError):
        queue_only.future(key="never-heard-of-it")


def test_every_error_of_llmrouters_own_has_one_base(queue_only: Router) -> None:
    """What the API says comes as the SDK's exceptions; all else as these."""
    with pytest.raises(LlmrouterError):
        queue_only.submit(translate("cheese"), latency="sometimes")


def test_in_memory_nothing_outlives_the_process(client: anthropic.Anthropic, settings: Settings) -> None:
    """For tests, and where the work can be lost."""
    with Router(client, store="memory://", settings=settings) as router:
        assert router.submit(translate("cheese"), latency="daily").result().content
