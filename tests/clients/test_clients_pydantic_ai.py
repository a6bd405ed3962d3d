"""pydantic-ai on a wrapped client: an agent with a tool."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from answering import MODEL, async_client, call_tool, check_paid
from pydantic_ai import Agent, ModelHTTPError
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.providers.anthropic import AnthropicProvider

import llmrouter

if TYPE_CHECKING:
    from collections.abc import Callable

    import anthropic

    from llmrouter.sandbox import Reply
    from support.world import World

pytestmark = pytest.mark.timeout(60)


def reply(params: dict[str, Any]) -> str | Reply:
    """First asks for the tool, then answers with what it said."""
    last = params["messages"][-1]["content"][0]
    if last["type"] == "tool_result":
        return (
            f"It is {last['content'][0]['text'] if isinstance(last['content'], list) else last['content']}."
        )
    return call_tool("temperature", city="Zürich")


def agent_on(client: anthropic.AsyncAnthropic, **settings: Any) -> Agent:
    model = AnthropicModel(MODEL, provider=AnthropicProvider(anthropic_client=client), settings=settings)
    agent = Agent(model)

    @agent.tool_plain
    def temperature(city: str) -> str:
        """The temperature of a city."""
        return f"18 degrees in {city}"

    return agent


def test_an_agent_with_a_tool_goes_in_batches(start: Callable[..., World]) -> None:
    """One for each of its two turns; untagged it stays live. `max_tokens` keeps it from streaming."""
    world = start(reply=reply)
    router = world.router()

    async def main() -> tuple[str, str]:
        async with async_client(world) as given:
            agent = agent_on(router.wrap(given), max_tokens=1000)
            with llmrouter.latency("daily"):
                batched = await agent.run("How warm is it?")
            check_paid(world, batched=2)
            return batched.output, (await agent.run("How warm is it now?")).output

    assert asyncio.run(main()) == ("It is 18 degrees in Zürich.",) * 2
    check_paid(world, batched=2, live=2)


def test_agents_side_by_side_share_batches(start: Callable[..., World]) -> None:
    world = start(reply=reply)
    router = world.router(classes={"daily": {"flush": 0.5}})

    async def main() -> None:
        async with async_client(world) as given:
            agent = agent_on(router.wrap(given), max_tokens=1000)
            with llmrouter.latency("daily"):
                await asyncio.gather(*(agent.run(f"How warm is it on day {n}?") for n in range(10)))

    asyncio.run(main())
    check_paid(world, batched=20)
    assert len(world.batches) < 10


def test_without_max_tokens_it_streams_and_replay_batches_that(start: Callable[..., World]) -> None:
    """By default what streams goes live, whatever its tag."""
    world = start(reply=reply)

    async def main(**settings: Any) -> str:
        with world.router(**settings) as router:
            async with async_client(world) as given:
                with llmrouter.latency("daily"):
                    return (await agent_on(router.wrap(given)).run(f"How warm? {settings}")).output

    assert asyncio.run(main()) == "It is 18 degrees in Zürich."
    check_paid(world, batched=0, live=2)
    assert asyncio.run(main(streaming="replay")) == "It is 18 degrees in Zürich."
    check_paid(world, batched=2, live=2)


def test_an_error_of_the_batch_is_not_retried(start: Callable[..., World]) -> None:
    """Neither by the SDK nor by pydantic-ai."""
    world = start(reply=reply)
    world.fault(kind="item", error_type="api_error", message="broken", count=1)
    router = world.router(max_attempts=1)

    async def main() -> None:
        async with async_client(world, max_retries=5) as given:
            with llmrouter.latency("daily"):
                await agent_on(router.wrap(given), max_tokens=1000).run("How warm is it?")

    with pytest.raises(ModelHTTPError, match="broken"):
        asyncio.run(main())
    assert len(world.batch_items()) == 1
    world.check_books(0)


def test_a_run_of_an_agent_that_is_started_again_is_paid_once(start: Callable[..., World]) -> None:
    """Its requests are the same in the next process."""
    world = start(reply=reply)

    async def main() -> str:
        with world.router() as router:
            async with async_client(world) as given:
                with llmrouter.latency("daily", run="nightly"):
                    return (await agent_on(router.wrap(given), max_tokens=1000).run("How warm is it?")).output

    assert asyncio.run(main()) == asyncio.run(main())
    check_paid(world, batched=2)
