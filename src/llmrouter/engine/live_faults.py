"""What becomes of requests whose live call was not answered, and what keeps all of them waiting."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from llmrouter.domain.batches import Answer
from llmrouter.domain.blocks import Hold
from llmrouter.domain.live import LiveCallError
from llmrouter.domain.requests import OutcomeKind
from llmrouter.errors import StoreError

if TYPE_CHECKING:
    from datetime import datetime

    from llmrouter.domain.requests import Lane
    from llmrouter.ports import Clock

_FIRST_PAUSE = timedelta(seconds=5)
_LONGEST_PAUSE = timedelta(minutes=1)
_DOUBLINGS = 10
_SPENT_FIRST, _SPENT_LONGEST = timedelta(minutes=1), timedelta(hours=1)
"""A spend limit that names no end: it can be raised at any time, and a refusal costs nothing. What looks
like one may be a 429 whose `retry-after` a gateway left out: so it is short at first, then doubles."""

_SPENT_MOST = timedelta(days=31)
_FIRST_HOLD, _LONGEST_HOLD = timedelta(seconds=30), timedelta(minutes=5)
"""Of a lane whose key was not accepted."""

_PROBE = timedelta(minutes=1)
"""How long after a hold only what goes live already is tried: no batch is given up for it before that."""

_LOST = "timeout_error", "The answers of several live calls got lost"
_FAILED = "api_error", "The API failed several live calls"
_REFUSED = "permission_error", "The API refused several live calls, and accepted the same key for others"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What to do with a request whose call was not answered."""

    undone: bool
    """Whether the API has clearly not done the call, so that it is paid once at most if it is made again."""
    pause: timedelta = timedelta(0)
    """How long to wait before it is made again."""
    answer: Answer | None = None
    """Its outcome: it is not made again."""


@dataclass(frozen=True, slots=True)
class _Until:
    """An instant by both clocks: one of them may have been set, the other stands still in a sleep."""

    at: datetime
    seconds: float
    """Of the monotonic clock."""

    def lasts(self, clock: Clock, longer: timedelta = timedelta(0)) -> bool:
        return clock.monotonic() < self.seconds + longer.total_seconds() and clock.now() < self.at + longer


@dataclass(slots=True)
class _Failures:
    """Of one request."""

    unclear: int = 0
    """Calls whose answer got lost."""
    alone: int = 0
    """Calls that the API failed while it answered others."""
    refused: int = 0
    """Calls for which the key, or its rights, did not suffice, though they did for others."""
    limited: int = 0
    """Calls that were too many for the moment."""
    pauses: int = 0
    answered_before: int = 0
    """How many calls of all had been answered at its last failure."""


