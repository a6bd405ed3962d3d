"""A clock for the engine that stands still until a test moves it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

START = datetime(2026, 11, 20, 12, tzinfo=UTC)


class FakeClock:
    """Implements `llmrouter.ports.Clock`."""

    def __init__(self, start: datetime = START) -> None:
        self._now = start

    def now(self) -> datetime:
        """The instant it stands at."""
        return self._now

    def advance(self, span: timedelta) -> None:
        """Moves on."""
        self._now += span
