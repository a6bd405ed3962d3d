"""A stored message as the SDK's answer: whatever way it was asked for, it is the same message."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import anthropic
import pydantic
import pytest
from anthropic.types import TextBlock
from hypothesis import given
from hypothesis import strategies as st

import llmrouter
from llmrouter.claude.replies import stream_events
from support.requests import ask
from support.wrapping import Wrapped, message_of, succeeded, wrapped

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.timeout(60)

DAILY = llmrouter.tag("daily")
CITATION = {
    "type": "char_location",
    "cited_text": "é",
    "document_index": 0,
    "document_title": None,
    "start_char_index": 0,
    "end_char_index": 1,
    "file_id": None,
}
SEARCHED = {"type": "web_search_result", "title": "t", "url": "u", "encrypted_content": "e", "page_age": None}
BLOCKS: dict[str, dict[str, Any]] = {
    "text": {"type": "text", "text": "häl\nlo \u2028 😀", "citations": None},
    "no text": {"type": "text", "text": "", "citations": None},
    "cited": {"type": "text", "text": "said", "citations": [CITATION, CITATION]},
    "thinking": {"type": "thinking", "thinking": "hm", "signature": "s1g"},
    "redacted": {"type": "redacted_thinking", "data": "d"},
    "tool": {"type": "tool_use", "id": "t", "name": "n", "input": {"é": [1, {"b": None}]}, "caller": None},
    "no input": {"type": "tool_use", "id": "t", "name": "n", "input": {}, "caller": None},
    "server tool": {
        "type": "server_tool_use",
        "id": "t",
        "name": "web_search",
        "input": {"query": "q"},
        "caller": None,
    },
    "result": {"type": "web_search_tool_result", "tool_use_id": "t", "content": [SEARCHED], "caller": None},
}
ENDS: dict[str, dict[str, Any]] = {
    "stop sequence": {"stop_reason": "stop_sequence", "stop_sequence": "END"},
    "refusal": {"stop_reason": "refusal", "stop_details": {"type": "refusal", "category": "cyber"}},
    "container": {"container": {"id": "c", "expires_at": "2026-11-21T00:00:00Z"}},
    "usage": {
        "usage": {
            "input_tokens": 1,
            "output_tokens": 2,
            "cache_creation_input_tokens": 3,
            "cache_read_input_tokens": 4,
            "service_tier": "batch",
            "server_tool_use": {"web_search_requests": 5},
        }
    },
}
MESSAGES = [
    *(message_of(name, content=[block]) for name, block in BLOCKS.items()),
    *(message_of(name, **end) for name, end in ENDS.items()),
    message_of("all", content=list(BLOCKS.values())),
    message_of("none", content=[]),
]


@pytest.fixture(params=MESSAGES, ids=lambda message: message["id"])
def calls(request: pytest.FixtureRequest) -> Iterator[Wrapped]:
    """A wrapped client whose tagged calls are answered with a message."""
    with wrapped(streaming="replay") as one:
        one.router.answer = lambda: succeeded(request.param)
        yield one


@pytest.fixture
def plain() -> Iterator[Wrapped]:
    """The same for a plain message."""
    with wrapped(streaming="replay") as one:
        yield one


def plainly(message: Any) -> Any:
    """A message as plain data, without what is empty."""
    return without_empty(message.to_dict(mode="json"))


def without_empty(value: Any) -> Any:
    """Without nulls and empty lists in objects."""
    if isinstance(value, dict):
        return {key: without_empty(inner) for key, inner in value.items() if inner not in (None, [])}
    return [without_empty(inner) for inner in value] if isinstance(value, list) else value


@pytest.mark.parametrize("beta", [False, True])
def test_a_replayed_stream_gives_the_message(calls: Wrapped, beta: bool) -> None:
    """Of the beta API, too."""
    client = calls.sync.beta if beta else calls.sync
    whole = client.messages.create(**ask(), extra_headers=DAILY)
    with client.messages.stream(**ask(), extra_headers=DAILY) as stream:
        streamed = stream.get_final_message()

    assert plainly(streamed) == plainly(whole)
    assert streamed.usage.output_tokens == whole.usage.output_tokens


def test_a_replayed_stream_gives_the_message_in_asyncio_code(calls: Wrapped) -> None:
    """With the same events."""
    client = calls.wrap(calls.client(anthropic.AsyncAnthropic))

    async def main() -> tuple[Any, Any, list[str]]:
        whole = await client.messages.create(**ask(), extra_headers=DAILY)
        async with client.messages.stream(**ask(), extra_headers=DAILY) as stream:
            streamed = await stream.get_final_message()
        events = await client.messages.create(**ask(), extra_headers=DAILY, stream=True)
        return whole, streamed, [event.type async for event in events]

    whole, streamed, types = asyncio.run(main())
    assert plainly(streamed) == plainly(whole)
    with calls.sync.messages.create(**ask(), extra_headers=DAILY, stream=True) as events:
        assert [event.type for event in events] == types


def test_the_events_come_in_the_order_of_the_api(plain: Wrapped) -> None:
    """Each block begins, grows and ends before the next one begins."""
    content = [BLOCKS["thinking"], BLOCKS["cited"], BLOCKS["result"]]
    plain.router.answer = lambda: succeeded(message_of(content=content))
    with plain.sync.messages.create(**ask(), extra_headers=DAILY, stream=True) as events:
        told = [(event.type, getattr(event, "index", None)) for event in events]

    assert told == [
        ("message_start", None),
        ("content_block_start", 0),
        ("content_block_delta", 0),
        ("content_block_delta", 0),
        ("content_block_stop", 0),
        ("content_block_start", 1),
        ("content_block_delta", 1),
        ("content_block_delta", 1),
        ("content_block_delta", 1),
        ("content_block_stop", 1),
        ("content_block_start", 2),
        ("content_block_stop", 2),
        ("message_delta", None),
        ("message_stop", None),
    ]


def test_what_is_told_piece_by_piece_begins_empty(plain: Wrapped) -> None:
    """As readers of events expect it: text, thoughts and what a tool is given."""
    content = [BLOCKS["text"], BLOCKS["thinking"], BLOCKS["tool"]]
    plain.router.answer = lambda: succeeded(message_of(content=content))
    with plain.sync.messages.create(**ask(), extra_headers=DAILY, stream=True) as events:
        told = [event.to_dict() for event in events]

    begun = [event["content_block"] for event in told if event["type"] == "content_block_start"]
    added = [event["delta"]["type"] for event in told if event["type"] == "content_block_delta"]
    assert (begun[0]["text"], begun[1]["thinking"], begun[2]["input"]) == ("", "", {})
    assert added == ["text_delta", "thinking_delta", "signature_delta", "input_json_delta"]
    assert told[0]["message"]["content"] == []
    assert told[0]["message"]["stop_reason"] is None


@given(st.text())
def test_no_text_breaks_an_event(text: str) -> None:
    """Whatever line ends it has: each event is its name, its data and an empty line."""
    for event in stream_events(message_of(content=[{"type": "text", "text": text}])):
        lines = event.decode().splitlines()
        assert [line.partition(":")[0] for line in lines] == ["event", "data", ""]


def test_an_unknown_block_comes_whole(plain: Wrapped) -> None:
    """The API may be newer than the SDK."""
    block = {"type": "hologram", "text": "t", "input": {"a": 1}}
    plain.router.answer = lambda: succeeded(message_of(content=[block]))
    with plain.sync.messages.stream(**ask(), extra_headers=DAILY) as stream:
        (found,) = stream.get_final_message().content

    assert found.to_dict() == block


class Answer(pydantic.BaseModel):
    """What is asked for."""

    n: int


def test_structured_output_is_parsed(plain: Wrapped) -> None:
    """By `parse`, and by a replayed `stream`."""
    plain.router.answer = lambda: succeeded(message_of(content=[{"type": "text", "text": '{"n": 3}'}]))
    arguments = ask(output_format=Answer, extra_headers=DAILY)

    assert plain.sync.messages.parse(**arguments).parsed_output == Answer(n=3)
    with plain.sync.messages.stream(**arguments) as stream:
        assert stream.get_final_message().parsed_output == Answer(n=3)
    assert plain.sync.beta.messages.parse(**arguments).parsed_output == Answer(n=3)
    assert plain.went == (0, 3)


def test_raw_and_streaming_responses(plain: Wrapped) -> None:
    """As `APIResponse` gives them: parsed, as JSON, as text, as bytes and by line."""
    raw = plain.sync.messages.with_raw_response.create(**ask(), extra_headers=DAILY)
    assert raw.parse().id == "msg_stored"
    assert raw.json()["id"] == "msg_stored"
    assert raw.is_closed
    with plain.sync.messages.with_streaming_response.create(**ask(), extra_headers=DAILY) as streaming:
        assert b"".join(streaming.iter_bytes()) == raw.read()
    with plain.sync.messages.with_streaming_response.create(**ask(), extra_headers=DAILY) as streaming:
        assert streaming.parse().content[0].text == "stored"
    replayed = plain.sync.messages.with_raw_response.create(**ask(), extra_headers=DAILY, stream=True)
    assert [event.type for event in replayed.parse()][-1] == "message_stop"


def test_raw_and_streaming_responses_in_asyncio_code(plain: Wrapped) -> None:
    """The asynchronous kind."""
    client = plain.wrap(plain.client(anthropic.AsyncAnthropic))

    async def main() -> None:
        raw = await client.messages.with_raw_response.create(**ask(), extra_headers=DAILY)
        assert isinstance(raw, anthropic.AsyncAPIResponse)
        assert (await raw.parse()).id == "msg_stored"
        asked = client.messages.with_streaming_response.create(**ask(), extra_headers=DAILY)
        async with asked as streaming:
            assert (await streaming.json())["id"] == "msg_stored"
        message = await client.messages.create(**ask(), extra_headers=DAILY)
        assert isinstance(message.content[0], TextBlock)

    asyncio.run(main())


def test_the_tool_runner_runs_through_batches(plain: Wrapped) -> None:
    """Call by call, each with the results of the tools so far."""
    asked = []

    @anthropic.beta_tool
    def add(left: int, right: int) -> str:
        """Adds two numbers."""
        asked.append((left, right))
        return str(left + right)

    use = {"type": "tool_use", "id": "toolu_1", "name": "add", "input": {"left": 1, "right": 2}}
    answers = iter(
        [
            message_of("use", content=[use], stop_reason="tool_use"),
            message_of("end", content=[{"type": "text", "text": "3"}]),
        ]
    )
    plain.router.answer = lambda: succeeded(next(answers))
    with llmrouter.latency("daily", run="nightly"):
        final = plain.sync.beta.messages.tool_runner(**ask(), tools=[add]).until_done()

    assert final.content[0].text == "3"
    assert asked == [(1, 2)]
    assert plain.went == (0, 2)
    second = plain.router.submitted[1]["request"]
    assert second["messages"][-1]["content"][0]["content"] == "3"
    assert len(set(plain.router.keys)) == 2
