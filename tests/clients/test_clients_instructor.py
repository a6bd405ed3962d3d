"""instructor on a wrapped client: structured output."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import instructor
import pytest
from answering import MODEL, async_client, call_tool, check_paid
from instructor.core.exceptions import InstructorRetryException
from pydantic import BaseModel, Field

import llmrouter

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmrouter.sandbox import Reply
    from support.world import World

pytestmark = pytest.mark.timeout(60)


class Person(BaseModel):
    """Somebody."""

    name: str
    age: int = Field(ge=0)


def reply(params: dict[str, Any]) -> Reply:
    """A person; one without an age that can be, if asked for it and not told otherwise."""
    wrong = len(params["messages"]) == 1 and "wrong" in str(params["messages"])
    return call_tool("Person", name="Ada", age=-1 if wrong else 36)


def ask(text: str) -> dict[str, Any]:
    return {
        "model": MODEL,
        "max_tokens": 200,
        "messages": [{"role": "user", "content": text}],
        "response_model": Person,
    }


def test_a_model_comes_out_of_a_batch(start: Callable[..., World]) -> None:
    """Untagged it is live."""
    world = start(reply=reply)
    client = instructor.from_anthropic(world.router().wrap(world.client()))
    with llmrouter.latency("daily"):
        batched = client.messages.create(**ask("Who is it?"))
    check_paid(world, batched=1)

    live = client.messages.create(**ask("And now?"))
    assert (batched.name, batched.age) == (live.name, live.age) == ("Ada", 36)
    check_paid(world, batched=1, live=1)


def test_asynchronously_too(start: Callable[..., World]) -> None:
    world = start(reply=reply)
    router = world.router(classes={"daily": {"flush": 0.5}})

    async def main() -> list[Person]:
        async with async_client(world) as given:
            client = instructor.from_anthropic(router.wrap(given))
            with llmrouter.latency("daily"):
                return await asyncio.gather(*(client.messages.create(**ask(f"Page {n}")) for n in range(10)))

    assert [person.age for person in asyncio.run(main())] == [36] * 10
    check_paid(world, batched=10)
    assert len(world.batches) < 10


def test_an_answer_that_does_not_fit_is_asked_for_again_in_another_batch(start: Callable[..., World]) -> None:
    """That is another request, with the first answer in it; each is paid once."""
    world = start(reply=reply)
    client = instructor.from_anthropic(world.router().wrap(world.client()))
    with llmrouter.latency("daily"):
        person = client.messages.create(**ask("wrong"), max_retries=2)

    assert person.age == 36
    check_paid(world, batched=2)


def test_an_error_of_the_batch_is_not_retried(start: Callable[..., World]) -> None:
    """Neither by the SDK nor by instructor."""
    world = start(reply=reply)
    world.fault(kind="item", error_type="api_error", message="broken", count=1)
    client = instructor.from_anthropic(world.router(max_attempts=1).wrap(world.client(max_retries=5)))
    with llmrouter.latency("daily"), pytest.raises(InstructorRetryException, match="broken"):
        client.messages.create(**ask("Who is it?"), max_retries=3)

    assert len(world.batch_items()) == 1
    world.check_books(0)
