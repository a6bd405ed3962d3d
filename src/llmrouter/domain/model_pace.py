"""What `llmrouter.domain.pacing` knows of a model: its limits, its use, its refusals, its usual requests.

Instants are in seconds of one monotonic clock.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from llmrouter.domain.rates import PerMinute, Work, usage_p95

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from llmrouter.domain.live import Allowance, RateLimits

_LATEST_WEIGHT = 0.1
"""Of the latest value in a moving average."""

_USE_MINUTES = 60
"""How long the application's use is remembered."""

_BACK_OFF_SECONDS, _BACK_OFF_MOST = 1.0, 60.0
_REPEAT_SECONDS = 60.0
"""A refusal so soon after the last wait is over says that the rate is too high."""

_TROUBLE = 8
"""Calls that fail in a row, with no answer in between, before fewer are made."""

_SLOWER, _SLOWEST = 0.5, 0.1
_RECOVERY_PER_SECOND = 0.1 / 60
"""A rate that was halved is back after five minutes."""

_FIGURES = ("requests", "input_tokens", "output_tokens")
_NO_USE = PerMinute(requests=0.0, input_tokens=0.0, output_tokens=0.0)


@dataclass(slots=True)
class Bucket:
    """What may be used now of something that comes in steadily. Full at first."""

    level: float = math.inf
    filled_at: float = 0.0

    def fill(self, now: float, amount: float, most: float) -> None:
        """Adds what came in until now."""
        self.level = min(most, self.level + amount)
        self.filled_at = now

    def room(self) -> int:
        """How many calls there is room for."""
        return int(self.level + 1e-9)


@dataclass(slots=True)
class _Left:
    """What may be used of one limit of a model until the API says more about it."""

    most: float
    """The share of the limit."""
    level: float
    """The share of what is left of it."""
    filled_at: float
    """Until when that was reckoned; in the future where the API says that it takes more than a minute."""

    def room(self, now: float, cost: float) -> float:
        """How many calls there is room for; one when nothing is used, however much it takes."""
        passed = max(0.0, now - self.filled_at)
        self.level = min(self.most, self.level + self.most * passed / 60)
        self.filled_at += passed
        if cost <= 0:
            return math.inf
        return max(1.0 if self.level >= self.most else 0.0, math.floor(self.level / cost + 1e-9))


def _left_of(now: float, at: datetime, allowance: Allowance, share: float) -> _Left:
    until = (allowance.reset_at - at).total_seconds()
    return _Left(
        most=share * allowance.limit,
        level=share * max(0.0, min(allowance.remaining, allowance.limit)),
        filled_at=now + max(0.0, until - 60),
    )


@dataclass(slots=True)
class Average:
    """A moving average; while there are few values, that of all."""

    value: float = 0.0
    count: int = 0

    def add(self, value: float) -> None:
        """One more value."""
        self.count += 1
        self.value += (value - self.value) * max(1 / self.count, _LATEST_WEIGHT)


