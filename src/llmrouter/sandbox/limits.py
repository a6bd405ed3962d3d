"""What the API takes at most: sizes of requests, and requests and tokens a minute."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from llmrouter.sandbox.clocks import format_instant
from llmrouter.sandbox.errors import ApiError

if TYPE_CHECKING:
    from llmrouter.sandbox.clocks import Clock

UNLIMITED = {"requests": 4_000, "input-tokens": 2_000_000, "output-tokens": 400_000}
"""What the headers tell of where there is no limit."""

_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The sizes, and the tokens a minute, above which a call is refused; tests make them small."""

    batch_requests: int = 100_000
    """Requests in one batch."""
    batch_bytes: int = 256_000_000
    """Size of the body that creates a batch."""
    message_bytes: int = 32_000_000
    """Size of any other body."""
    queued_requests: int | None = None
    """Requests in all batches that have not ended; None: any number."""
    input_tokens_per_minute: int | None = None
    """Of live calls; None: any number. A call is let in while there is one token left."""
    output_tokens_per_minute: int | None = None
    """Of the answers to live calls; None: any number."""


class RateLimit:
    """A token bucket on the sandbox's clock, filled evenly over the minute.

    Args:
        name: what is counted, as the headers call it.
        per_minute: how many a minute; None: any number, and the headers tell of `UNLIMITED`.
        clock: the sandbox's clock.
    """

    def __init__(self, name: str, per_minute: int | None, clock: Clock) -> None:
        if per_minute is not None and per_minute < 1:
            raise ValueError(f"{name} a minute must be 1 or more, not {per_minute!r}")
        self.name = name
        self.per_minute = per_minute or UNLIMITED[name]
        self._enforced = per_minute is not None
        self._clock = clock
        self._level = float(self.per_minute)
        self._filled_at = clock.now()
        self._lock = threading.Lock()

    def take(self, amount: int = 1) -> int | None:
        """Takes so many, or says in how many of the sandbox's seconds there is one again.

        Where there is one, there is enough: what is taken beyond it is waited for afterwards.
        """
        with self._lock:
            self._fill()
            if self._level >= 1 - _ROUNDING:
                self._level -= amount
            elif self._enforced:
                return max(1, math.ceil((1 - self._level) * 60 / self.per_minute))
            return None

    def look(self) -> tuple[int, datetime]:
        """How many are left, and when all of them are there again."""
        with self._lock:
            now = self._fill()
            missing_seconds = (self.per_minute - self._level) * 60 / self.per_minute
            return max(0, int(self._level)), now + timedelta(seconds=missing_seconds)

    def _fill(self) -> datetime:
        now = self._clock.now()
        elapsed_seconds = (now - self._filled_at).total_seconds()
        self._level = min(self.per_minute, self._level + elapsed_seconds * self.per_minute / 60)
        self._filled_at = now
        return now


class Rates:
    """The rate limits of a group of endpoints.

    Args:
        clock: the sandbox's clock.
        requests: requests a minute; None: any number.
        input_tokens: input tokens a minute; None: any number.
        output_tokens: output tokens a minute; None: any number.
    """

    def __init__(
        self,
        clock: Clock,
        requests: int | None,
        input_tokens: int | None = None,
        output_tokens: int | None = None,
    ) -> None:
        self._requests = RateLimit("requests", requests, clock)
        self._input = RateLimit("input-tokens", input_tokens, clock)
        self._output = RateLimit("output-tokens", output_tokens, clock)

    def admit(self) -> None:
        """Counts a call; raises ApiError (429) when there were too many."""
        self._take(self._requests, 1)

    def spend(self, input_tokens: int, output_tokens: int) -> None:
        """Counts the tokens of an answer; raises ApiError (429) when there were too many before it."""
        for limit in (self._input, self._output):
            self._take(limit, 0)
        self._take(self._input, input_tokens)
        self._take(self._output, output_tokens)

    def headers(self) -> dict[str, str]:
        """The `anthropic-ratelimit-…` headers."""
        limits = (self._requests, self._input, self._output)
        shown = {limit.name: (limit.per_minute, *limit.look()) for limit in limits}
        (limit_in, left_in, reset_in), (limit_out, left_out, reset_out) = list(shown.values())[1:]
        shown["tokens"] = (limit_in + limit_out, left_in + left_out, max(reset_in, reset_out))
        headers: dict[str, str] = {}
        for name, (limit, left, reset_at) in shown.items():
            headers[f"anthropic-ratelimit-{name}-limit"] = str(limit)
            headers[f"anthropic-ratelimit-{name}-remaining"] = str(left)
            headers[f"anthropic-ratelimit-{name}-reset"] = format_instant(reset_at) or ""
        return headers

    def _take(self, limit: RateLimit, amount: int) -> None:
        retry_after_seconds = limit.take(amount)
        if retry_after_seconds is not None:
            message = f"Number of {limit.name.replace('-', ' ')} has exceeded your rate limit"
            headers = {**self.headers(), "retry-after": str(retry_after_seconds)}
            raise ApiError("rate_limit_error", message, headers=headers)
