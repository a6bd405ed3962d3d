"""A stored result becomes what a live call would have given."""

from __future__ import annotations

import json
import pickle
from typing import Any

import anthropic
import httpx2
import pytest
from anthropic.types import Message
from claude_support import client_with, error_body, message_body, request

from llmrouter.claude.answers import message_json, to_error, to_message
from llmrouter.domain.requests import OutcomeKind
from llmrouter.errors import ResultMissingError

BLOCKS: list[dict[str, Any]] = [
    {"type": "text", "text": "a\u2028b"},
    {"type": "thinking", "thinking": "hm", "signature": "s"},
    {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": [1]}},
    {"type": "not_known_yet", "extra": {"deep": 1}},
]


def succeeded(**changes: Any) -> bytes:
    result = {"type": "succeeded", "message": message_body(**changes)}
    return json.dumps({"custom_id": "a", "result": result}).encode()


def errored(error: Any) -> bytes:
    return json.dumps({"custom_id": "a", "result": {"type": "errored", "error": error}}).encode()


def test_a_message_is_the_one_a_live_call_gives() -> None:
    """Of the same type, with the same data, also in blocks that this SDK does not know."""
    body = message_body(content=BLOCKS, new_field={"a": 1})
    live = client_with(lambda _: httpx2.Response(200, json=body)).messages.create(**request())

    stored = to_message(succeeded(content=BLOCKS, new_field={"a": 1}))

    assert type(stored) is Message
    assert stored == live
    assert stored.to_dict(warnings=False) == live.to_dict(warnings=False)
    assert [type(block) for block in stored.content] == [type(block) for block in live.content]
    assert stored.usage.output_tokens == 500


def test_the_json_of_a_message_is_kept_as_it_came() -> None:
    """For the ledger."""
    assert message_json(succeeded()) == message_body()


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b"{}", errored({}), b'{"result": {"message": 5}}', b"null"]
)
def test_a_line_without_a_message_is_an_error(raw: bytes) -> None:
    """No empty message is made up."""
    with pytest.raises(ValueError):  # noqa: PT011 - of the JSON decoder's, too
        to_message(raw)


STATUSES = {
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
    "brand_new_error": 500,
}


def raised_live(status: int, envelope: dict[str, Any]) -> anthropic.APIStatusError:
    def answer(_: httpx2.Request) -> httpx2.Response:
        headers = {"request-id": envelope["request_id"], "x-should-retry": "false"}
        return httpx2.Response(status, json=envelope, headers=headers)

    with pytest.raises(anthropic.APIStatusError) as caught:
        client_with(answer).messages.create(**request())
    return caught.value


@pytest.mark.parametrize("error_type", STATUSES)
def test_an_error_is_the_one_a_live_call_raises(error_type: str) -> None:
    """Class, status, type, message, body and request id."""
    envelope = error_body(error_type, "that is why \u2028 😀", details={"x": [1, None]})
    live = raised_live(STATUSES[error_type], envelope)

    stored = to_error(OutcomeKind.ERRORED, errored(envelope), "req_1", 1)

    assert isinstance(stored, anthropic.APIStatusError)
    assert type(stored) is type(live)
    for name in (
        "status_code",
        "type",
        "message",
        "api_message",
        "error_code",
        "details",
        "body",
        "request_id",
    ):
        assert getattr(stored, name) == getattr(live, name), name
    assert str(stored) == str(live)


@pytest.mark.parametrize(
    ("error_type", "code", "status", "error"),
    [
        ("rate_limit_error", "enforced_spend_limit_reached", 429, anthropic.EnforcedSpendLimitReachedError),
        ("invalid_request_error", "organization_on_hold", 400, anthropic.OrganizationOnHoldError),
        ("api_error", "cmek_key_unreachable", 503, anthropic.CMEKKeyUnreachableError),
        ("api_error", "never_seen", 500, anthropic.InternalServerError),
    ],
)
def test_a_code_in_the_details_chooses_the_class(
    error_type: str, code: str, status: int, error: type[anthropic.APIStatusError]
) -> None:
    """As the SDK does for a live answer."""
    envelope = error_body(error_type, details={"error_code": code})

    stored = to_error(OutcomeKind.ERRORED, errored(envelope), "req_1", 1)

    assert type(stored) is type(raised_live(status, envelope)) is error


@pytest.mark.parametrize(
    "error",
    [
        None,
        {},
        [],
        "no",
        {"error": 5},
        {"error": {"type": 5, "message": float("nan")}},
        {"error": {"type": "api_error", "message": "\ud800"}},
    ],
)
def test_an_error_of_another_shape_is_an_error_all_the_same(error: Any) -> None:
    """Never a crash over what the API wrote."""
    assert type(to_error(OutcomeKind.ERRORED, errored(error), "req_1", 1)) is anthropic.InternalServerError


def test_a_request_id_that_is_no_header_is_left_out() -> None:
    """What the API wrote into the error does not become a header unseen."""
    envelope = {**error_body("api_error"), "request_id": "a\r\nb: c"}

    stored = to_error(OutcomeKind.ERRORED, errored(envelope), "req_1", 1)

    assert isinstance(stored, anthropic.APIStatusError)
    assert stored.request_id is None


def test_expired_is_a_timeout_of_the_gateway() -> None:
    """There is no live equivalent; sending it again is the remedy."""
    error = to_error(OutcomeKind.EXPIRED, b"", "req_1", 2)

    assert type(error) is anthropic.GatewayTimeoutError
    assert (error.status_code, error.type) == (504, "timeout_error")
    assert "expired" in str(error)


@pytest.mark.parametrize("raw", [b"", b'{"custom_id": "a", "result": {"type": "canceled"}}'])
def test_canceled_is_closed_by_the_client(raw: bytes) -> None:
    """Somebody on this side took it back; what ended it is said."""
    error = to_error(OutcomeKind.CANCELED, raw, "req_1", 0)

    assert type(error) is anthropic.ClientClosedRequestError
    assert error.status_code == 499
    assert "canceled" in str(error)


def test_no_line_at_all_is_an_error_of_ours() -> None:
    """The API said nothing of it."""
    error = to_error(OutcomeKind.ERRORED, b"", "req_1", 3)

    assert isinstance(error, ResultMissingError)
    assert error.request_id == "req_1"


@pytest.mark.parametrize("kind", [OutcomeKind.ERRORED, OutcomeKind.EXPIRED, OutcomeKind.CANCELED])
@pytest.mark.parametrize("raw", [b"", errored(error_body("api_error"))])
def test_every_error_says_which_request_it_is_of(kind: OutcomeKind, raw: bytes) -> None:
    """And how often it was tried; beside the API's message, and in the traceback."""
    error: Any = to_error(kind, raw, "req_1", 3)

    assert (error.llmrouter_request_id, error.attempts) == ("req_1", 3)
    assert error.__notes__ == ["llmrouter: req_1, 3 attempts"]
    assert error.__traceback__ is None


def test_an_error_can_be_sent_to_another_process() -> None:
    """As the SDK's own can."""
    error = to_error(OutcomeKind.ERRORED, errored(error_body("api_error")), "req_1", 1)

    again: Any = pickle.loads(pickle.dumps(error))

    assert (type(again), again.llmrouter_request_id) == (type(error), "req_1")


def test_a_success_is_no_error() -> None:
    """Asking for one is a mistake."""
    with pytest.raises(ValueError, match="req_1"):
        to_error(OutcomeKind.SUCCEEDED, succeeded(), "req_1", 1)