@dataclass(slots=True)
class Use:
    """What the application used in each of the last minutes."""

    minutes: dict[int, PerMinute] = field(default_factory=dict)
    first: int | None = None
    """The minute in which it was first seen."""
    known: tuple[int, PerMinute] | None = None
    """The 95th percentile, and in which minute it was found."""

    def add(self, now: float, work: Work) -> None:
        """One more call."""
        minute = int(now // 60)
        if self.first is None:
            self.first = minute
        used = self.minutes.get(minute, _NO_USE)
        self.minutes[minute] = PerMinute(
            requests=used.requests + work.requests,
            input_tokens=used.input_tokens + work.input_tokens,
            output_tokens=used.output_tokens + work.output_tokens,
        )
        self.known = None

    def busy(self, now: float) -> PerMinute:
        """What it uses in a busy minute."""
        minute = int(now // 60)
        if self.known is None or self.known[0] != minute:
            first = minute + 1 if self.first is None else max(self.first, minute - _USE_MINUTES + 1)
            for old in [one for one in self.minutes if one < first]:
                del self.minutes[old]
            used = [self.minutes.get(one, _NO_USE) for one in range(first, minute + 1)]
            self.known = minute, usage_p95(used)
        return self.known[1]


@dataclass(slots=True)
class ModelPace:
    """What is known of a model."""

    use: Use = field(default_factory=Use)
    pace: Bucket = field(default_factory=Bucket)
    input_tokens: Average = field(default_factory=Average)
    """Of one request."""
    output_tokens: Average = field(default_factory=Average)
    limits: PerMinute = field(default_factory=PerMinute)
    left: dict[str, _Left] = field(default_factory=dict)
    """By figure of a `PerMinute`."""
    waits_until: float = -math.inf
    back_off: float = _BACK_OFF_SECONDS
    slowed: float = 1.0
    """To which share the rate was lowered when the last wait was over."""
    failures: int = 0
    """Calls in a row that were not answered, though not for being too many."""

    @property
    def usual(self) -> Work:
        """The work of one request; without tokens while they are not known."""
        return Work(
            requests=1.0, input_tokens=self.input_tokens.value, output_tokens=self.output_tokens.value
        )

    def took(self, work: Work) -> None:
        """What a call used."""
        if work.input_tokens + work.output_tokens > 0:
            self.input_tokens.add(work.input_tokens)
            self.output_tokens.add(work.output_tokens)

    def speed(self, now: float) -> float:
        """What part of its rate may be used after refusals."""
        passed = max(0.0, now - self.waits_until)
        return min(1.0, self.slowed + _RECOVERY_PER_SECOND * passed)

    def refuse(self, now: float, retry_after: timedelta | None) -> None:
        """Waits, and lowers the rate if it has not been long since the last wait."""
        asked = None if retry_after is None else max(retry_after.total_seconds(), _BACK_OFF_SECONDS)
        if now < self.waits_until:
            # It began before the wait, and tells nothing new but perhaps a longer one.
            self.waits_until = max(self.waits_until, now + (asked or 0.0))
            return
        slower = _SLOWER if now - self.waits_until < _REPEAT_SECONDS else 1.0
        self.slowed = max(_SLOWEST, slower * self.speed(now))
        if asked is None:
            asked, self.back_off = self.back_off, min(2 * self.back_off, _BACK_OFF_MOST)
        self.waits_until = now + asked

    def fail(self, now: float) -> None:
        """Waits, longer each time, while nothing is answered: the API is down, or cannot be reached."""
        self.failures += 1
        if self.failures < _TROUBLE or now < self.waits_until:
            return
        self.slowed = self.speed(now)
        self.waits_until, self.back_off = now + self.back_off, min(2 * self.back_off, _BACK_OFF_MOST)

    def forgive(self, now: float) -> None:
        """It takes calls again; one that began before a wait does not say so."""
        self.failures = 0
        if now >= self.waits_until:
            self.back_off = _BACK_OFF_SECONDS

    def note(self, now: float, at: datetime, limits: RateLimits | None, share: float) -> None:
        """What the API says of its limits."""
        if limits is None:
            return
        named = {figure: getattr(limits, figure) for figure in _FIGURES}
        told = {figure: allowance for figure, allowance in named.items() if allowance is not None}
        self.left.update({figure: _left_of(now, at, one, share) for figure, one in told.items()})
        self.limits = replace(self.limits, **{figure: one.limit for figure, one in told.items()})

    def room_left(self, now: float) -> float:
        """How many calls there is room for under what is left of its limits."""
        usual = self.usual
        rooms = [left.room(now, getattr(usual, figure)) for figure, left in self.left.items()]
        return min(rooms, default=math.inf)

    def take_left(self, calls: int = 1) -> None:
        """Calls begin: what they are expected to use is gone."""
        usual = self.usual
        for figure, left in self.left.items():
            left.level -= calls * getattr(usual, figure)
