"""Lanes that wait since the API did not take their last batch."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from llmrouter.domain.reporting import Hold, HoldCause
from llmrouter.errors import CreateUnclearError

if TYPE_CHECKING:
    from datetime import datetime

    from llmrouter.errors import CreateError
    from llmrouter.ports import Clock

_FIRST = timedelta(seconds=15)
_MOST = timedelta(minutes=15)
_DOUBLINGS = 10
_RETRY_AFTER_MOST = timedelta(days=1)
_SPENT = timedelta(hours=1)
"""A spend limit that names no end: it can be raised at any time, and a refusal costs nothing."""

_SPENT_MOST = timedelta(days=31)
"""Limits turn monthly."""

_SAYS_WHY = frozenset({HoldCause.CREDENTIAL, HoldCause.SPENT, HoldCause.LIMITED})
"""Where the API's words are about the account, and can be shown: others may quote a prompt."""

_ENDED_BY_ASKING = frozenset({HoldCause.CREDENTIAL, HoldCause.SPENT, HoldCause.REFUSED})
"""What a person may have set right, who then asks for a flush."""

log = logging.getLogger("llmrouter.engine")


@dataclass(frozen=True, slots=True)
class _Held:
    hold: Hold
    until_seconds: float
    """Of the monotonic clock."""


class Holds:
    """Which lanes wait, until when and why. May be used from several threads."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._held: dict[str, _Held] = {}

    def all(self) -> dict[str, Hold]:
        """By lane id."""
        with self._lock:
            return {lane_id: held.hold for lane_id, held in self._held.items()}

    def blocks(self, lane_id: str, *, asked: bool) -> bool:
        """Whether a lane has to wait.

        Args:
            lane_id: Which.
            asked: Whether somebody asked for this flush: it ends what a person may have set right.
        """
        with self._lock:
            held = self._held.get(lane_id)
        if held is None or (asked and held.hold.cause in _ENDED_BY_ASKING):
            return False
        # Either clock will do: one of them may have been set, the other stands still in a machine's sleep.
        return self._clock.monotonic() < held.until_seconds and self._clock.now() < held.hold.until

    def hold(self, lane_id: str, error: CreateError) -> None:
        """Lets a lane wait: as long as the API says, or longer each time."""
        now = self._clock.now()
        with self._lock:
            before = self._held.get(lane_id)
            refusals = before.hold.refusals + 1 if before else 1
            span = _span(error, refusals, now)
            cause = _cause(error)
            hold = Hold(
                lane_id=lane_id,
                since=before.hold.since if before else now,
                until=now + span,
                cause=cause,
                reason=str(error) if cause in _SAYS_WHY else error.brief,
                refusals=refusals,
            )
            self._held[lane_id] = _Held(hold, self._clock.monotonic() + span.total_seconds())
        until = hold.until.isoformat(timespec="seconds")
        log.warning("the lane waits until %s: %s", until, hold.reason, extra={"lane": lane_id})

    def end(self, lane_id: str) -> None:
        """The API took a batch of this lane."""
        with self._lock:
            self._held.pop(lane_id, None)


def _span(error: CreateError, refusals: int, now: datetime) -> timedelta:
    if error.spent:
        named = error.regain_at - now if error.regain_at else _SPENT
        return min(max(named, _FIRST), _SPENT_MOST)
    longer = min(_FIRST * 2 ** min(refusals - 1, _DOUBLINGS), _MOST)
    return min(error.retry_after or longer, _RETRY_AFTER_MOST)


def _cause(error: CreateError) -> HoldCause:
    if isinstance(error, CreateUnclearError):
        return HoldCause.UNCLEAR
    if error.spent:
        return HoldCause.SPENT
    if error.credential:
        return HoldCause.CREDENTIAL
    return HoldCause.LIMITED if error.limited else HoldCause.REFUSED
