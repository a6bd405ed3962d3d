"""The pace of live calls, for all threads of a process."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import TYPE_CHECKING

from llmrouter.domain.live import LiveCallError

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import datetime

    from llmrouter.domain.live import LiveReply, Seen
    from llmrouter.domain.pacing import Pacer
    from llmrouter.domain.rates import PerMinute, Work
    from llmrouter.ports import Clock


class Pace:
    """A `Pacer` under a lock, on the machine's clock."""

    def __init__(self, pacer: Pacer, clock: Clock) -> None:
        self._pacer = pacer
        self._clock = clock
        self._lock = threading.Lock()

    def begin(self, model: str, most: int) -> int:
        """Lets so many calls of a model begin, of the number that is wanted; answers with how many."""
        now = self._clock.monotonic()
        with self._lock:
            count = min(self._pacer.room(now, model), most)
            for _ in range(count):
                self._pacer.begin(now, model)
        return max(0, count)

    def end(self, model: str, came: LiveReply | Exception, *, usual: bool = True) -> None:
        """A call ended so.

        Args:
            model: Its model.
            came: How.
            usual: Whether it was a request like others, so that it tells how much work those are.
        """
        now, at = self._clock.monotonic(), self._clock.now()
        with self._lock:
            if isinstance(came, LiveCallError):
                self._pacer.failed(now, at, model, came)
            elif isinstance(came, Exception):
                self._pacer.failed(now, at, model, LiveCallError(type(came).__name__))
            else:
                self._pacer.end(now, at, model, came, usual=usual)

    def cancel(self, model: str, count: int) -> None:
        """Calls that were let begin did not: there was nothing to send."""
        now = self._clock.monotonic()
        with self._lock:
            for _ in range(count):
                self._pacer.cancel(now, model)

    def saw(self, seen: Seen) -> None:
        """The application made a call of its own."""
        now, at = self._clock.monotonic(), self._clock.now()
        with self._lock:
            self._pacer.saw(now, at, seen.model, seen.work, seen.limits)

    def rate(self, models: Collection[str]) -> PerMinute:
        """What to plan with when requests of these models are outstanding."""
        now = self._clock.monotonic()
        with self._lock:
            return self._pacer.rate(now, models)

    def usual(self, model: str) -> Work:
        """The work of one request of a model."""
        with self._lock:
            return self._pacer.usual(model)

    @property
    def ramping(self) -> bool:
        """Whether calls would begin below the rate now."""
        now = self._clock.monotonic()
        with self._lock:
            return self._pacer.ramping(now)

    @property
    def knows_limits(self) -> bool:
        """Whether the account's limits are known, by its settings or the API's headers."""
        with self._lock:
            return self._pacer.knows_limits

    @property
    def waits_until(self) -> datetime | None:
        """Until when the API asked to wait with calls; None when it did not."""
        now, at = self._clock.monotonic(), self._clock.now()
        with self._lock:
            until = self._pacer.waits_until(now)
        return None if until is None else at + timedelta(seconds=until - now)
