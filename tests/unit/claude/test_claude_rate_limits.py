"""What an answer says of the account's limits is read as it stands, or not at all."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import pytest
from anthropic.types import Usage

from llmrouter.claude.rate_limits import read_limits, work_of
from llmrouter.domain.live import Allowance, RateLimits
from llmrouter.domain.rates import Work

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)


def of(kind: str, limit: object = 50, remaining: object = 49, reset: str = "2026-11-20T12:00:00Z") -> Any:
    values = {"limit": limit, "remaining": remaining, "reset": reset}
    return {f"anthropic-ratelimit-{kind}-{name}": str(value) for name, value in values.items()}


def read(*layers: dict[str, str]) -> RateLimits | None:
    return read_limits(httpx2.Headers({name: value for layer in layers for name, value in layer.items()}))


def test_each_limit_is_read() -> None:
    """Its size, what is left, and when it is whole again, in UTC."""
    limits = read(
        {"content-type": "application/json"},
        of("requests", 1000, 999, "2026-11-20T12:00:00Z"),
        of("input-tokens", 450_000, 0, "2026-11-20T13:00:30+01:00"),
        of("output-tokens", 90_000, 90_000, "2026-11-20T12:00:00.250Z"),
        of("tokens", 540_000, 90_000, "2026-11-20T12:00:30Z"),
    )

    assert limits == RateLimits(
        requests=Allowance(limit=1000, remaining=999, reset_at=NOON),
        input_tokens=Allowance(limit=450_000, remaining=0, reset_at=NOON + timedelta(seconds=30)),
        output_tokens=Allowance(limit=90_000, remaining=90_000, reset_at=NOON + timedelta(seconds=0.25)),
    )


def test_tokens_at_large_stand_for_what_is_not_named() -> None:
    """They are the tightest limit there is."""
    limits = read(of("Output-Tokens", 7, 6), of("TOKENS", 9, 8))

    assert limits == RateLimits(
        input_tokens=Allowance(limit=9, remaining=8, reset_at=NOON),
        output_tokens=Allowance(limit=7, remaining=6, reset_at=NOON),
    )


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"retry-after": "3"},
        {"anthropic-ratelimit-requests-limit": "50"},
        of("requests", limit="many"),
        of("requests", limit="nan"),
        of("requests", limit=-1),
        of("requests", remaining="inf"),
        of("requests", reset="soon"),
        of("requests", reset="2026-11-20T12:00:00"),
        of("requests", reset="0001-01-01T00:00:00+10:00"),
        of("requests", reset="1763640000"),
        of("unicorns"),
        {"anthropic-fast-input-tokens-limit": "5"},
    ],
    ids=repr,
)
def test_what_cannot_be_read_is_not_there(headers: dict[str, str]) -> None:
    """A part of a limit is none."""
    assert read(headers) is None


def test_bytes_that_are_no_text_are_not_read() -> None:
    """They are no error either."""
    headers = [(name.encode(), b"\xff\xfe") for name in of("requests")]

    assert read_limits(httpx2.Headers(headers)) is None


def test_one_limit_that_cannot_be_read_leaves_the_others() -> None:
    """So does one that is overdrawn: nothing is left of it."""
    limits = read(of("requests", limit="x"), of("input-tokens", remaining=-3))

    assert limits == RateLimits(input_tokens=Allowance(limit=50, remaining=0, reset_at=NOON))


@pytest.mark.parametrize(
    "usage",
    [
        {
            "input_tokens": 10,
            "cache_creation_input_tokens": 300,
            "cache_read_input_tokens": 5000,
            "output_tokens": 7,
        },
        Usage.construct(
            input_tokens=10, cache_creation_input_tokens=300, cache_read_input_tokens=5000, output_tokens=7
        ),
    ],
    ids=["json", "model"],
)
def test_what_is_read_from_the_cache_does_not_count(usage: object) -> None:
    """What is written to it does."""
    assert work_of(usage) == Work(requests=1, input_tokens=310, output_tokens=7)


@pytest.mark.parametrize(
    "usage", [None, {}, [], "x", {"input_tokens": None, "output_tokens": "7"}, {"input_tokens": -5}], ids=repr
)
def test_usage_that_cannot_be_read_is_a_call_without_tokens(usage: object) -> None:
    """A call it was."""
    assert work_of(usage) == Work(requests=1)
