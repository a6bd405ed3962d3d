"""Stored result lines into what a live call would have returned or raised."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn, cast

import anthropic
import httpx2
from anthropic import APIRequest, APIResponse
from anthropic.types import Message

from llmrouter.claude.results import error_of
from llmrouter.domain.requests import OutcomeKind
from llmrouter.errors import ResultMissingError

if TYPE_CHECKING:
    from anthropic import CallNext

_STATUSES = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "conflict_error": 409,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}
"""The HTTP status of each type of error in a live answer (docs/api.md); 500 for any other."""

_CODE_STATUSES = {"cmek_context_unavailable": 503, "cmek_key_unreachable": 503}
"""Codes in an error's details whose status is not that of its type (the SDK's table of exceptions)."""

_NOWHERE = "http://llmrouter.invalid"
_API_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]+")


def to_message(raw: bytes) -> Message:
    """The message in the result line of a succeeded request, built as the SDK builds a live one.

    Tolerates what the installed SDK does not know: tell content blocks apart by `.type`.

    Raises:
        ValueError: The line holds no message.
    """
    message = message_json(raw)
    return Message.construct(**message)


def message_json(raw: bytes) -> dict[str, Any]:
    """The message in the result line of a succeeded request, as it came.

    Raises:
        ValueError: The line holds no message.
    """
    line: Any = json.loads(raw)
    result = line.get("result") if isinstance(line, dict) else None
    message = result.get("message") if isinstance(result, dict) else None
    if isinstance(message, dict):
        return message
    raise ValueError("this result line holds no message")


def to_error(kind: OutcomeKind, raw: bytes, request_id: str, attempts: int) -> Exception:
    """The exception for a request that did not succeed, typed as the SDK types it.

    - errored: the one that the SDK raises when a live call is answered with this error.
    - expired: `GatewayTimeoutError`, with 504. No live call ends so; it shares with that error that
      the API ran out of time, and that sending it again is the remedy.
    - canceled: `ClientClosedRequestError`, with 499: somebody on this side took it back.
    - errored without a line: `ResultMissingError`.

    The message is the API's own where there is one. The exception has `llmrouter_request_id` and
    `attempts`, and a note that tells both.

    Args:
        kind: How it ended.
        raw: Its result line; empty when there is none.
        request_id: The request, by llmrouter's id.
        attempts: How many batches it took.

    Raises:
        ValueError: The request succeeded.
    """
    error: Exception
    match kind:
        case OutcomeKind.SUCCEEDED:
            raise ValueError(f"{request_id} succeeded: there is no error in it")
        case OutcomeKind.ERRORED if raw:
            error = _errored(raw)
        case OutcomeKind.ERRORED:
            error = ResultMissingError(request_id, attempts)
        case OutcomeKind.EXPIRED:
            message = (
                "The batch expired before this request was processed. It was not charged; submit it again."
            )
            error = _raised(504, _envelope("timeout_error", message))
        case OutcomeKind.CANCELED:
            message = "The request was canceled before it was processed. It was not charged."
            error = _raised(499, _envelope("canceled", message))
    error.__dict__.update(llmrouter_request_id=request_id, attempts=attempts)
    error.add_note(f"llmrouter: {request_id}, {attempts} {'attempt' if attempts == 1 else 'attempts'}")
    return error


def _errored(raw: bytes) -> Exception:
    try:
        result: Any = json.loads(raw)["result"]
    except (LookupError, TypeError, ValueError):
        result = None
    error = error_of(result)
    if not error:
        return _raised(500, _envelope("api_error", "The API did not say what went wrong."))
    details = error.get("details")
    code = details.get("error_code") if isinstance(details, dict) else None
    known = _CODE_STATUSES.get(str(code)) or _STATUSES.get(str(error.get("type")), 500)
    return _raised(known, result["error"])


def _envelope(error_type: str, message: str) -> dict[str, Any]:
    return {"type": "error", "error": {"type": error_type, "message": message}}


def _raised(status: int, envelope: dict[str, Any]) -> Exception:
    """What the SDK raises when a call is answered with this status and this error."""
    try:
        _answering_client().post("/v1/messages", cast_to=Message, body=[status, envelope])
    except anthropic.APIStatusError as error:
        return error.with_traceback(None)
    raise AssertionError(f"the SDK raised nothing for status {status}")


@cache
def _answering_client() -> anthropic.Anthropic:
    """A client that sends nothing: it is answered with the status and the error that it posts."""
    return anthropic.Anthropic(
        api_key="none",
        base_url=_NOWHERE,
        max_retries=0,
        middleware=[_answer],
        http_client=httpx2.Client(transport=httpx2.MockTransport(_refuse_to_send)),
        open_telemetry=False,
    )


def _answer(request: APIRequest, _call_next: CallNext) -> APIResponse[Any]:
    status, envelope = cast("tuple[int, dict[str, Any]]", request.json)
    # Raised in a middleware it is not to be tried again: it is stored, and would be the same.
    headers = {"content-type": "application/json", "x-should-retry": "false"}
    api_request_id = envelope.get("request_id")
    if isinstance(api_request_id, str) and _API_REQUEST_ID.fullmatch(api_request_id):
        headers["request-id"] = api_request_id
    raw = httpx2.Response(
        status,
        headers=headers,
        content=json.dumps(envelope).encode(),
        request=httpx2.Request("POST", _NOWHERE),
    )
    return APIResponse(
        raw=raw,
        cast_to=request.cast_to,
        client=_answering_client(),
        stream=False,
        stream_cls=None,
        options=request.options,
    )


def _refuse_to_send(_request: httpx2.Request) -> NoReturn:
    raise AssertionError("the answer to a stored request was sent for")
