"""What the SDK builds on `messages.create`, on wrapped clients over HTTP: parsed answers, tools, streams."""

from __future__ import annotations

import asyncio
import json
from contextlib import ExitStack
from datetime import timedelta
from itertools import groupby
from typing import TYPE_CHECKING, Any

import anthropic
import pytest
from anthropic import beta_async_tool, beta_tool
from pydantic import BaseModel

import llmrouter
from llmrouter.sandbox import Reply, Turnaround
from support.requests import ask
from support.world import World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.timeout(60)

TEXT = "Zwölf Boote, 日本, \u2028 and a quay."


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., World]]:
    """Starts a sandbox with answers of the test's, whose batches end as soon as they are created."""
    with ExitStack() as worlds:
        yield lambda reply: worlds.enter_context(
            World(tmp_path, reply=reply, turnaround=Turnaround.fixed(timedelta(0)))
        )


def async_client(world: World) -> anthropic.AsyncAnthropic:
    """An asynchronous client of the sandbox; to be closed in its loop."""
    return anthropic.AsyncAnthropic(api_key=world.server.api_key, base_url=world.server.base_url)


def check_paid(world: World, *, batched: int, live: int = 0) -> None:
    """Fails unless so many requests were sent each way, and each of them was paid once."""
    assert (len(world.batch_items()), world.sandbox.books.calls["messages.create"]) == (batched, live)
    world.check_books(batched + live)


class Boat(BaseModel):
    """What is asked for."""

    name: str
    crew: int


def boat(_: Any) -> str:
    """An answer in the form asked for."""
    return '{"name": "Möwe", "crew": 3}'


def test_a_parsed_answer_is_parsed_as_a_live_one(start: Callable[..., World]) -> None:
    """`messages.parse` of the plain API and the beta one: tagged, in a block, and live."""
    world = start(boat)
    client = world.router().wrap(world.client())
    tagged = client.messages.parse(**ask(1), output_format=Boat, extra_headers=llmrouter.tag("daily"))
    with llmrouter.latency("hourly"):
        beta = client.beta.messages.parse(**ask(2), output_format=Boat)
    live = client.messages.parse(**ask(3), output_format=Boat)

    for message in (tagged, beta, live):
        assert message.parsed_output == Boat(name="Möwe", crew=3)
    tiers = [message.usage.service_tier for message in (tagged, beta, live)]
    assert tiers == ["batch", "batch", "standard"]
    schemas = [item["params"]["output_config"]["format"]["schema"] for item in world.batch_items()]
    assert [set(schema["properties"]) for schema in schemas] == [{"name", "crew"}] * 2
    check_paid(world, batched=2, live=1)


def test_a_parsed_answer_of_an_asynchronous_client(start: Callable[..., World]) -> None:
    """The same."""
    world = start(boat)
    router = world.router()

    async def main() -> Any:
        async with async_client(world) as given:
            with llmrouter.latency("daily"):
                return await router.wrap(given).messages.parse(**ask(), output_format=Boat)

    assert asyncio.run(main()).parsed_output == Boat(name="Möwe", crew=3)
    check_paid(world, batched=1)


def two_turns(params: dict[str, Any]) -> str | Reply:
    """Asks for a tool, then says what it has answered."""
    last = params["messages"][-1]["content"]
    results = [block for block in last if block["type"] == "tool_result"] if isinstance(last, list) else []
    if not results:
        wanted = {"type": "tool_use", "id": "toolu_1", "name": "depth", "input": {"harbour": "Nørre"}}
        return Reply(text="I will look.", stop_reason="tool_use", blocks=[wanted])
    return f"It is {json.dumps(results[0]['content'])}."


def test_the_tool_runner_goes_turn_by_turn_in_batches(start: Callable[..., World]) -> None:
    """Each turn is a request; the second one has what the tool has answered."""
    world = start(two_turns)
    client = world.router().wrap(world.client())
    asked: list[str] = []

    @beta_tool
    def depth(harbour: str) -> str:
        """How deep a harbour is.

        Args:
            harbour: Its name.
        """
        asked.append(harbour)
        return "12 m"

    with llmrouter.latency("daily", run="depths"):
        turns = list(client.beta.messages.tool_runner(**ask("how deep?"), tools=[depth]))

    assert asked == ["Nørre"]
    assert [turn.stop_reason for turn in turns] == ["tool_use", "end_turn"]
    assert "12 m" in turns[-1].content[0].text  # type: ignore[union-attr]
    assert {turn.usage.service_tier for turn in turns} == {"batch"}
    assert [len(item["params"]["messages"]) for item in world.batch_items()] == [1, 3]
    check_paid(world, batched=2)

    # The run again: the tool is asked again, the model is not.
    with llmrouter.latency("daily", run="depths"):
        final = client.beta.messages.tool_runner(**ask("how deep?"), tools=[depth]).until_done()
    assert final.id == turns[-1].id
    assert len(asked) == 2
    check_paid(world, batched=2)


