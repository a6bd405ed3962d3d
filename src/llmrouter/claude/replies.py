"""A finished message as the SDK's answer to a call: whole, raw, or as the events of a stream."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import anthropic
import httpx2
from anthropic import APIResponse, AsyncAPIResponse

from llmrouter.claude.headers import fold_headers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import timedelta

    from anthropic import APIRequest

    from llmrouter.claude.lanes import Client

REQUEST_ID_HEADER = "x-llmrouter-request-id"
"""Header of the answer that names the request by llmrouter's id."""

_DELTA_FIELDS = ("stop_reason", "stop_sequence", "stop_details", "container")
"""What of a message is told at its end."""

_OF_THE_SDK = "x-stainless-"


def reply(
    request: APIRequest,
    client: Client,
    message: Mapping[str, Any],
    *,
    request_id: str,
    waited: timedelta,
) -> APIResponse[Any] | AsyncAPIResponse[Any]:
    """What a middleware may answer with: the SDK makes of it whatever its caller asked for.

    Args:
        request: The call.
        client: What it was made with; an asynchronous one gets an asynchronous answer.
        message: The message as plain JSON.
        request_id: Of the request, llmrouter's.
        waited: How long the call took.
    """
    if request.stream:
        kind, content = "text/event-stream; charset=utf-8", b"".join(stream_events(message))
    else:
        kind, content = "application/json", _json(message)
    raw = httpx2.Response(
        200,
        headers={"content-type": kind, REQUEST_ID_HEADER: request_id},
        content=content,
        request=_http_request(request, client),
    )
    raw.elapsed = waited
    given: dict[str, Any] = {
        "raw": raw,
        "cast_to": request.cast_to,
        "client": client,
        "stream": request.stream,
        "stream_cls": request.stream_cls,
        "options": request.options,
        "retries_taken": request.retries_taken,
    }
    return AsyncAPIResponse(**given) if isinstance(client, anthropic.AsyncAnthropic) else APIResponse(**given)


def thread_refusal(request: APIRequest, client: Client) -> anthropic.BadRequestError:
    """What the API says where it cannot keep a thread: the SDK's tool runner goes on without one then.

    A thread lives for minutes. Its calls have only what is new: in a batch they would lack all the rest.

    Args:
        request: The call, which has ``thread``.
        client: What it was made with.
    """
    problem = "thread: a batch keeps no thread: leave it out, or send the call as real-time"
    details = {"error_code": "thread_unsupported_request", "unsupported": ["batch"]}
    body = {
        "type": "error",
        "error": {"type": "invalid_request_error", "message": problem, "details": details},
    }
    response = httpx2.Response(400, json=body, request=_http_request(request, client))
    return anthropic.BadRequestError(problem, response=response, body=body)


def stream_events(message: Mapping[str, Any]) -> Iterator[bytes]:
    """The server-sent events of a stream that gives this message, in the API's order."""
    usage = message.get("usage") or {}
    absent = dict.fromkeys(name for name in _DELTA_FIELDS if name in message)
    started = {**message, **absent, "content": [], "usage": {**usage, "output_tokens": 0}}
    yield _event({"type": "message_start", "message": started})
    for index, block in enumerate(message.get("content") or ()):
        empty, deltas = _taken_apart(block)
        yield _event({"type": "content_block_start", "index": index, "content_block": empty})
        for delta in deltas:
            yield _event({"type": "content_block_delta", "index": index, "delta": delta})
        yield _event({"type": "content_block_stop", "index": index})
    ended = {name: message[name] for name in _DELTA_FIELDS if name in message}
    yield _event({"type": "message_delta", "delta": ended, "usage": usage})
    yield _event({"type": "message_stop"})


def _taken_apart(block: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A content block as it begins, and what is added to it. One of an unknown type comes whole."""
    match block:
        case {"type": "text", "text": str(text)}:
            citations = block.get("citations") or []
            begun = {**block, "text": "", **({"citations": []} if citations else {})}
            cited = [{"type": "citations_delta", "citation": citation} for citation in citations]
            return begun, [*cited, {"type": "text_delta", "text": text}]
        case {"type": "thinking", "thinking": str(thinking), "signature": str(signature)}:
            return {**block, "thinking": "", "signature": ""}, [
                {"type": "thinking_delta", "thinking": thinking},
                {"type": "signature_delta", "signature": signature},
            ]
        case {"type": "tool_use" | "server_tool_use" | "mcp_tool_use", "input": dict(given)} if given:
            text = json.dumps(given, ensure_ascii=False)
            return {**block, "input": {}}, [{"type": "input_json_delta", "partial_json": text}]
        case _:
            return block, []


def _event(data: Mapping[str, Any]) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (data["type"].encode(), _json(data))


def _json(data: Mapping[str, Any]) -> bytes:
    return json.dumps(data, ensure_ascii=True, separators=(",", ":")).encode()


def _http_request(request: APIRequest, client: Client) -> httpx2.Request:
    """The request that was not sent, as it can be shown: a call with a credential of its own was refused."""
    headers = {
        name: value
        for name, value in fold_headers(request.headers).items()
        if isinstance(value, str) and not name.startswith(_OF_THE_SDK)
    }
    base_url = str(client.base_url.copy_with(username=None, password=None)).rstrip("/")
    return httpx2.Request(request.method.upper(), f"{base_url}{request.url}", headers=headers)
