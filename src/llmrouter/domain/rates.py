"""How much may go live: the account's limits, less what the application itself uses of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

LIVE_SHARE = 0.8
"""What part of the spare limits escalations may use: the rest absorbs errors of the estimate."""

RAMP_FIRST_SHARE = 0.1
"""Of the rate, at first after a pause. The API answers sudden bursts with 429."""

RAMP = timedelta(minutes=1)
"""In which it doubles."""

RAMP_PAUSE = timedelta(minutes=5)
"""After so long without a live call of the router's the next one begins a ramp."""

_RAMP_LENGTH = -math.log2(RAMP_FIRST_SHARE)
"""How long a whole ramp takes, in times in which it doubles."""

_LN2 = math.log(2)
_RAMP_WORK = (1 - RAMP_FIRST_SHARE) / _LN2
"""What is done during a ramp, in such times at the full rate."""

_RAMP_LAG = _RAMP_LENGTH - _RAMP_WORK


@dataclass(frozen=True, slots=True, kw_only=True)
class PerMinute:
    """Requests and tokens a minute: a limit, or what is used of it."""

    requests: float = math.inf
    """Infinite where no limit is known."""
    input_tokens: float = math.inf
    output_tokens: float = math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What has to be sent."""

    requests: float
    input_tokens: float = 0.0
    """Of all requests together; 0 where unknown."""
    output_tokens: float = 0.0
    """Expected, of all requests together; 0 where unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Concurrency:
    """Calls that may be under way at once, and how long one takes."""

    calls: int
    call_seconds: float
    """Of a usual live call."""


def planning_rate(
    limits: PerMinute, used: PerMinute, *, share: float = LIVE_SHARE, concurrency: Concurrency | None = None
) -> PerMinute:
    """The rate that escalations are planned with: a share of what the application leaves of the limits.

    Args:
        limits: Of the account, from its settings or the API's headers.
        used: By the application's own real-time traffic, see `usage_p95`.
        share: Of what is left.
        concurrency: Also limits the requests: ``calls`` that take ``call_seconds`` each.
    """
    requests = _spare(limits.requests, used.requests)
    if concurrency is not None and concurrency.call_seconds > 0:
        requests = min(requests, concurrency.calls * 60 / concurrency.call_seconds)
    return PerMinute(
        requests=share * requests,
        input_tokens=share * _spare(limits.input_tokens, used.input_tokens),
        output_tokens=share * _spare(limits.output_tokens, used.output_tokens),
    )


def _spare(limit: float, used: float) -> float:
    return limit if math.isinf(limit) else max(0.0, limit - used)


def requests_per_minute(rate: PerMinute, usual: Work) -> float:
    """How many requests a minute a rate lets through, by what is scarcest: μ in docs/policy.md.

    Args:
        rate: From `planning_rate`.
        usual: The work of some usual requests, which says how many tokens one takes.
    """
    took = minutes_for(usual, rate)
    return math.inf if took == 0 else usual.requests / took


def minutes_for(work: Work, rate: PerMinute) -> float:
    """How long some work takes at a rate, by what is scarcest. Infinite where nothing is left.

    For several pieces of work the sum of this is never too short: what is scarce may differ.
    """
    return max(
        _minutes(work.requests, rate.requests),
        _minutes(work.input_tokens, rate.input_tokens),
        _minutes(work.output_tokens, rate.output_tokens),
    )


def _minutes(amount: float, per_minute: float) -> float:
    if amount <= 0:
        return 0.0
    return amount / per_minute if per_minute > 0 else math.inf


def percentile_95(values: Sequence[float]) -> float:
    """The smallest value that 95 % of the values do not exceed (nearest rank).

    Raises:
        ValueError: There are none.
    """
    if not values:
        raise ValueError("no values, no percentile")
    return sorted(values)[math.ceil(0.95 * len(values)) - 1]


def usage_p95(minutes: Sequence[PerMinute]) -> PerMinute:
    """What the application's real-time traffic uses in a busy minute: the 95th percentile of each figure.

    Args:
        minutes: What it used in each of the last minutes; none is no use.
    """
    if not minutes:
        return PerMinute(requests=0.0, input_tokens=0.0, output_tokens=0.0)
    return PerMinute(
        requests=percentile_95([one.requests for one in minutes]),
        input_tokens=percentile_95([one.input_tokens for one in minutes]),
        output_tokens=percentile_95([one.output_tokens for one in minutes]),
    )


def ramp_share(since: timedelta, ramp: timedelta = RAMP) -> float:
    """What part of the rate may be used, so long after live calls began again: 0.1, doubling to 1.

    Args:
        since: How long it is.
        ramp: In which the share doubles.
    """
    length = since / ramp
    return 1.0 if length >= _RAMP_LENGTH else RAMP_FIRST_SHARE * math.exp2(max(0.0, length))


def ramp_work(minutes: float, ramp: timedelta = RAMP) -> float:
    """The integral of `ramp_share`: what is done after some minutes, in minutes at the full rate."""
    unit = ramp / RAMP
    length = minutes / unit
    rising = min(length, _RAMP_LENGTH)
    return unit * (RAMP_FIRST_SHARE * (math.exp2(rising) - 1) / _LN2 + (length - rising))


def ramp_lag(work_minutes: float, ramp: timedelta = RAMP) -> float:
    """By how many minutes a ramp delays the end of some work: at most 2.03 when it doubles each minute.

    The inverse of `ramp_work`, less the work itself.

    Args:
        work_minutes: How long the work takes at the full rate; infinite: what comes after a whole ramp.
        ramp: In which the share doubles.
    """
    unit = ramp / RAMP
    work = work_minutes / unit
    if work >= _RAMP_WORK:
        return unit * _RAMP_LAG
    return unit * max(0.0, math.log1p(work * _LN2 / RAMP_FIRST_SHARE) / _LN2 - work)
