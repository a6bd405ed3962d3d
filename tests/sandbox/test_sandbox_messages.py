"""Live calls: messages, streams, token counts, and what is refused at once."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

import anthropic
import httpx2
import pytest
from sandbox_requests import MODEL, params

from llmrouter.sandbox import Limits, Reply, Sandbox, params_hash

if TYPE_CHECKING:
    from anthropic.types import Message


def test_a_message_is_answered_and_says_which_request_it_answers(client):
    """The made-up answer begins with the hash of the parameters, so a mix-up shows."""
    message = client.messages.create(**params("what is the depth?"))
    assert message.type == "message"
    assert message.model == MODEL
    assert message.stop_reason == "end_turn"
    assert message.content[0].text.startswith(f"[{params_hash(params('what is the depth?'))[:12]}]")
    assert message.usage.service_tier == "standard"


def test_usage_is_about_four_characters_a_token(client):
    message = client.messages.create(**params("x" * 400, system="y" * 40))
    assert message.usage.input_tokens == 110
    assert message.usage.output_tokens == -(-len(message.content[0].text) // 4)
    assert message.usage.cache_creation_input_tokens == 0
    assert message.usage.cache_read_input_tokens == 0
    assert message.usage.cache_creation.ephemeral_1h_input_tokens == 0


def test_output_is_bounded_by_max_tokens(client):
    message = client.messages.create(**{**params(), "max_tokens": 5})
    assert message.usage.output_tokens == 5
    assert len(message.content[0].text) == 20
    assert message.stop_reason == "max_tokens"


def test_max_tokens_zero_is_a_live_call_without_output(client):
    message = client.messages.create(**{**params(), "max_tokens": 0})
    assert message.content == []
    assert message.usage.output_tokens == 0


def test_what_is_marked_for_the_cache_is_written(client):
    """Each time, for as long as it says; what is too short is not, and is no error."""
    mark = {"type": "ephemeral"}
    hour = {**mark, "ttl": "1h"}

    def block(size, **changes):
        return {"type": "text", "text": "y" * size, **changes}

    def written(**changes):
        usage = client.messages.create(**params("x" * 400, **changes)).usage
        created = usage.cache_creation
        assert (
            created.ephemeral_5m_input_tokens + created.ephemeral_1h_input_tokens
            == usage.cache_creation_input_tokens
        )
        assert usage.cache_read_input_tokens == 0
        return created.ephemeral_5m_input_tokens, created.ephemeral_1h_input_tokens, usage.input_tokens

    for _ in range(2):
        assert written(system=[block(8_000, cache_control=mark), block(400)]) == (2_000, 0, 200)
    assert written(system=[block(8_000, cache_control=hour), block(400, cache_control=mark)]) == (
        100,
        2_000,
        100,
    )
    assert written(system=[block(8_000)], cache_control=hour) == (0, 2_100, 0)
    assert written(system=[block(4_000, cache_control=mark)]) == (0, 0, 1_100)


def test_a_stream_is_the_same_answer_in_pieces(start):
    """Streamed and not, the same request gets the same text, and its hash in the books is the same."""
    sandbox, client = start()
    whole = client.messages.create(**params())
    with client.messages.stream(**params()) as stream:
        pieces = list(stream.text_stream)
        final = stream.get_final_message()
    assert len(pieces) > 1
    assert "".join(pieces) == whole.content[0].text == final.content[0].text
    assert final.stop_reason == whole.stop_reason
    assert final.usage.output_tokens == whole.usage.output_tokens
    assert sandbox.books.count_charges() == {params_hash(params()): 2}


def test_the_events_of_a_stream_stand_in_the_api_s_order(client):
    events = [event.type for event in client.messages.create(**params(), stream=True)]
    deltas = events.count("content_block_delta")
    assert deltas > 1
    assert events == [
        "message_start",
        "content_block_start",
        *["content_block_delta"] * deltas,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]


def test_an_asynchronous_client_streams_too(sandbox, server):
    async def collect() -> Message:
        async with (
            anthropic.AsyncAnthropic(base_url=server.base_url, api_key="any", max_retries=0) as client,
            client.messages.stream(**params()) as stream,
        ):
            text = "".join([piece async for piece in stream.text_stream])
            final = await stream.get_final_message()
            assert final.content[0].text == text
            return final

    assert asyncio.run(collect()).usage.output_tokens > 0
    assert sandbox.books.calls["messages.create"] == 1


def test_the_answer_can_be_given_by_a_function(start):
    """A `reply` function sees the parsed parameters and returns a text, or a Reply with a stop reason."""

    def reply(given):
        text = given["messages"][0]["content"]
        return Reply(text="No.", stop_reason="refusal") if text == "bad" else f"echo {text} \u2028"

    _, client = start(reply=reply)
    assert client.messages.create(**params("hi")).content[0].text == "echo hi \u2028"
    assert client.messages.create(**params("bad")).stop_reason == "refusal"


def test_a_function_can_answer_with_tool_use(start):
    """In a whole answer and in a stream, charged for its JSON."""
    wanted = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Zürich" * 10}}
    _, client = start(reply=lambda _: Reply(text="", stop_reason="tool_use", blocks=[wanted]))

    whole = client.messages.create(**params())
    with client.messages.stream(**params()) as stream:
        streamed = stream.get_final_message()
    for message in (whole, streamed):
        assert message.stop_reason == "tool_use"
        assert message.content[0].input == wanted["input"]
        assert message.usage.output_tokens > 10


def test_count_tokens_counts_what_a_message_would_be_charged(client):
    counted = client.messages.count_tokens(model=MODEL, messages=params("x" * 100)["messages"])
    assert counted.input_tokens == client.messages.create(**params("x" * 100)).usage.input_tokens


def test_count_tokens_needs_messages(client):
    with pytest.raises(anthropic.BadRequestError, match="messages"):
        client.messages.count_tokens(model=MODEL, messages=[])


def test_every_answer_has_a_request_id_and_rate_limit_headers(client):
    raw = client.messages.with_raw_response.create(**params())
    assert raw.headers["request-id"].startswith("req_")
    assert raw.headers["anthropic-organization-id"]
    for name in ("requests", "tokens", "input-tokens", "output-tokens"):
        assert int(raw.headers[f"anthropic-ratelimit-{name}-limit"]) > 0
        assert int(raw.headers[f"anthropic-ratelimit-{name}-remaining"]) > 0
        assert raw.headers[f"anthropic-ratelimit-{name}-reset"].endswith("Z")


def test_a_refusal_is_the_api_s_envelope(client):
    with pytest.raises(anthropic.BadRequestError) as refused:
        client.messages.create(**params(), extra_body={"foo": 1})
    body = refused.value.body
    assert body["type"] == "error"
    assert body["error"] == {
        "type": "invalid_request_error",
        "message": "foo: Extra inputs are not permitted",
    }
    assert body["request_id"] == refused.value.request_id
    assert refused.value.type == "invalid_request_error"


def test_nothing_refused_is_charged(sandbox, client):
    with pytest.raises(anthropic.BadRequestError):
        client.messages.create(**params(), extra_body={"foo": 1})
    assert sandbox.books.charges == ()
    assert sandbox.books.calls == {"messages.create": 1}


def test_without_a_credential_there_is_no_answer(http):
    answer = http.post("/v1/messages", json=params())
    assert answer.status_code == 401
    assert answer.json()["error"]["type"] == "authentication_error"


@pytest.mark.parametrize("headers", [{"x-api-key": "k"}, {"authorization": "Bearer k"}])
def test_a_credential_may_come_in_either_header(http, headers):
    assert http.post("/v1/messages", json=params(), headers=headers).status_code == 200


def test_only_the_given_keys_are_accepted():
    sandbox = Sandbox(api_keys={"right"})
    with sandbox.serve() as server, httpx2.Client(base_url=server.base_url) as http:
        assert server.api_key == "right"
        version = {"anthropic-version": "2023-06-01"}
        for key, status in (("right", 200), ("wrong", 401)):
            answer = http.get("/v1/messages/batches", headers={**version, "x-api-key": key})
            assert answer.status_code == status


def test_a_version_is_required(http):
    http.headers.pop("anthropic-version")
    answer = http.post("/v1/messages", json=params(), headers={"x-api-key": "k"})
    assert answer.status_code == 400
    assert "anthropic-version" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/v1/nothing", 404), ("DELETE", "/v1/messages", 405)]
)
def test_unknown_paths_and_methods_get_an_envelope_too(http, method, path, status):
    answer = http.request(method, path, headers={"x-api-key": "k"})
    assert answer.status_code == status
    assert answer.json()["type"] == "error"


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"max_tokens": NaN}', b"\xff"])
def test_a_body_that_is_no_json_object_is_refused(http, body):
    answer = http.post("/v1/messages", content=body, headers={"x-api-key": "k"})
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_the_rate_limit_counts_on_the_sandbox_s_clock(start):
    """Requests above the limit get 429 with retry-after, and are let in when the clock has moved on."""
    sandbox, client = start(requests_per_minute=2)
    first = client.messages.with_raw_response.create(**params())
    assert first.headers["anthropic-ratelimit-requests-limit"] == "2"
    assert first.headers["anthropic-ratelimit-requests-remaining"] == "1"
    client.messages.create(**params())
    with pytest.raises(anthropic.RateLimitError) as refused:
        client.messages.create(**params())
    assert refused.value.response.headers["retry-after"] == "30"
    client.messages.batches.list()
    sandbox.clock.advance(timedelta(seconds=30))
    client.messages.create(**params())


def test_what_only_a_batch_carries_is_refused(client):
    """Of the beta for long answers no live call knows; without being told of it one is refused too."""
    long = {**params(), "max_tokens": 128_001}
    for headers in ({}, {"anthropic-beta": "output-300k-2026-03-24"}):
        with pytest.raises(anthropic.BadRequestError, match="max_tokens: 128001 > 128000"):
            client.messages.create(**long, stream=True, extra_headers=headers)


@pytest.mark.parametrize(
    ("limits", "name"),
    [
        ({"input_tokens_per_minute": 60}, "input-tokens"),
        ({"output_tokens_per_minute": 60}, "output-tokens"),
    ],
)
def test_tokens_are_limited_too(start, limits, name):
    """A call is let in while there is one left; what it took beyond is waited for."""
    sandbox, client = start(limits=Limits(**limits), reply=lambda _: "x" * 400)
    tokens = {**params("y" * 400), "max_tokens": 100}
    headers = client.messages.with_raw_response.create(**tokens).headers
    assert headers[f"anthropic-ratelimit-{name}-limit"] == "60"
    assert headers[f"anthropic-ratelimit-{name}-remaining"] == "0"
    with pytest.raises(anthropic.RateLimitError, match=name.replace("-", " ")) as refused:
        client.messages.create(**tokens)
    assert refused.value.response.headers["retry-after"] == "41"
    sandbox.clock.advance(timedelta(seconds=40))
    with pytest.raises(anthropic.RateLimitError):
        client.messages.create(**tokens)
    sandbox.clock.advance(timedelta(seconds=1))
    client.messages.create(**tokens)
    assert len(sandbox.books.charges) == 2
    client.messages.batches.create(requests=[{"custom_id": "a", "params": tokens}])


def test_the_headers_tell_what_a_call_took(client):
    """Of requests and of tokens, by the sandbox's clock."""
    first, second = (client.messages.with_raw_response.create(**params("x" * 400)) for _ in range(2))
    left = {
        name: [int(raw.headers[f"anthropic-ratelimit-{name}-remaining"]) for raw in (first, second)]
        for name in ("requests", "input-tokens", "output-tokens", "tokens")
    }
    usage = second.parse().usage
    assert {name: before - after for name, (before, after) in left.items()} == {
        "requests": 1,
        "input-tokens": usage.input_tokens,
        "output-tokens": usage.output_tokens,
        "tokens": usage.input_tokens + usage.output_tokens,
    }


def test_a_refused_call_takes_no_tokens(start):
    """Of the one kind, when the other is used up."""
    limits = Limits(input_tokens_per_minute=1000, output_tokens_per_minute=60)
    _, client = start(limits=limits, reply=lambda _: "x" * 400)
    tokens = {**params("y" * 400), "max_tokens": 100}
    client.messages.create(**tokens)
    for _ in range(3):
        with pytest.raises(anthropic.RateLimitError, match="output tokens") as refused:
            client.messages.create(**tokens)
        assert refused.value.response.headers["anthropic-ratelimit-input-tokens-remaining"] == "900"
