"""Routers with clients of the other platforms: those without batches send everything live."""

from __future__ import annotations

import asyncio
import json
from contextlib import ExitStack
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import anthropic
import httpx2
import pytest

import llmrouter
from llmrouter import Router, Settings
from llmrouter.domain.requests import RequestState
from llmrouter.errors import InvalidRequestError, SettingsError, UnknownLatencyError
from llmrouter.stores.memory import MemoryStore
from support.requests import ask
from support.waiting import wait_until
from support.world import quick
from support.wrapping import message_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.timeout(60)

NAMES = ["AnthropicBedrock", "AnthropicBedrockMantle", "AnthropicVertex", "AnthropicFoundry"]
CREDENTIALS: dict[str, dict[str, Any]] = {
    "AnthropicBedrock": {"api_key": "k", "aws_region": "us-east-1"},
    "AnthropicBedrockMantle": {"api_key": "k", "aws_region": "us-east-1"},
    "AnthropicVertex": {"access_token": "t", "project_id": "p", "region": "us-east5"},
    "AnthropicFoundry": {"api_key": "k", "resource": "r"},
}


class Platform:
    """A platform's endpoint: answers calls with a message, and keeps what was sent."""

    def __init__(self) -> None:
        self.sent: list[httpx2.Request] = []
        self._open = ExitStack()

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.sent.append(request)
        return httpx2.Response(200, json=message_of("live"))

    def client(self, name: str) -> Any:
        """The SDK's own client of a platform, with a credential that needs no further library."""
        http_client = httpx2.Client(transport=httpx2.MockTransport(self))
        client = getattr(anthropic, name)(**CREDENTIALS[name], http_client=http_client)
        return self._open.enter_context(client)

    def async_client(self, name: str) -> Any:
        """The asynchronous one."""
        http_client = httpx2.AsyncClient(transport=httpx2.MockTransport(self))
        return getattr(anthropic, f"Async{name}")(**CREDENTIALS[name], http_client=http_client)

    def router(self, name: str, store: Any = "memory://") -> Router:
        """A quick router with such a client."""
        return self._open.enter_context(Router(self.client(name), store=store, settings=Settings(**quick())))

    def close(self) -> None:
        """Closes what was opened."""
        self._open.close()


@pytest.fixture
def platform() -> Iterator[Platform]:
    """Any platform."""
    one = Platform()
    yield one
    one.close()


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged as a warning."""
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_submitted_goes_live_at_once_with_one_warning(
    platform: Platform, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """By any way to submit; nothing is stored, and futures are as ever."""
    router = platform.router(name)
    future = router.submit(ask(), latency="daily", key="k")
    others = router.submit_many([ask(1), ask(2)], latency="hourly", deadline=timedelta(hours=2))

    async def main() -> Any:
        return await (await router.asubmit(ask(3), latency="weekly"))

    assert future.result(30).id == "msg_live"
    assert [one.result(30).id for one in others] == ["msg_live"] * 2
    assert asyncio.run(main()).id == "msg_live"
    assert (future.latency, future.deadline, future.key) == ("real-time", None, "k")
    assert len(platform.sent) == 4
    assert not any("batches" in request.url.path for request in platform.sent)
    assert router.status().queued == 0
    assert router.drain(1)
    assert warnings_of(caplog) == [
        f"{name} has no batches: what is submitted goes live at once, such as daily"
    ]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_tagged_goes_live_with_one_warning(
    platform: Platform, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """On both kinds of clients; the tag stays here."""
    router = platform.router(name)
    client = router.wrap(platform.client(name))

    async def main() -> Any:
        async with platform.async_client(name) as given:
            return await router.wrap(given).messages.create(**ask(), extra_headers=llmrouter.tag("daily"))

    with llmrouter.latency("daily", run="n"):
        assert client.messages.create(**ask()).id == "msg_live"
        assert client.messages.create(**ask(), extra_headers=llmrouter.tag(site="s")).id == "msg_live"
    assert warnings_of(caplog) == [f"{name} has no batches: what is tagged goes live, such as daily"]
    assert asyncio.run(main()).id == "msg_live"
    assert len(platform.sent) == 3
    assert not [header for request in platform.sent for header in request.headers if "llmrouter" in header]


def test_a_wrong_request_is_refused_as_ever(platform: Platform) -> None:
    """And nothing is sent."""
    router = platform.router("AnthropicFoundry")
    with pytest.raises(UnknownLatencyError):
        router.submit(ask(), latency="dayly")
    with pytest.raises(InvalidRequestError):
        router.submit({"model": "m"}, latency="daily")
    with pytest.raises(InvalidRequestError):
        router.submit(ask(), latency="daily", deadline=timedelta(0))
    assert platform.sent == []


def test_what_another_client_has_queued_is_left_to_those_who_can_send_it(platform: Platform) -> None:
    """A router without batches does not keep the store from them."""
    store = MemoryStore()
    with Router(anthropic.Anthropic(api_key="k"), store=store, worker=False) as first:
        request_id = first.submit(ask(), latency="daily").request_id
    router = platform.router("AnthropicBedrock", store)
    assert not router.status().working
    assert [line.served for line in router.status().backlog] == [False]
    assert router.why(request_id)

    api = httpx2.Client(transport=httpx2.MockTransport(lambda _: httpx2.Response(500)))
    client = anthropic.Anthropic(api_key="k", http_client=api, max_retries=0)
    with client, Router(client, store=store, settings=Settings(**quick())) as other:
        wait_until(lambda: other.status().working, what="the other one to work")
    found = store.find(request_id)
    assert found is not None
    assert found.state is not RequestState.SETTLED
    assert platform.sent == []


def test_a_client_with_batches_needs_a_router_with_batches(platform: Platform) -> None:
    """Its tagged calls are not sent to another platform."""
    router = platform.router("AnthropicFoundry")
    with pytest.raises(
        SettingsError, match=r"this Anthropic has batches, the router's AnthropicFoundry has none"
    ):
        router.wrap(anthropic.Anthropic(api_key="k"))


WRONG: list[tuple[Callable[[], Any], str]] = [
    *(
        (lambda name=name: getattr(anthropic, f"Async{name}")(**CREDENTIALS[name]), f"Async{name} is asynch")
        for name in NAMES
    ),
    (lambda: anthropic.AsyncAnthropic(api_key="k"), "AsyncAnthropic is asynchronous"),
    (lambda: "client", "str has no batches"),
]


@pytest.mark.parametrize(("make", "problem"), WRONG)
def test_an_asynchronous_client_is_refused(make: Callable[[], Any], problem: str) -> None:
    """Whatever its platform; and so is what is no client."""
    with pytest.raises(SettingsError, match=problem):
        Router(make(), store="memory://")


@pytest.mark.parametrize("name", ["AnthropicAWS", "AnthropicGoogleCloud"])
def test_the_platforms_with_batches_batch(
    name: str, platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By their own endpoints."""
    monkeypatch.setitem(CREDENTIALS, name, WITH_BATCHES[name])
    router = platform.router(name)
    future = router.submit(ask(), latency="daily")
    wait_until(lambda: platform.sent, what="a batch to be created")
    created = platform.sent[0]
    assert created.url.path.endswith("/v1/messages/batches")
    assert [item["params"] for item in json.loads(created.read())["requests"]] == [ask()]
    assert future.latency == "daily"


WITH_BATCHES: dict[str, dict[str, Any]] = {
    "AnthropicAWS": {"api_key": "k", "aws_region": "us-east-1", "workspace_id": "w"},
    "AnthropicGoogleCloud": {"workspace_id": "w", "project": "p", "token_provider": lambda: "t"},
}
