"""A live call of the router's: the stored bytes out, a result line back, or why there is none."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import anthropic
import httpx2
import pytest
from claude_support import MODEL, SECRET, client_with, error_body, message_body, request

from llmrouter.claude.answers import to_error, to_message
from llmrouter.claude.lanes import Lanes
from llmrouter.claude.live_api import SdkLiveApi
from llmrouter.claude.streaming import STREAM_ABOVE_TOKENS
from llmrouter.domain.live import LiveCallError, LiveReply
from llmrouter.domain.rates import Work
from llmrouter.domain.requests import OutcomeKind

Handler = Callable[[httpx2.Request], httpx2.Response]

FLAGS = ("limited", "spent", "credential", "unclear")
BODY = json.dumps(request()).encode()
LIMITS = {
    "anthropic-ratelimit-requests-limit": "50",
    "anthropic-ratelimit-requests-remaining": "49",
    "anthropic-ratelimit-requests-reset": "2026-11-20T12:00:00Z",
}
OWN_LIMIT = "You have reached your specified API usage limits. You will regain access on 2026-12-01."
DECEMBER = datetime(2026, 12, 1, tzinfo=UTC)


class Bench:
    """The adapter of a client that answers from a function, and what was sent."""

    def __init__(self, handler: Handler, **options: Any) -> None:
        self.wire: list[httpx2.Request] = []

        def note(sent: httpx2.Request) -> httpx2.Response:
            self.wire.append(sent)
            return handler(sent)

        self.client = client_with(note, **options)
        self.lanes = Lanes(self.client, SECRET)
        self.api = SdkLiveApi(self.client, self.lanes)

    def call(self, body: bytes = BODY, headers: Any = None) -> LiveReply:
        return self.api.call(self.lanes.lane_for(headers or {}), "req_1", body)

    def fail(self, body: bytes = BODY) -> LiveCallError:
        with pytest.raises(LiveCallError) as caught:
            self.call(body)
        return caught.value


def answering(status: int, **response: Any) -> Bench:
    return Bench(lambda _: httpx2.Response(status, **response))


def flags(error: LiveCallError) -> set[str]:
    return {name for name in FLAGS if getattr(error, name)}


def test_the_stored_bytes_are_posted_once_with_the_headers_of_the_lane() -> None:
    """Byte for byte, to the client's own address; the client's own betas do not get in."""
    bench = Bench(
        lambda _: httpx2.Response(200, json=message_body()),
        base_url="http://gateway/proxy",
        default_headers={"anthropic-beta": "own"},
    )
    body = b'{"max_tokens":1, "model" : "m","x_of_extra_body":"\xe2\x80\xa8","messages":[]}'

    bench.call(body, {"anthropic-beta": "b,a", "x-mine": "1"})

    (sent,) = bench.wire
    assert (sent.method, str(sent.url)) == ("POST", "http://gateway/proxy/v1/messages")
    assert sent.content == body
    assert sent.headers["content-length"] == str(len(body))
    assert (sent.headers["anthropic-beta"], sent.headers["x-mine"]) == ("a,b", "1")
    assert sent.headers["x-stainless-retry-count"] == "0"


def test_real_time_calls_that_keep_the_pool_busy_are_waited_for() -> None:
    """An answer may take as long as the client allows, a connection may not."""
    bench = Bench(lambda _: httpx2.Response(200, json=message_body()), timeout=700.0)

    bench.call()

    assert bench.wire[0].extensions["timeout"] == {"connect": 10, "read": 700, "write": 10, "pool": None}


def test_the_answer_becomes_a_result_line_byte_for_byte() -> None:
    """That of a batch, so that its message is read as any other."""
    raw = json.dumps(
        message_body(
            content=[{"type": "text", "text": "é \u2028 \\n \x7f"}, {"type": "not known yet", "a": 1.50}]
        ),
        ensure_ascii=False,
    ).encode()
    reply = answering(200, content=b"\n" + raw + b"\r\n", headers={"content-type": "application/json"}).call()

    assert reply.kind is OutcomeKind.SUCCEEDED
    assert reply.raw == b'{"custom_id": "req_1", "result": {"type": "succeeded", "message": %s}}' % raw
    assert to_message(reply.raw).to_dict(warnings=False) == json.loads(raw)


def test_an_indented_answer_is_one_line_too() -> None:
    """A line end of JSON stands between tokens only."""
    text = json.dumps(message_body(content=[{"type": "text", "text": "a\n\rb"}]), indent=2).replace(
        "\n", "\r\n"
    )
    reply = answering(200, content=text.encode()).call()

    assert b"\n" not in reply.raw
    assert b"\r" not in reply.raw
    assert to_message(reply.raw).to_dict() == json.loads(text)


def test_a_reply_tells_what_it_took() -> None:
    """Tokens, price and time; and what the answer says of the limits."""
    usage = {"input_tokens": 1000, "cache_creation_input_tokens": 10, "output_tokens": 500}
    reply = answering(200, json=message_body(usage=usage), headers=LIMITS).call()

    assert reply.work == Work(requests=1, input_tokens=1010, output_tokens=500)
    assert reply.paid_usd == Decimal("0.0035125")
    assert reply.limits is not None
    assert reply.limits.requests is not None
    assert reply.limits.requests.remaining == 49
    assert timedelta(0) < reply.took < timedelta(seconds=30)


@pytest.mark.parametrize("changes", [{"model": "unheard-of"}, {"usage": None}, {"usage": "?"}], ids=repr)
def test_an_answer_whose_price_is_not_known_is_an_answer(changes: dict[str, Any]) -> None:
    """Its price is not taken to be nothing."""
    reply = answering(200, json=message_body(**changes)).call()

    assert reply.kind is OutcomeKind.SUCCEEDED
    assert (reply.paid_usd, reply.limits) == (None, None)


@pytest.mark.parametrize(
    "content",
    [
        b"<html>hello</html>",
        b"",
        b"null",
        b"[]",
        b'{"type": "error", "error": {"type": "api_error", "message": "no"}}',
        json.dumps(message_body()).encode()[:-1],
        json.dumps(message_body()).encode() + b', "x": 1}',
        b"\xef\xbb\xbf" + json.dumps(message_body()).encode(),
        json.dumps(message_body()).encode("utf-16"),
    ],
)
def test_an_answer_that_is_no_message_may_have_been_paid_for(content: bytes) -> None:
    """Such as a proxy's."""
    error = answering(200, content=content, headers=LIMITS).fail()

    assert flags(error) == {"unclear"}
    assert error.limits is not None
    assert error.brief == "the live call's answer is no message"


