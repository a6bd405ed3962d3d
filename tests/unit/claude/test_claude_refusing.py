"""A refusal says why, so that a lane waits for the right thing."""

from __future__ import annotations

import pickle
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import pytest
from claude_support import SECRET, Body, client_with, error_body

from llmrouter.claude.batches import SdkBatchApi
from llmrouter.claude.instants import http_date, named_end
from llmrouter.claude.lanes import Lanes
from llmrouter.errors import CreateError, CreateRefusedError, CreateUnclearError

OWN_LIMIT = (
    "You have reached your specified API usage limits. You will regain access on 2026-12-01 at 00:00 UTC."
)
WORKSPACE = (
    "You have reached your specified workspace API usage limits. "
    "You will regain access on 2026-12-01 at 00:00 UTC."
)
TIER = (
    "You have reached your API usage limits: your organization has crossed its monthly API usage threshold, "
    "set based on your organization's API tier. You will regain access on 2026-12-01 at 00:00 UTC."
)
NO_CREDIT = "Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing."
DISABLED = "This organization has been disabled."
DECEMBER = datetime(2026, 12, 1, tzinfo=UTC)
REASONS = ("spent", "credential", "limited", "blames_content")


def refused(status: int, message: str = "no", code: str | None = None, **headers: str) -> CreateError:
    details = {} if code is None else {"details": {"error_code": code}}
    answer = httpx2.Response(
        status,
        json=error_body("some_error", message, **details),
        headers={name.replace("_", "-"): value for name, value in headers.items()},
    )
    client = client_with(lambda _: answer)
    lanes = Lanes(client, SECRET)
    with pytest.raises(CreateError) as caught:
        SdkBatchApi(client, lanes).create(lanes.lane_for({}), Body([b"{}"]))
    return caught.value


def reasons(error: CreateError) -> set[str]:
    return {name for name in REASONS if getattr(error, name)}


@pytest.mark.parametrize(
    ("status", "message", "code", "regain_at"),
    [
        (400, OWN_LIMIT, None, DECEMBER),
        (400, WORKSPACE, None, DECEMBER),
        (400, NO_CREDIT, None, None),
        (400, "You have reached your workspace's spending limit", None, None),
        (402, "billing", None, None),
        (402, "no", "linked_organization_spend_limit_reached", None),
        (403, OWN_LIMIT, None, DECEMBER),
        (429, TIER, "enforced_spend_limit_reached", DECEMBER),
        (429, "no", "contract_spend_limit_reached", None),
        (429, "no", None, None),
    ],
)
def test_a_spend_limit_is_told_from_all_else(
    status: int, message: str, code: str | None, regain_at: datetime | None
) -> None:
    """By its code, its text, or a 429 that does not say how long to wait."""
    error = refused(status, message, code)

    assert reasons(error) == {"spent"}
    assert error.regain_at == regain_at
    assert error.retry_after is None
    assert not error.names_request


def test_a_spend_limit_can_say_how_long_to_wait_too() -> None:
    """Its code decides."""
    error = refused(429, TIER, "enforced_spend_limit_reached", retry_after="60")

    assert reasons(error) == {"spent"}
    assert (error.regain_at, error.retry_after) == (DECEMBER, timedelta(minutes=1))


def test_a_spend_limit_without_a_code_that_says_how_long_to_wait() -> None:
    """Its text decides, where it names an end."""
    assert reasons(refused(429, WORKSPACE, retry_after="60")) == {"spent"}


@pytest.mark.parametrize("headers", [{"retry_after": "7"}, {"retry_after": "soon"}, {"retry_after_ms": "70"}])
def test_a_429_that_says_how_long_to_wait_is_a_limit_of_the_moment(headers: dict[str, str]) -> None:
    """A rate limit, or a full queue."""
    text = "Number of requests has exceeded your rate limit: see usage limits"
    assert reasons(refused(429, text, **headers)) == {"limited"}


@pytest.mark.parametrize(
    ("status", "message", "code"),
    [
        (401, "invalid x-api-key", None),
        (401, OWN_LIMIT, None),
        (403, "not allowed", None),
        (403, "no", "user_profile_billing_not_authorized"),
        (400, DISABLED, None),
        (400, "no", "organization_on_hold"),
    ],
)
def test_a_key_that_is_not_accepted(status: int, message: str, code: str | None) -> None:
    """It, its rights, or its organization."""
    assert reasons(refused(status, message, code)) == {"credential"}


