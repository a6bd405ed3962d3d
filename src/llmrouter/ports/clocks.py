"""The port of time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from datetime import datetime


class Clock(Protocol):
    """Where the time comes from."""

    def now(self) -> datetime:
        """The present instant, aware, UTC. It may jump: somebody sets the machine's clock."""
        ...

    def monotonic(self) -> float:
        """Seconds since some moment in the past. Never jumps; means nothing in another process."""
        ...