@pytest.mark.parametrize(
    ("status", "error_type", "exception"),
    [
        (400, "invalid_request_error", anthropic.BadRequestError),
        (404, "not_found_error", anthropic.NotFoundError),
        (413, "request_too_large", anthropic.RequestTooLargeError),
        (422, "invalid_request_error", anthropic.BadRequestError),
    ],
)
def test_a_request_that_is_refused_has_its_outcome(
    status: int, error_type: str, exception: type[Exception]
) -> None:
    """With the API's own error, as a batch has it; nothing was charged."""
    bench = answering(status, json=error_body(error_type, "model: m"), headers=LIMITS)
    reply = bench.call()
    error = to_error(reply.kind, reply.raw, "req_1", 1)

    assert json.loads(reply.raw) == {
        "custom_id": "req_1",
        "result": {"type": "errored", "error": error_body(error_type, "model: m")},
    }
    assert (reply.kind, reply.paid_usd, reply.work) == (OutcomeKind.ERRORED, Decimal(0), Work(requests=1))
    assert reply.limits is not None
    assert isinstance(error, exception)
    assert isinstance(error, anthropic.APIStatusError)
    assert (error.api_message, error.request_id) == ("model: m", "req_9")
    assert len(bench.wire) == 1


@pytest.mark.parametrize(
    "text", ["messages.0.content: got 'credit balance'", "tools: usage limit is disabled"]
)
def test_a_refusal_that_quotes_the_request_is_no_spend_limit(text: str) -> None:
    """A text about a field says what is wrong with it."""
    reply = answering(400, json=error_body("invalid_request_error", text)).call()

    assert reply.kind is OutcomeKind.ERRORED


