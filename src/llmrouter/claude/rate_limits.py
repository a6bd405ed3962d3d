"""What an answer says of the account's rate limits, and what it counts against them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

from llmrouter.domain.live import Allowance, RateLimits
from llmrouter.domain.rates import Work

if TYPE_CHECKING:
    import httpx2

_Keys: TypeAlias = tuple[bytes, bytes, bytes]


def _keys(kind: str) -> _Keys:
    limit, remaining, reset = (
        f"anthropic-ratelimit-{kind}-{name}".encode() for name in ("limit", "remaining", "reset")
    )
    return limit, remaining, reset


_REQUESTS = _keys("requests")
_INPUT = _keys("input-tokens")
_OUTPUT = _keys("output-tokens")
_TOKENS = _keys("tokens")


def read_limits(headers: httpx2.Headers) -> RateLimits | None:
    """The limits that `anthropic-ratelimit-…` headers name, or None where they name none that can be read.

    Where those of input or output tokens are missing, what is said of tokens at large stands for them:
    it is the tightest of the limits on tokens (the API's reference of response headers).
    """
    # Real-time calls wait for this, and each look-up in `Headers` encodes and compares anew.
    given = {name.lower(): value for name, value in headers.raw}
    requests = _allowance(given, _REQUESTS)
    input_tokens = _allowance(given, _INPUT) or _allowance(given, _TOKENS)
    output_tokens = _allowance(given, _OUTPUT) or _allowance(given, _TOKENS)
    if requests is None and input_tokens is None and output_tokens is None:
        return None
    return RateLimits(requests=requests, input_tokens=input_tokens, output_tokens=output_tokens)


def _allowance(given: Mapping[bytes, bytes], keys: _Keys) -> Allowance | None:
    try:
        limit, remaining = float(given[keys[0]]), float(given[keys[1]])
        reset_at = _instant(given[keys[2]])
    except (LookupError, ValueError, OverflowError):
        return None
    if not (math.isfinite(limit) and math.isfinite(remaining)) or limit < 0:
        return None
    return Allowance(limit=limit, remaining=max(0.0, remaining), reset_at=reset_at)


@lru_cache(maxsize=64)  # The limits of one answer often have the same, and this is on the way of live calls.
def _instant(text: bytes) -> datetime:
    at = datetime.fromisoformat(text.decode("ascii"))
    if at.tzinfo is None:
        raise ValueError("an instant without a time zone")
    return at.astimezone(UTC)


def work_of(usage: object) -> Work:
    """What one answered call counts against the limits, by the `usage` of its message.

    Tokens read from the prompt cache do not count (the API's page on rate limits).

    Args:
        usage: As JSON data, or as the SDK's model of it; what is none counts as no tokens.
    """
    counts = usage if isinstance(usage, Mapping) else getattr(usage, "__dict__", {})
    return Work(
        requests=1,
        input_tokens=_count(counts, "input_tokens") + _count(counts, "cache_creation_input_tokens"),
        output_tokens=_count(counts, "output_tokens"),
    )


def _count(counts: Mapping[str, Any], name: str) -> int:
    count = counts.get(name)
    return count if isinstance(count, int) and count > 0 else 0
