"""langchain-anthropic on wrapped clients: they are cached properties, and can be replaced."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import anthropic
import pytest
from answering import MODEL, call_tool, check_paid
from langchain_anthropic import ChatAnthropic
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from pydantic import BaseModel

import llmrouter

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmrouter import Router
    from llmrouter.sandbox import Reply
    from support.world import World

pytestmark = pytest.mark.timeout(60)


class Person(BaseModel):
    """Somebody."""

    name: str


@tool
def temperature(city: str) -> str:
    """The temperature of a city."""
    return f"18 degrees in {city}"


def reply(params: dict[str, Any]) -> str | Reply:
    tools = [one["name"] for one in params.get("tools", ())]
    if "Person" in tools:
        return call_tool("Person", name="Ada")
    if "temperature" in tools and len(params["messages"]) == 1:
        return call_tool("temperature", city="Zürich")
    return "It is warm."


def chat(world: World, router: Router, **options: Any) -> ChatAnthropic:
    model = ChatAnthropic(
        model=MODEL,
        base_url=world.server.base_url,
        api_key=world.server.api_key,
        max_tokens=200,
        **options,
    )
    model.__dict__["_client"] = router.wrap(model._client)
    model.__dict__["_async_client"] = router.wrap(model._async_client)
    return model


def test_tools_and_structured_output_go_in_batches(start: Callable[..., World]) -> None:
    """Also of what is derived from the model; untagged it is live."""
    world = start(reply=reply)
    model = chat(world, world.router())
    with llmrouter.latency("daily"):
        asked = HumanMessage("How warm is it?")
        called = model.bind_tools([temperature]).invoke([asked])
        said = temperature.invoke(called.tool_calls[0])
        final = model.bind_tools([temperature]).invoke([asked, called, said])
        person = model.with_structured_output(Person).invoke("Who is it?")
    assert isinstance(said, ToolMessage)
    assert (said.content, final.text, person) == ("18 degrees in Zürich", "It is warm.", Person(name="Ada"))
    check_paid(world, batched=3)

    assert model.invoke("And now?").response_metadata["usage"]["service_tier"] == "standard"
    check_paid(world, batched=3, live=1)


def test_asynchronously_too(start: Callable[..., World]) -> None:
    world = start(reply=reply)
    model = chat(world, world.router(classes={"daily": {"flush": 0.5}}))

    async def main() -> list[Any]:
        with llmrouter.latency("daily"):
            return await model.abatch([f"Page {n}" for n in range(10)])

    assert {one.response_metadata["usage"]["service_tier"] for one in asyncio.run(main())} == {"batch"}
    check_paid(world, batched=10)
    assert len(world.batches) < 10


def test_its_thread_pool_sees_the_block(start: Callable[..., World]) -> None:
    """LangChain copies the context into its pool."""
    world = start(reply=reply)
    model = chat(world, world.router())
    with llmrouter.latency("daily"):
        model.batch(["a", "b"])
    check_paid(world, batched=2)


def test_an_error_of_the_batch_is_not_retried(start: Callable[..., World]) -> None:
    world = start(reply=reply)
    world.fault(kind="item", error_type="api_error", message="broken", count=1)
    model = chat(world, world.router(max_attempts=1), max_retries=5)
    with llmrouter.latency("daily"), pytest.raises(anthropic.APIError, match="broken"):
        model.invoke("How warm is it?")

    assert len(world.batch_items()) == 1
    world.check_books(0)