def test_the_api_s_id_of_a_refusal_may_stand_in_a_header_alone() -> None:
    """It is kept, for a report to the API's support."""
    body = {"error": {"type": "invalid_request_error", "message": "no"}}
    reply = answering(400, json=body, headers={"request-id": "req_of_api"}).call()

    assert json.loads(reply.raw)["result"]["error"] == {"type": "error", "request_id": "req_of_api", **body}


@pytest.mark.parametrize(
    ("status", "text", "expected"),
    [
        (429, "slow down", {"limited"}),
        (529, "overloaded", {"limited"}),
        (402, "billing", {"spent"}),
        (400, OWN_LIMIT, {"spent"}),
        (403, OWN_LIMIT, {"spent"}),
        (401, "who?", {"credential"}),
        (403, "no", {"credential"}),
        (400, "This organization has been disabled.", {"credential"}),
        (409, "conflict", set()),
        (500, "oops", set()),
        (502, "oops", set()),
        (503, "oops", set()),
        (504, "too long", {"unclear"}),
        (408, "too long", {"unclear"}),
        (405, "no", set()),
    ],
)
def test_the_api_s_word_for_why_there_is_no_answer(status: int, text: str, expected: set[str]) -> None:
    """It charges for no call that it answers with an error; what ran out of time may have been done."""
    bench = answering(
        status,
        json=error_body("some_error", text),
        headers={"retry-after": "7", "x-should-retry": "true", **LIMITS},
    )
    error = bench.fail()

    assert flags(error) == expected
    assert (error.status, error.retry_after) == (status, timedelta(seconds=7))
    assert error.regain_at == (DECEMBER if text == OWN_LIMIT else None)
    assert error.limits is not None
    assert error.brief == f"the API answered {status}"
    assert len(bench.wire) == 1


@pytest.mark.parametrize(
    ("status", "error_type", "expected"),
    [(500, "overloaded_error", {"limited"}), (500, "timeout_error", {"unclear"}), (404, "other", set())],
)
def test_the_type_of_an_error_counts_too(status: int, error_type: str, expected: set[str]) -> None:
    """Where the status alone does not tell."""
    assert flags(answering(status, json=error_body(error_type)).fail()) == expected


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, set()),
        (401, {"credential"}),
        (404, set()),
        (413, set()),
        (429, {"limited"}),
        (500, {"unclear"}),
        (502, {"unclear"}),
        (503, set()),
        (504, {"unclear"}),
        (524, {"unclear"}),
        (529, {"limited"}),
    ],
)
def test_a_gateway_s_own_error_is_not_the_request_s(status: int, expected: set[str]) -> None:
    """It may be gone at the next call; and it may have lost the API's answer."""
    error = answering(status, text="<html>gateway</html>").fail()

    assert flags(error) == expected
    assert (error.status, error.limits) == (status, None)


@pytest.mark.parametrize(("status", "expected"), [(302, set()), (307, set()), (303, {"unclear"})])
def test_no_redirect_is_followed(status: int, expected: set[str]) -> None:
    """A 303 says that the call was dealt with."""
    bench = answering(status, headers={"location": "http://elsewhere.invalid/"})
    error = bench.fail()

    assert flags(error) == expected
    assert status == 303 or "base URL" in str(error)
    assert len(bench.wire) == 1


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "70", "retry-after": "1"}, 0.07),
        ({"retry-after-ms": "soon", "retry-after": "1"}, 1),
        ({"date": "Tue, 01 Dec 2026 00:00:00 GMT", "retry-after": "Tue, 01 Dec 2026 00:00:09 GMT"}, 9),
        ({"retry-after": "-3"}, 0),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "1e300"}, None),
        ({"retry-after": "later"}, None),
    ],
)
def test_how_long_to_wait(headers: dict[str, str], seconds: float | None) -> None:
    """In milliseconds, seconds, or until a date by the server's clock."""
    error = answering(429, json=error_body("rate_limit_error"), headers=headers).fail()

    assert error.retry_after == (None if seconds is None else timedelta(seconds=seconds))