def test_the_tool_runner_of_an_asynchronous_client(start: Callable[..., World]) -> None:
    """The same."""
    world = start(two_turns)
    router = world.router()

    @beta_async_tool
    async def depth(harbour: str) -> str:
        """How deep a harbour is."""
        return f"{harbour}: 12 m"

    async def main() -> Any:
        async with async_client(world) as given:
            client = router.wrap(given)
            with llmrouter.latency("daily"):
                return await client.beta.messages.tool_runner(**ask(), tools=[depth]).until_done()

    final = asyncio.run(main())
    assert "12 m" in final.content[0].text
    check_paid(world, batched=2)


def test_a_thread_of_the_callers_own_is_refused(start: Callable[..., World]) -> None:
    """As the API refuses what it cannot keep; nothing is sent."""
    world = start(boat)
    client = world.router().wrap(world.client())
    with (
        llmrouter.latency("daily"),
        pytest.raises(anthropic.BadRequestError, match="a batch keeps no thread"),
    ):
        client.beta.messages.create(**ask(), thread={"type": "create"}, betas=["message-threads-2026-08-12"])
    check_paid(world, batched=0)


def rich(_: Any) -> Reply:
    """An answer with more than a text."""
    wanted = {"type": "tool_use", "id": "toolu_1", "name": "depth", "input": {"a": [1, "ü"], "b": {}}}
    other = {"type": "tool_use", "id": "toolu_2", "name": "now", "input": {"zone": "UTC"}}
    return Reply(text=TEXT, stop_reason="tool_use", blocks=[wanted, other])


def facts(message: Any) -> dict[str, Any]:
    """A message without what two equal answers differ in."""
    found: dict[str, Any] = message.model_dump(mode="json", exclude_none=True)
    for block in found["content"]:
        block.pop("parsed_output", None)
    found.pop("id")
    found["usage"].pop("service_tier", None)
    return found


def test_a_replayed_stream_is_the_stream_of_a_live_call(start: Callable[..., World]) -> None:
    """By the SDK's helper and by its raw events: the same kinds of events, and the same message."""
    world = start(rich)
    client = world.router(streaming="replay").wrap(world.client())

    def both() -> tuple[Any, list[str], str]:
        with client.messages.stream(**ask()) as stream:
            text = "".join(stream.text_stream)
            message = stream.get_final_message()
        with client.messages.create(**ask(), stream=True) as events:
            kinds = [event.type for event in events]
        return message, [kind for kind, _ in groupby(kinds)], text

    live, live_kinds, live_text = both()
    with llmrouter.latency("daily", run="once"):
        replayed, kinds, text = both()

    assert facts(replayed) == facts(live)
    assert (kinds, text) == (live_kinds, live_text)
    assert text == TEXT
    assert (live.usage.service_tier, replayed.usage.service_tier) == ("standard", "batch")
    assert not any("stream" in item["params"] for item in world.batch_items())
    assert (len(world.batch_items()), world.sandbox.books.calls["messages.create"]) == (2, 2)


def test_a_replayed_stream_of_an_asynchronous_client(start: Callable[..., World]) -> None:
    """The same."""
    world = start(rich)
    router = world.router(streaming="replay")

    async def main() -> tuple[Any, str]:
        async with async_client(world) as given:
            client = router.wrap(given)
            with llmrouter.latency("daily"):
                async with client.messages.stream(**ask()) as stream:
                    text = "".join([piece async for piece in stream.text_stream])
                    return await stream.get_final_message(), text

    message, text = asyncio.run(main())
    assert text == TEXT
    assert [block.type for block in message.content] == ["text", "tool_use", "tool_use"]
    assert message.content[1].input == {"a": [1, "ü"], "b": {}}
    check_paid(world, batched=1)


def test_a_refused_request_is_an_error_of_the_stream(start: Callable[..., World]) -> None:
    """Raised where a live call raises it: before the first event."""
    world = start(rich)
    world.fault(kind="item", error_type="invalid_request_error", message="not like that")
    client = world.router(streaming="replay").wrap(world.client())
    with (
        llmrouter.latency("daily"),
        pytest.raises(anthropic.BadRequestError, match="not like that"),
        client.messages.stream(**ask()),
    ):
        raise AssertionError("there is nothing to stream")