class LiveFaults:
    """Judges each failed call. Used by one thread; others may ask for the holds."""

    def __init__(self, clock: Clock, *, max_attempts: int) -> None:
        """Makes a judge.

        Args:
            clock: The machine's.
            max_attempts: Calls for one request whose answer got lost, or that the API failed while it
                answered others, before that is its outcome.
        """
        self._clock = clock
        self._max_attempts = max_attempts
        self._failures: dict[str, _Failures] = {}
        self._answered = 0
        self._spent_until: _Until | None = None
        self._unnamed = 0
        """Spend limits in a row that named no end, without an answer since the first."""
        self._refused_until: dict[str, _Until] = {}
        self._refusals: dict[str, int] = {}
        """Calls of each lane that were refused for the key since any was answered."""

    @property
    def spent_until(self) -> datetime | None:
        """Until when no call is made since a spend limit is reached; None when none is."""
        until = self._spent_until
        return until.at if until is not None and until.lasts(self._clock) else None

    @property
    def doubts_spending(self) -> bool:
        """Whether a spend limit was reached, and no call since then has shown that it is over."""
        return self._spent_until is not None and self._spent_until.lasts(self._clock, _PROBE)

    def lane_hold(self, lane_id: str) -> Hold | None:
        """What stops the calls of one lane."""
        until = self._refused_until.get(lane_id)
        return Hold.CREDENTIAL if until is not None and until.lasts(self._clock) else None

    def lane_doubt(self, lane_id: str) -> Hold | None:
        """The same, and until a call has shown that it is over: nothing else is to go live in that lane."""
        until = self._refused_until.get(lane_id)
        doubted = until is not None and lane_id in self._refusals and until.lasts(self._clock, _PROBE)
        return Hold.CREDENTIAL if doubted else self.lane_hold(lane_id)

    def forgive(self, request_id: str) -> None:
        """A call was answered."""
        self._answered += 1
        self._unnamed = 0
        self._refusals.clear()
        if self.spent_until is None:  # Or else it was under way before.
            self._spent_until = None
        self._failures.pop(request_id, None)

    def judge(self, lane: Lane, request_id: str, error: Exception) -> Verdict:
        """What to do with a request whose call ended so."""
        if isinstance(error, StoreError):  # It could not be asked for the lease, so nothing was sent.
            return Verdict(undone=True, pause=self._pause(request_id))
        if not isinstance(error, LiveCallError):  # Nobody foresaw it: the call may have been done.
            return self._judge_fault(request_id, unclear=True, failed=False)
        if error.spent:
            now = self._clock.now()
            named = error.regain_at - now if error.regain_at else self._unnamed_span()
            self._spent_until = self._in(min(max(named, _FIRST_PAUSE), _SPENT_MOST))
        elif error.credential:
            return self._judge_refused(lane.lane_id, request_id)
        elif error.limited:
            return Verdict(undone=True, pause=self._yield_to_others(request_id))
        else:
            # Without a status nothing was sent, or its answer got lost: the API has found no fault.
            return self._judge_fault(request_id, unclear=error.unclear, failed=error.status is not None)
        return Verdict(undone=True)

    def _judge_refused(self, lane_id: str, request_id: str) -> Verdict:
        """The key was not accepted, or its rights: for any call, or for what this request asks for."""
        failures = self._of(request_id)
        failures.refused += self._others_answered(request_id)
        if failures.refused >= self._max_attempts:
            del self._failures[request_id]
            return Verdict(undone=False, answer=_failed_answer(request_id, *_REFUSED))
        self._refusals[lane_id] = self._refusals.get(lane_id, 0) + 1
        doublings = min(self._refusals[lane_id] - 1, _DOUBLINGS)
        hold = min(timedelta(seconds=_FIRST_HOLD.total_seconds() * 2.0**doublings), _LONGEST_HOLD)
        self._refused_until[lane_id] = self._in(hold)
        # The others go first then: if they are answered, it is this request that may not.
        return Verdict(undone=True, pause=hold + _FIRST_PAUSE)

    def _unnamed_span(self) -> timedelta:
        # Calls that were under way together are refused together.
        self._unnamed += self.spent_until is None or self._unnamed == 0
        doublings = min(self._unnamed - 1, _DOUBLINGS)
        return min(timedelta(seconds=_SPENT_FIRST.total_seconds() * 2.0**doublings), _SPENT_LONGEST)

    def _in(self, span: timedelta) -> _Until:
        return _Until(self._clock.now() + span, self._clock.monotonic() + span.total_seconds())

    def _yield_to_others(self, request_id: str) -> timedelta:
        """A pause from the second time on: it may be too large for the limit by itself, for ever."""
        failures = self._of(request_id)
        failures.limited += 1
        return self._pause(request_id) if failures.limited > 1 else timedelta(0)

    def _others_answered(self, request_id: str) -> bool:
        """Whether the API has answered others since this one last failed."""
        failures = self._of(request_id)
        before, failures.answered_before = failures.answered_before, self._answered
        return self._answered > before

    def _judge_fault(self, request_id: str, *, unclear: bool, failed: bool) -> Verdict:
        """The API failed it, or its answer got lost, or it could not be reached."""
        failures = self._of(request_id)
        failures.unclear += unclear
        # While it answers nobody, that is not the request's fault.
        failures.alone += self._others_answered(request_id) and failed and not unclear
        if max(failures.unclear, failures.alone) < self._max_attempts:
            return Verdict(undone=not unclear, pause=self._pause(request_id))
        del self._failures[request_id]
        return Verdict(undone=False, answer=_failed_answer(request_id, *(_LOST if unclear else _FAILED)))

    def _pause(self, request_id: str) -> timedelta:
        failures = self._of(request_id)
        failures.pauses += 1
        doublings = min(failures.pauses - 1, _DOUBLINGS)
        return min(timedelta(seconds=_FIRST_PAUSE.total_seconds() * 2.0**doublings), _LONGEST_PAUSE)

    def _of(self, request_id: str) -> _Failures:
        return self._failures.setdefault(request_id, _Failures(answered_before=self._answered))


def _failed_answer(request_id: str, error_type: str, text: str) -> Answer:
    """The outcome of a request whose calls failed too often, in the form of a result line."""
    envelope = {"type": "error", "error": {"type": error_type, "message": text}}
    line = {"custom_id": request_id, "result": {"type": "errored", "error": envelope}}
    return Answer(request_id=request_id, kind=OutcomeKind.ERRORED, raw=json.dumps(line).encode(), retry=False)