@pytest.mark.parametrize(
    ("status", "message", "named"),
    [
        (400, "requests.3.params.max_tokens: Field required", True),
        (400, "requests[3]: too long", True),
        (400, "requests.0.custom_id: String should match pattern '^[a-zA-Z0-9_-]{1,64}$'", True),
        (400, "custom_id r1 is not unique", True),
        (400, "params: Field required", True),
        (400, "requests.3.params.metadata: quotes 'usage limits, credit balance'", True),
        (400, "requests: List should have at most 100000 items", False),
        (400, "The request body is not valid JSON", False),
        (413, "Request exceeds the maximum size", False),
        (422, "no", False),
    ],
)
def test_content_is_blamed_and_may_be_named(status: int, message: str, named: bool) -> None:
    """A text that names a request says that it is one of them."""
    error = refused(status, message)

    assert reasons(error) == {"blames_content"}
    assert error.names_request is named


@pytest.mark.parametrize("status", [404, 410, 405, 307])
def test_any_other_no_gives_no_reason(status: int) -> None:
    """Nor is a request named by a text that does not blame it."""
    error = refused(status, "requests.3.params")

    assert reasons(error) == set()
    assert not error.names_request


@pytest.mark.parametrize("status", [409, 500, 529])
def test_a_doubt_gives_no_reason(status: int) -> None:
    """Whatever its text says."""
    error = refused(status, TIER, retry_after="3")

    assert isinstance(error, CreateUnclearError)
    assert reasons(error) == set()
    assert error.retry_after == timedelta(seconds=3)


BODIES: list[Any] = [[], "oops", {"error": "oops"}, {"error": {"details": "x", "message": 5}}]


@pytest.mark.parametrize("body", BODIES, ids=repr)
def test_a_body_of_another_shape_gives_what_the_status_gives(body: Any) -> None:
    """A proxy's."""
    client = client_with(lambda _: httpx2.Response(403, json=body))
    lanes = Lanes(client, SECRET)

    with pytest.raises(CreateRefusedError) as caught:
        SdkBatchApi(client, lanes).create(lanes.lane_for({}), Body([b"{}"]))

    assert reasons(caught.value) == {"credential"}


def test_the_reasons_survive_the_way_to_another_process() -> None:
    """As do those of every other error."""
    error = refused(429, TIER, "enforced_spend_limit_reached", retry_after="60")
    again = pickle.loads(pickle.dumps(error))

    assert vars(again) == vars(error)
    assert (again.spent, again.regain_at) == (True, DECEMBER)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (OWN_LIMIT, DECEMBER),
        ("You will regain access on 2026-12-01", DECEMBER),
        ("you will REGAIN access on 2026-12-01 at 06:30 UTC", DECEMBER + timedelta(hours=6, minutes=30)),
        ("regain access at 2026-12-01T06:30:15Z", DECEMBER + timedelta(hours=6, minutes=30, seconds=15)),
        ("Usage resets on 2026-12-01 02:00+02:00.", DECEMBER),
        ("paused until 2026-12-01.", DECEMBER),
        ("You will regain access on 2026-13-01 at 00:00 UTC.", None),
        ("You will regain access on 2026-12-01 at 25:00 UTC.", None),
        ("You will regain access on 0001-01-01 at 00:00+10:00", None),
        ("You will regain access on 1/12/26.", None),
        ("You will regain access soon. It is 2026-12-01.", None),
        ("On 2026-12-01 you spent too much", None),
        ("regain access on \u0662\u0660\u0662\u0666-12-01", None),
        ("", None),
    ],
)
def test_the_end_of_a_limit_is_read_from_its_text(text: str, expected: datetime | None) -> None:
    """And never guessed."""
    end = named_end(text)

    assert end == expected
    assert end is None or end.tzinfo is UTC


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Tue, 01 Dec 2026 00:00:00 GMT", DECEMBER),
        ("Tue, 01 Dec 2026 01:00:00 +0100", DECEMBER),
        ("Tue, 01 Dec 2026 00:00:00 -0000", DECEMBER),
        ("Fri, 31 Dec 9999 23:59:59 -0100", None),
        ("Tue, 01 Dec 2026 00:00:00 +9999", None),
        ("yesterday", None),
        ("", None),
    ],
)
def test_an_http_date_is_read(text: str, expected: datetime | None) -> None:
    """In UTC; what is none is None."""
    assert http_date(text) == expected
