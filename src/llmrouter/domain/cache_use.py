"""What the prompt cache did for requests, in tokens, as the `usage` of their answers tells."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from llmrouter.domain.prompt_cache import FIVE_MINUTES, ONE_HOUR

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_USAGE = b'"usage"'
_LOOKS = 4
"""How many places that look like a message's `usage` are looked at, from the end of the line."""

_COLON = re.compile(r"\s*:\s*")
_decode = json.JSONDecoder().raw_decode

TokenCounts: TypeAlias = "tuple[int, int, int, int]"
"""Of one answer: input tokens neither read nor written, read, written for five minutes, for an hour."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheUse:
    """The input tokens of requests, by what the prompt cache did to them."""

    requests: int = 0
    """Those whose answers tell."""
    input_tokens: int = 0
    """Neither read nor written."""
    read_tokens: int = 0
    written_5m_tokens: int = 0
    written_1h_tokens: int = 0

    @property
    def hit_rate(self) -> float | None:
        """Which part of what was cached was there already; None where nothing was cached."""
        cached = self.read_tokens + self.written_5m_tokens + self.written_1h_tokens
        return self.read_tokens / cached if cached else None


def saved_tokens(use: CacheUse, read_multiplier: float = 0.1) -> float:
    """What the prompt cache saved, in tokens of uncached input of the same route; negative when it cost.

    A token that is written costs 1.25 for five minutes and 2 for an hour. Those of a batch are worth half of
    live ones. Warm-up calls are not in it.

    Args:
        use: Of one model, or of several that have the same multiplier.
        read_multiplier: What a token that is read costs; 0.05 and 0.025 on some models.
    """
    written = (FIVE_MINUTES.write - 1) * use.written_5m_tokens + (ONE_HOUR.write - 1) * use.written_1h_tokens
    return (1 - read_multiplier) * use.read_tokens - written


def add_uses(earlier: CacheUse, counts: Iterable[TokenCounts]) -> CacheUse:
    """Cache use with some more answers."""
    requests, uncached, read = earlier.requests, earlier.input_tokens, earlier.read_tokens
    written_5m, written_1h = earlier.written_5m_tokens, earlier.written_1h_tokens
    for one in counts:
        requests += 1
        uncached += one[0]
        read += one[1]
        written_5m += one[2]
        written_1h += one[3]
    return CacheUse(
        requests=requests,
        input_tokens=uncached,
        read_tokens=read,
        written_5m_tokens=written_5m,
        written_1h_tokens=written_1h,
    )


def sum_uses(one: CacheUse, other: CacheUse) -> CacheUse:
    """The cache use of both."""
    return CacheUse(
        requests=one.requests + other.requests,
        input_tokens=one.input_tokens + other.input_tokens,
        read_tokens=one.read_tokens + other.read_tokens,
        written_5m_tokens=one.written_5m_tokens + other.written_5m_tokens,
        written_1h_tokens=one.written_1h_tokens + other.written_1h_tokens,
    )


def use_of(raw: bytes) -> CacheUse:
    """The cache use of one answer, as in `Outcome.raw`; nothing where it does not tell."""
    counts = read_token_counts(raw)
    return CacheUse() if counts is None else add_uses(CacheUse(), [counts])


def read_token_counts(raw: bytes) -> TokenCounts | None:
    """The input tokens of one answer; None where its result line does not tell.

    Args:
        raw: As in `Outcome.raw`; may be empty.
    """
    usage = read_usage(raw)
    return None if usage is None else token_counts(usage)


def read_usage(raw: bytes) -> dict[str, Any] | None:
    """The `usage` of a message that is somewhere in some JSON; None where there is none.

    Only that is parsed; it stands near the message's end. A text cannot be taken for it: its quotes
    are escaped. What a model gives a tool can have a `usage` of its own, further ahead.

    Args:
        raw: Whole, or its end.
    """
    end = len(raw)
    for _ in range(_LOOKS):
        end = raw.rfind(_USAGE, 0, end)
        if end < 0:
            return None
        usage = _value_after(raw[end + len(_USAGE) :].decode("utf-8", "replace"))
        if isinstance(usage, dict) and "input_tokens" in usage:
            return usage
    return None


def cache_use_fields(use: CacheUse) -> dict[str, int]:
    """Cache use as plain JSON data."""
    return asdict(use)


def read_cache_use(fields: Mapping[str, Any]) -> CacheUse:
    """The cache use of its JSON data; what is not in it is nothing.

    Raises:
        ValueError: It is none.
    """
    return CacheUse(**{name: int(fields.get(name, 0)) for name in CacheUse.__slots__})


def _value_after(text: str) -> Any:
    """The JSON value that a text gives to the name before it; None where there is none."""
    colon = _COLON.match(text)
    try:
        return None if colon is None else _decode(text, colon.end())[0]
    except (ValueError, RecursionError):
        return None


def token_counts(usage: Mapping[str, Any]) -> TokenCounts:
    """The input tokens that a `usage` tells of."""
    written = _count(usage, "cache_creation_input_tokens")
    by_ttl = usage.get("cache_creation")
    written_1h = _count(by_ttl, "ephemeral_1h_input_tokens") if isinstance(by_ttl, dict) else 0
    # The parts may be left out where the sum is given: then it was for five minutes, the default.
    return (
        _count(usage, "input_tokens"),
        _count(usage, "cache_read_input_tokens"),
        max(0, written - written_1h),
        written_1h,
    )


def _count(usage: Mapping[str, Any], name: str) -> int:
    value = usage.get(name)
    return value if isinstance(value, int) else 0
