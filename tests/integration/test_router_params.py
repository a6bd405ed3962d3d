"""Every parameter of `messages.create` arrives in a batch byte for byte as a live call sends it."""

from __future__ import annotations

import base64
import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import anthropic
import pytest
from anthropic.types import TextBlock
from anthropic.types.message_create_params import MessageCreateParamsNonStreaming

from llmrouter.errors import InvalidRequestError
from support.requests import MODEL, ask
from support.world import BULK

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.world import World

pytestmark = pytest.mark.timeout(60)


_TOOL = {
    "name": "look_up",
    "description": "Looks a word up",
    "input_schema": {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]},
}
_IMAGE = base64.b64encode(b"\x89PNG").decode()

PARAMETERS: dict[str, Any] = {
    "cache_control": {"type": "ephemeral", "ttl": "1h"},
    "container": "container_1",
    "diagnostics": None,
    "inference_geo": "us",
    "max_tokens": 30_000,
    "messages": [
        {"role": "user", "content": 'plain \u2028 text é 😀 " \\ \n </script>'},
        {"role": "assistant", "content": [{"type": "text", "text": "blocks"}]},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "cached", "cache_control": {"type": "ephemeral"}},
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": _IMAGE}},
                {"type": "document", "source": {"type": "url", "url": "https://example.com/a.pdf"}},
            ],
        },
    ],
    "metadata": {"user_id": "user-1"},
    "model": "claude-sonnet-5-5",
    "output_config": {"effort": "low"},
    "service_tier": "standard_only",
    "stop_sequences": ["END", "\n\nHuman:"],
    "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral", "ttl": "5m"}}],
    "thinking": {"type": "enabled", "budget_tokens": 1024},
    "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
    "tools": [_TOOL, {"type": "web_search_20250305", "name": "web_search", "max_uses": 3}],
}
IN_HEADERS = {"user_profile_id", "workspace_id"}
NOT_IN_A_BATCH = {"speed", "stream"}


def compare(world: World, arguments: dict[str, Any], live: dict[str, Any] | None = None) -> bytes:
    """Sends a request live and in a batch; fails unless both carry the same bytes, which it returns."""
    with suppress(anthropic.APIStatusError):
        world.client(max_retries=0).messages.create(timeout=60, **(live or arguments))
    router = world.router()
    router.submit(arguments, latency=BULK)
    assert router.flush() == 1

    (sent,), (posted,) = world.bodies("messages.create"), world.bodies("batches.create")
    (item,) = json.loads(posted)["requests"]
    assert item["params"] == json.loads(sent)
    assert posted == b'{"requests":[{"custom_id":"%s","params":%s}]}' % (item["custom_id"].encode(), sent)
    return sent


def test_every_parameter_of_the_sdk_is_in_these_tests() -> None:
    """A new one of a later SDK has to be thought of."""
    known = (
        MessageCreateParamsNonStreaming.__required_keys__ | MessageCreateParamsNonStreaming.__optional_keys__
    )

    assert known == PARAMETERS.keys() | IN_HEADERS | NOT_IN_A_BATCH


def test_all_parameters_together(world: World) -> None:
    """In one request."""
    compare(world, PARAMETERS)


@pytest.mark.parametrize("name", sorted(PARAMETERS.keys() - {"max_tokens", "messages", "model"}))
def test_each_parameter_alone(world: World, name: str) -> None:
    """Beside those that are required."""
    body = compare(world, ask(**{name: PARAMETERS[name]}))

    assert json.loads(body)[name] == PARAMETERS[name]


def test_extra_body_is_merged(world: World) -> None:
    """What the SDK does not know, and what it overrides."""
    body = compare(
        world, ask(extra_body={"temperature": 0.5, "max_tokens": 7, "new": {"a": [1, None, 2.50]}})
    )

    assert json.loads(body)["max_tokens"] == 7
    assert b'"new":{"a":[1,null,2.5]}' in body


def test_parameters_in_any_order(world: World) -> None:
    """The SDK has an order of its own."""
    compare(world, dict(reversed(PARAMETERS.items())))


def test_what_is_as_good_as_absent_stays_away(world: World) -> None:
    """`omit` and `not_given` are not sent."""
    arguments = ask(system=anthropic.omit, tools=anthropic.NOT_GIVEN)

    body = compare(world, arguments)
    assert set(json.loads(body)) == {"model", "max_tokens", "messages"}


def test_objects_of_the_sdk(world: World) -> None:
    """An answer goes into the next request as it came."""
    blocks = [TextBlock(type="text", text="so far", citations=None)]
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": blocks}]

    compare(world, ask(messages=[*messages, {"role": "user", "content": "go on"}]))


def test_iterators_and_files(world: World, tmp_path: Path) -> None:
    """They can be read once; both ways read them."""
    picture = tmp_path / "a.png"
    picture.write_bytes(b"\x89PNG")

    def arguments() -> dict[str, Any]:
        source = {"type": "base64", "media_type": "image/png", "data": picture}

        def messages() -> Iterator[dict[str, Any]]:
            yield {"role": "user", "content": [{"type": "image", "source": source}]}

        return {"model": MODEL, "max_tokens": 5, "messages": messages()}

    body = compare(world, arguments(), arguments())
    assert _IMAGE.encode() in body


def test_a_real_time_submit_sends_what_a_live_call_sends(world: World) -> None:
    """Also of iterators, which are not used up by the checks."""
    client = world.client()
    arguments = {name: PARAMETERS[name] for name in ("model", "messages", "system", "tools", "thinking")}
    arguments["max_tokens"] = 4_000
    client.messages.create(**arguments)
    router = world.router(client=client)
    router.submit({**arguments, "messages": iter(arguments["messages"])}, latency="real-time").result(10)
    for future in router.submit_many(
        [{**arguments, "messages": iter(arguments["messages"])} for _ in "ab"], latency="real-time"
    ):
        future.result(10)

    assert len(set(world.bodies("messages.create"))) == 1
    assert len(world.bodies("messages.create")) == 4


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"stream": True}, "stream"),
        ({"speed": "fast"}, "speed"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"extra_body": {"fallbacks": []}}, "fallbacks"),
        ({"extra_body": {"thread": {"id": "t"}}}, "thread"),
        ({"extra_query": {"a": "b"}}, "extra_query"),
        ({"timeout": 5}, "timeout"),
        ({"max_tokens": "100"}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"temperature": 0.5}, "temperature"),
        ({"betas": ["a"]}, "betas"),
        ({"max_token": 5}, "max_token"),
        ({"system": float("nan")}, "system"),
        ({"metadata": {"user_id": object()}}, "metadata"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages"),
    ],
)
def test_what_cannot_be_in_a_batch_is_refused_at_submit(
    world: World, changes: dict[str, Any], field: str
) -> None:
    """Naming the field, and nothing is stored."""
    router = world.router(worker=False)
    with pytest.raises(InvalidRequestError) as caught:
        router.submit(ask(**changes), latency="daily")

    assert caught.value.field.partition(".")[0] == field
    assert router.status().queued == 0