def raising(error: Exception) -> Handler:
    def fail(_: httpx2.Request) -> httpx2.Response:
        raise error

    return fail


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (httpx2.ConnectError("no"), set()),
        (httpx2.ConnectTimeout("no"), set()),
        (httpx2.ProxyError("no"), set()),
        (httpx2.ReadTimeout("no"), {"unclear"}),
        (httpx2.WriteError("no"), {"unclear"}),
        (httpx2.ReadError("no"), {"unclear"}),
        (httpx2.RemoteProtocolError("no"), {"unclear"}),
        (OSError("no"), {"unclear"}),
    ],
    ids=repr,
)
def test_a_connection_that_fails(failure: Exception, expected: set[str]) -> None:
    """What was sent may have been done, what could not be sent was not."""
    bench = Bench(raising(failure))
    error = bench.fail()

    assert flags(error) == expected
    assert (error.status, error.limits) == (None, None)
    assert len(bench.wire) == 1


def test_a_call_that_was_stopped_on_its_way_out_was_not_done() -> None:
    """Such as by a token that could not be had."""

    def provider(*, force_refresh: bool = False) -> anthropic.AccessToken:
        raise anthropic.CredentialsError("no token")

    bench = Bench(lambda _: httpx2.Response(200, json=message_body()), credentials=provider)

    assert flags(bench.fail()) == set()
    assert bench.wire == []


def test_a_middleware_may_have_sent_it_before() -> None:
    """So the client's own leaves a failed connection unclear."""

    def twice(sent: anthropic.APIRequest, call_next: anthropic.CallNext) -> Any:
        try:
            return call_next(sent)
        except anthropic.APIConnectionError:
            return call_next(sent)

    bench = Bench(raising(httpx2.ConnectError("no")), middleware=[twice])

    assert flags(bench.fail()) == {"unclear"}


def test_a_token_that_was_refused_is_renewed() -> None:
    """For the next call."""
    tokens = iter(["old", "new", "newer"])

    def provider(*, force_refresh: bool = False) -> anthropic.AccessToken:
        return anthropic.AccessToken(token=next(tokens))

    def answer(sent: httpx2.Request) -> httpx2.Response:
        if sent.headers["authorization"] == "Bearer old":
            return httpx2.Response(401, json=error_body("authentication_error"))
        listed = sent.method == "GET"
        return httpx2.Response(200, json={"data": [], "has_more": False} if listed else message_body())

    bench = Bench(answer, credentials=provider)

    assert flags(bench.fail()) == {"credential"}
    assert bench.call().kind is OutcomeKind.SUCCEEDED


