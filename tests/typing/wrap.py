"""What a type checker sees of a wrapped client: the given one. Checked by `test_typing.py`, never run."""

from __future__ import annotations

from typing import assert_type

import anthropic
from anthropic import (
    Anthropic,
    AnthropicAWS,
    AsyncAnthropic,
    AsyncStream,
    Stream,
)
from anthropic.lib.bedrock import AnthropicBedrock
from anthropic.lib.vertex import AnthropicVertex, AsyncAnthropicVertex
from anthropic.types import Message, MessageParam, RawMessageStreamEvent

import llmrouter
from llmrouter import Router


class Own(Anthropic):
    """A client of the user's own."""

    def ask(self) -> Message:
        """Asks."""
        return self.messages.create(model="m", max_tokens=1, messages=[])


HELLO: list[MessageParam] = [{"role": "user", "content": "hello"}]


def every_kind(router: Router) -> None:
    """Each has the type that it had."""
    assert_type(router.wrap(Anthropic()), Anthropic)
    assert_type(router.wrap(AsyncAnthropic()), AsyncAnthropic)
    assert_type(router.wrap(AnthropicAWS()), AnthropicAWS)
    assert_type(router.wrap(AnthropicBedrock()), AnthropicBedrock)
    assert_type(router.wrap(AsyncAnthropicVertex()), AsyncAnthropicVertex)
    assert_type(router.wrap(Own()).ask(), Message)
    router.wrap("no client")  # type: ignore[type-var]


def routers() -> None:
    """Of a synchronous client of any platform."""
    Router(AnthropicAWS())
    Router(AnthropicBedrock())
    Router(AnthropicVertex())
    Router(AsyncAnthropic())  # type: ignore[arg-type]


def calls(router: Router) -> None:
    """As they are on any client."""
    client = router.wrap(anthropic.Anthropic())
    with llmrouter.latency("daily", run="nightly"):
        message = client.messages.create(
            model="m",
            max_tokens=1,
            messages=HELLO,
            extra_headers=llmrouter.tag("hourly", site="here", key="k"),
        )
    assert_type(message, Message)
    streamed = client.messages.create(model="m", max_tokens=1, messages=HELLO, stream=True)
    assert_type(streamed, Stream[RawMessageStreamEvent])
    client.messages.create(model="m", max_tokens="many", messages=HELLO)  # type: ignore[call-overload]


async def calls_in_asyncio_code(router: Router) -> None:
    """The same."""
    client = router.wrap(anthropic.AsyncAnthropic()).with_options(max_retries=3)
    assert_type(await client.messages.create(model="m", max_tokens=1, messages=HELLO), Message)
    streamed = await client.messages.create(model="m", max_tokens=1, messages=HELLO, stream=True)
    assert_type(streamed, AsyncStream[RawMessageStreamEvent])
