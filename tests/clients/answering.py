"""What the sandbox answers to a client, and what a test asks of its books."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anthropic

from llmrouter.sandbox import Reply

if TYPE_CHECKING:
    from support.world import World

MODEL = "claude-haiku-4-5"


def call_tool(name: str, /, **given: Any) -> Reply:
    """An answer that calls a tool."""
    block = {"type": "tool_use", "id": "toolu_1", "name": name, "input": given}
    return Reply(text="", stop_reason="tool_use", blocks=[block])


def async_client(world: World, **options: Any) -> anthropic.AsyncAnthropic:
    """An asynchronous client of the sandbox; to be closed in its loop."""
    return anthropic.AsyncAnthropic(api_key=world.server.api_key, base_url=world.server.base_url, **options)


def check_paid(world: World, *, batched: int, live: int = 0) -> None:
    """Fails unless so many requests were sent each way, and each of them paid once."""
    assert len(world.batch_items()) == batched
    assert world.sandbox.books.calls["messages.create"] == live
    world.check_books(batched + live)