class Breaking(httpx2.SyncByteStream):
    """An answer that breaks off."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = pieces

    def __iter__(self) -> Iterator[bytes]:
        yield from self._pieces
        raise httpx2.ReadError("reset")


def test_an_answer_that_breaks_off_may_have_been_paid_for() -> None:
    """Its headers came, so what they say of the limits counts."""
    error = answering(200, stream=Breaking(b'{"id":'), headers=LIMITS).fail()

    assert flags(error) == {"unclear"}
    assert error.limits is not None
    assert "ReadError" in error.brief


def test_a_lane_of_another_client_is_not_served() -> None:
    """Nothing is sent."""
    other = Bench(lambda _: httpx2.Response(200, json=message_body()), api_key="other")
    bench = answering(200, json=message_body())
    lane = other.lanes.lane_for({})

    assert (bench.api.serves(lane), other.api.serves(lane)) == (False, True)
    with pytest.raises(LiveCallError) as caught:
        bench.api.call(lane, "req_1", BODY)
    assert flags(caught.value) == set()
    assert bench.wire == []


@pytest.mark.parametrize(
    ("betas", "carried"),
    [
        (None, True),
        ("context-1m-2025-08-07", True),
        ("output-128k-2025-02-19", True),
        ("output-300k-2026-03-24", False),
        ("a, output-300k-2027-01-01 ,z", False),
        ("not-output-300k-2026-03-24", True),
    ],
)
def test_what_only_a_batch_can_do_is_told_by_the_beta(betas: str | None, carried: bool) -> None:
    """The longest answers."""
    bench = answering(200, json=message_body())
    lane = bench.lanes.lane_for({} if betas is None else {"anthropic-beta": betas})

    assert bench.api.carries(lane) is carried


def test_a_body_that_is_none_is_not_sent() -> None:
    """Nor can it have been paid for."""
    for body in (b"", b"[]", b"{"):
        bench = answering(200, json=message_body())
        assert flags(bench.fail(body)) == set()
        assert bench.wire == []


# Streams


def events(*parts: dict[str, Any]) -> bytes:
    return b"".join(
        f"event: {part['type']}\ndata: {json.dumps(part)}\n\n".encode() for part in parts
    )  # fmt: skip


def pieces(*blocks: tuple[dict[str, Any], list[dict[str, Any]]], **delta: Any) -> list[dict[str, Any]]:
    """The events of a message with some blocks, each with its deltas."""
    usage = {"input_tokens": 1000, "output_tokens": 1, "of_tomorrow": 3}
    started = message_body(content=[], stop_reason=None, usage=usage, new_field={"a": [1]})
    made: list[dict[str, Any]] = [{"type": "message_start", "message": started}]
    for index, (block, deltas) in enumerate(blocks):
        made.append({"type": "content_block_start", "index": index, "content_block": block})
        made.extend({"type": "content_block_delta", "index": index, "delta": one} for one in deltas)
        made.append({"type": "content_block_stop", "index": index})
    stop = {"stop_reason": "end_turn", "stop_sequence": None, **delta}
    made.append({"type": "message_delta", "delta": stop, "usage": {"output_tokens": 500}})
    return [*made, {"type": "message_stop"}]


TEXT = ({"type": "text", "text": ""}, [{"type": "text_delta", "text": part} for part in ("str", "eamed")])
TOOL = (
    {"type": "tool_use", "id": "t", "name": "n", "input": {}},
    [{"type": "input_json_delta", "partial_json": part} for part in ('{"a": "\\u20', '28", "b', '": 1}')],
)
OF_BETA = (
    {"type": "mcp_tool_use", "id": "t", "name": "n", "server_name": "s", "input": {}},
    [{"type": "input_json_delta", "partial_json": '{"a": 1}'}],
)
UNKNOWN = ({"type": "of_tomorrow", "what": {"ever": [1, None]}}, [])
LONG = json.dumps(request(max_tokens=STREAM_ABOVE_TOKENS + 1, unknown_of_extra_body=1)).encode()


def streaming(content: bytes | httpx2.SyncByteStream) -> Bench:
    given: dict[str, Any] = {"content": content} if isinstance(content, bytes) else {"stream": content}
    return answering(200, headers={"content-type": "text/event-stream; charset=utf-8", **LIMITS}, **given)


def test_a_long_call_is_streamed_to_its_end() -> None:
    """Blocks and fields that are not known are kept, as are those of betas."""
    bench = streaming(events(*pieces(TEXT, TOOL, OF_BETA, UNKNOWN)))
    reply = bench.call(LONG)

    assert bench.wire[0].content == b'{"stream":true,' + LONG[1:]
    assert json.loads(bench.wire[0].content) == {**json.loads(LONG), "stream": True}
    message = json.loads(reply.raw)["result"]["message"]
    usage = {"input_tokens": 1000, "output_tokens": 500, "of_tomorrow": 3}
    assert {name: message[name] for name in ("id", "type", "model", "stop_reason", "usage", "new_field")} == {
        "id": "msg_1",
        "type": "message",
        "model": MODEL,
        "stop_reason": "end_turn",
        "usage": usage,
        "new_field": {"a": [1]},
    }
    assert message["content"] == [
        {"type": "text", "text": "streamed"},
        {**TOOL[0], "input": {"a": "\u2028", "b": 1}},
        {**OF_BETA[0], "input": {"a": 1}},
        UNKNOWN[0],
    ]
    assert reply.work == Work(requests=1, input_tokens=1000, output_tokens=500)
    assert (reply.paid_usd, reply.limits is not None) == (Decimal("0.0035"), True)
    assert to_message(reply.raw).content[1].to_dict() == message["content"][1]


def test_a_stream_gives_what_the_sdk_gives() -> None:
    """To a caller of `messages.stream`, as far as the SDK's types go."""
    bench = streaming(events(*pieces(TEXT, TOOL)))
    ours = to_message(bench.call(LONG).raw)
    with bench.client.messages.stream(**request()) as stream:
        theirs = stream.get_final_message()

    assert ours.to_dict() == theirs.to_dict()


