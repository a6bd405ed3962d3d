"""The sandbox's time: driven by a test, or real time sped up."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Protocol


class Clock(Protocol):
    """Where the sandbox reads the time. Safe to use from several threads."""

    def now(self) -> datetime:
        """The sandbox's present instant, aware UTC; never goes back."""

    def advance(self, span: timedelta) -> None:
        """Moves the present instant forward by `span`; raises ValueError when it is negative."""


class ManualClock:
    """A clock that stands still until `advance` is called.

    Args:
        start: the first instant, aware; by default the machine's present time.

    Raises:
        ValueError: `start` has no time zone.
    """

    def __init__(self, start: datetime | None = None) -> None:
        self._now = _aware_utc(start)
        self._lock = threading.Lock()

    def now(self) -> datetime:
        """The instant the clock stands at, aware UTC."""
        with self._lock:
            return self._now

    def advance(self, span: timedelta) -> None:
        """Moves the clock forward by `span`; raises ValueError when it is negative."""
        _refuse_negative(span)
        with self._lock:
            self._now += span


class ScaledClock:
    """Real time, sped up: `start` + elapsed real time x `speed`.

    Args:
        speed: sandbox seconds per real second; 3600 makes an hour pass in a second.
        start: the first instant, aware; by default the machine's present time.

    Raises:
        ValueError: `speed` is not above zero, or `start` has no time zone.
    """

    def __init__(self, speed: float = 1.0, start: datetime | None = None) -> None:
        if not speed > 0:
            raise ValueError(f"speed must be above zero, not {speed!r}")
        self.speed = speed
        self._start = _aware_utc(start)
        self._started_at = time.monotonic()
        self._lock = threading.Lock()

    def now(self) -> datetime:
        """The sandbox's present instant, aware UTC."""
        elapsed_seconds = time.monotonic() - self._started_at
        with self._lock:
            return self._start + timedelta(seconds=elapsed_seconds * self.speed)

    def advance(self, span: timedelta) -> None:
        """Jumps forward by `span` of sandbox time; raises ValueError when it is negative."""
        _refuse_negative(span)
        with self._lock:
            self._start += span


def format_instant(instant: datetime | None) -> str | None:
    """RFC 3339 with microseconds and `Z`, as the API writes instants."""
    if instant is None:
        return None
    return instant.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _aware_utc(start: datetime | None) -> datetime:
    if start is None:
        return datetime.now(UTC)
    if start.tzinfo is None:
        raise ValueError("start must have a time zone")
    return start.astimezone(UTC)


def _refuse_negative(span: timedelta) -> None:
    if span < timedelta(0):
        raise ValueError(f"a clock cannot go back by {-span}")
