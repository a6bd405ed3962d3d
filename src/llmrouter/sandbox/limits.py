"""What the API takes at most: sizes of requests, and requests a minute."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from llmrouter.sandbox.batches import format_instant

if TYPE_CHECKING:
    from llmrouter.sandbox.clocks import Clock

_UNLIMITED_PER_MINUTE = 4_000
_ROUNDING = 1e-9
_TOKENS_PER_MINUTE = {"input-tokens": 2_000_000, "output-tokens": 400_000, "tokens": 2_400_000}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The sizes above which a call is refused; tests make them small."""

    batch_requests: int = 100_000
    """Requests in one batch."""
    batch_bytes: int = 256_000_000
    """Size of the body that creates a batch."""
    message_bytes: int = 32_000_000
    """Size of any other body."""
    queued_requests: int | None = None
    """Requests in all batches that have not ended; None: any number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """Where a rate limit stands after a call asked to be let in."""

    per_minute: int
    remaining: int
    reset_at: datetime
    """When the full number of requests can be made again."""
    retry_after_seconds: int | None
    """None: the call was let in; else the time, in the sandbox's seconds, until the next one is."""

    def headers(self) -> dict[str, str]:
        """The `anthropic-ratelimit-…` headers, and `retry-after` when the call was not let in."""
        reset = format_instant(self.reset_at) or ""
        headers = {
            "anthropic-ratelimit-requests-limit": str(self.per_minute),
            "anthropic-ratelimit-requests-remaining": str(self.remaining),
            "anthropic-ratelimit-requests-reset": reset,
        }
        for name, limit in _TOKENS_PER_MINUTE.items():
            headers[f"anthropic-ratelimit-{name}-limit"] = str(limit)
            headers[f"anthropic-ratelimit-{name}-remaining"] = str(limit)
            headers[f"anthropic-ratelimit-{name}-reset"] = reset
        if self.retry_after_seconds is not None:
            headers["retry-after"] = str(self.retry_after_seconds)
        return headers


class RateLimit:
    """A token bucket on the sandbox's clock, filled evenly over the minute.

    Args:
        per_minute: requests a minute; None: every call is let in, and the headers tell of 4,000.
        clock: the sandbox's clock.
    """

    def __init__(self, per_minute: int | None, clock: Clock) -> None:
        if per_minute is not None and per_minute < 1:
            raise ValueError(f"requests_per_minute must be 1 or more, not {per_minute!r}")
        self._enforced = per_minute is not None
        self._per_minute = per_minute or _UNLIMITED_PER_MINUTE
        self._clock = clock
        self._level = float(self._per_minute)
        self._filled_at = clock.now()
        self._lock = threading.Lock()

    def take(self) -> Allowance:
        """Asks for one call to be let in."""
        with self._lock:
            now = self._clock.now()
            rate = self._per_minute / 60
            elapsed_seconds = (now - self._filled_at).total_seconds()
            self._level = min(self._per_minute, self._level + elapsed_seconds * rate)
            self._filled_at = now
            retry_after = None
            if self._level >= 1 - _ROUNDING:
                self._level -= 1
            elif self._enforced:
                retry_after = max(1, math.ceil((1 - self._level) / rate))
            return Allowance(
                per_minute=self._per_minute,
                remaining=int(self._level),
                reset_at=now + timedelta(seconds=(self._per_minute - self._level) / rate),
                retry_after_seconds=retry_after,
            )