@pytest.mark.parametrize("given", ["true", "false"])
def test_a_body_that_says_how_it_wants_its_answer(given: str) -> None:
    """Is streamed all the same, and says so once."""
    bench = streaming(events(*pieces(TEXT)))

    bench.call(LONG[:-1] + f', "stream": {given}, "é": "é"}}'.encode())

    pairs = json.loads(bench.wire[0].content, object_pairs_hook=list)
    assert [value for name, value in pairs if name == "stream"] == [True]
    assert ["é", "é"] in [list(pair) for pair in pairs]


def test_a_proxy_that_does_not_stream_is_understood() -> None:
    """A whole message is what was asked for."""
    assert to_message(answering(200, json=message_body()).call(LONG).raw).id == "msg_1"


@pytest.mark.parametrize("kept", range(1, len(pieces(TEXT))))
def test_a_stream_without_its_end_may_have_been_paid_for(kept: int) -> None:
    """Wherever it breaks off, with an error of the connection or without one."""
    part = events(*pieces(TEXT)[:kept])
    for content in (part, Breaking(part), Breaking(part[:-10])):
        error = streaming(content).fail(LONG)
        assert flags(error) == {"unclear"}
        assert error.limits is not None


@pytest.mark.parametrize("content", [b"", b"<html>", b"event: message_start\ndata: {\n\n", b"data: 1\n\n"])
def test_a_stream_of_something_else_is_unclear(content: bytes) -> None:
    """It is no answer, but may stand for one."""
    assert flags(streaming(content).fail(LONG)) == {"unclear"}


@pytest.mark.parametrize(
    ("error_type", "before", "after"),
    [("overloaded_error", {"limited"}, {"unclear"}), ("api_error", set(), {"unclear"})],
)
def test_an_error_in_a_stream(error_type: str, before: set[str], after: set[str]) -> None:
    """Instead of an answer it is one of any call; in the middle, what came before it may be charged."""
    failed = error_body(error_type, "no")

    assert flags(streaming(events(failed)).fail(LONG)) == before
    assert flags(streaming(events(*pieces(TEXT)[:3], failed)).fail(LONG)) == after


class Endless(httpx2.SyncByteStream):
    """A stream of which more would come."""

    closed = False

    def __iter__(self) -> Iterator[bytes]:
        yield events(*pieces(TEXT)[:1])
        delta = {"type": "text_delta", "text": "of no block"}
        while True:
            yield events({"type": "content_block_delta", "index": 7, "delta": delta})

    def close(self) -> None:
        self.closed = True


def test_a_stream_that_cannot_be_understood_gives_its_connection_back() -> None:
    """At once, though it does not end."""
    content = Endless()
    error = streaming(content).fail(LONG)

    assert flags(error) == {"unclear"}
    assert content.closed


def models() -> list[str]:
    from anthropic import _constants  # noqa: PLC0415  (private to the SDK: of use to this test alone)

    first_party = [name for name in _constants.MODEL_NONSTREAMING_TOKENS if not {*"@:"} & {*name}]
    return [MODEL, *first_party]


@pytest.mark.filterwarnings("ignore:The model:DeprecationWarning")
@pytest.mark.parametrize("model", models())
@pytest.mark.parametrize("max_tokens", [1, 8_192, 8_193, 21_333, 21_334, 64_000])
def test_what_the_sdk_would_not_send_at_once_is_streamed(model: str, max_tokens: int) -> None:
    """And nothing else."""
    long = request(model=model, max_tokens=max_tokens)
    plain = client_with(lambda _: httpx2.Response(200, json=message_body()))
    try:
        plain.with_options(timeout=anthropic.DEFAULT_TIMEOUT).messages.create(**long)
        refused = False
    except ValueError:
        refused = True
    bench = answering(200, json=message_body())
    bench.call(json.dumps(long).encode())

    assert json.loads(bench.wire[0].content).get("stream", False) is refused


def test_a_reply_shows_no_answer() -> None:
    """Nor does an error, of which logs get the brief form."""
    reply = answering(200, json=message_body(content=[{"type": "text", "text": "planted"}])).call()

    assert "planted" not in repr(reply)
    assert {field.name for field in fields(reply)} >= {"raw", "kind"}
