"""A clock for the engine that stands still until a test moves it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

START = datetime(2026, 11, 20, 12, tzinfo=UTC)


class FakeClock:
    """Implements `llmrouter.ports.Clock`."""

    def __init__(self, start: datetime = START) -> None:
        self._now = start
        self._elapsed = 0.0

    def now(self) -> datetime:
        """The instant it stands at."""
        return self._now

    def monotonic(self) -> float:
        """Seconds it has moved on; setting it does not count."""
        return self._elapsed

    def advance(self, span: timedelta) -> None:
        """Moves on."""
        self._now += span
        self._elapsed += span.total_seconds()

    def set(self, instant: datetime) -> None:
        """Somebody sets the machine's clock."""
        self._now = instant
