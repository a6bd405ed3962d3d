"""The SDK's tool runner on wrapped clients over HTTP: every turn goes as it is tagged."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import anthropic
import pytest
from anthropic import beta_async_tool, beta_tool

import llmrouter
from llmrouter.sandbox import Reply, Turnaround
from support.requests import ask
from support.world import World

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.timeout(60)


@beta_tool
def temperature(city: str) -> str:
    """The temperature of a city."""
    return f"18 degrees in {city}"


@beta_async_tool
async def temperature_soon(city: str) -> str:
    """The temperature of a city."""
    return f"18 degrees in {city}"


def reply(params: dict[str, Any]) -> str | Reply:
    """First calls the tool, then says what it said."""
    last = params["messages"][-1]["content"]
    if isinstance(last, list):
        return str(last[0]["content"])
    [tool] = params["tools"]
    call = {"type": "tool_use", "id": "toolu_1", "name": tool["name"], "input": {"city": "Oslo"}}
    return Reply(text="", stop_reason="tool_use", blocks=[call])


@pytest.fixture
def prompt(tmp_path: Path) -> Iterator[World]:
    """A sandbox that calls tools, whose batches end as soon as they are created."""
    with World(tmp_path, turnaround=Turnaround.fixed(timedelta(0)), reply=reply) as one:
        yield one


def test_each_turn_is_a_batch(prompt: World) -> None:
    """In a block; without one it is live."""
    client = prompt.router().wrap(prompt.client())
    with llmrouter.latency("daily"):
        final = client.beta.messages.tool_runner(**ask(), tools=[temperature]).until_done()
    assert "18 degrees in Oslo" in final.content[0].text
    assert (len(prompt.batch_items()), prompt.sandbox.books.calls["messages.create"]) == (2, 0)

    client.beta.messages.tool_runner(**ask("live"), tools=[temperature]).until_done()
    assert (len(prompt.batch_items()), prompt.sandbox.books.calls["messages.create"]) == (2, 2)
    prompt.check_books(4)


def test_each_turn_is_a_batch_of_an_asynchronous_client_too(prompt: World) -> None:
    """Started again in a run, it is not paid again."""
    router = prompt.router()

    async def main() -> str:
        options = {"api_key": prompt.server.api_key, "base_url": prompt.server.base_url}
        async with anthropic.AsyncAnthropic(**options) as given:
            runner = router.wrap(given).beta.messages.tool_runner(**ask(), tools=[temperature_soon])
            with llmrouter.latency("daily", run="nightly"):
                return (await runner.until_done()).content[0].text

    assert "18 degrees in Oslo" in asyncio.run(main())
    assert "18 degrees in Oslo" in asyncio.run(main())
    assert len(prompt.batch_items()) == 2
    prompt.check_books(2)
