"""What to flush and when to ask the API: decisions without I/O."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from llmrouter.domain.batches import API_MAX_BYTES, API_MAX_REQUESTS, wire_bytes
from llmrouter.domain.packing import BatchLimits

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from llmrouter.domain.latency import LatencyClass
    from llmrouter.domain.requests import Waiting

_POLICY_MAX_REQUESTS = 10_000
_POLICY_MAX_BYTES = 200_000_000
_POLICY_MINUTES = 3
_POLICY_MIN_REQUESTS = 100
_FAR_DEADLINE = timedelta(hours=48)
"""docs/policy.md, batch size: one cancel must not move more work than goes live in a few minutes, unless
there is time for it."""

_GROUP_SHARE = 24
_GROUP_MOST = timedelta(hours=6)

_POLL_MIN = timedelta(seconds=10)
_POLL_MAX = timedelta(seconds=60)
_POLL_SHARE = 30


class FlushReason(enum.StrEnum):
    """Why a backlog leaves now."""

    SCHEDULED = "scheduled"
    """Its class's schedule has fired."""
    FULL = "full"
    """It fills a batch."""
    DEADLINE = "deadline"
    """The next slot would be too late for its earliest deadline."""
    ASKED = "asked"
    """Somebody called ``flush`` or ``drain``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Margin:
    """How long before a deadline a request should be out of our hands (docs/policy.md)."""

    at_least: timedelta
    at_most: timedelta

    def of(self, window: timedelta) -> timedelta:
        """A twelfth of the window, clamped; at most half of it, or the shortest could never be in time."""
        return min(max(window / 12, self.at_least), self.at_most, window / 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """When a request is due, and how long it had."""

    deadline_at: datetime
    window: timedelta
    """From its acceptance to its deadline."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flush:
    """A backlog that leaves now."""

    waiting: Waiting
    reason: FlushReason

    @property
    def name(self) -> tuple[str, ...]:
        """What leaves together: lane, latency class and model."""
        return self.waiting.lane.lane_id, self.waiting.latency, self.waiting.model


def batch_limits(
    latency: LatencyClass,
    max_requests: int | None,
    max_bytes: int | None,
    *,
    requests_per_minute: float | None = None,
) -> BatchLimits:
    """The largest batch of a class: what the settings say, or else docs/policy.md.

    Whatever they say, a batch holds deadlines of one neighbourhood (`group_span`).

    Args:
        latency: The class.
        max_requests: The setting: this number exactly.
        max_bytes: The setting: this number exactly.
        requests_per_minute: What could go live, see `llmrouter.domain.rates.requests_per_minute`; None
            where it is not known.
    """
    far = latency.deadline >= _FAR_DEADLINE
    policy_requests = API_MAX_REQUESTS if far else _requests_at(requests_per_minute)
    return BatchLimits(
        max_requests=max_requests or policy_requests,
        max_bytes=max_bytes or (API_MAX_BYTES if far else _POLICY_MAX_BYTES),
        one_fate=True,
    )


def _requests_at(per_minute: float | None) -> int:
    """What goes live in three minutes, within 100 and 10,000."""
    if per_minute is None:
        return _POLICY_MAX_REQUESTS
    return int(min(max(_POLICY_MINUTES * per_minute, _POLICY_MIN_REQUESTS), _POLICY_MAX_REQUESTS))


def group_span(window: timedelta) -> timedelta:
    """How far the deadlines of requests may lie apart that share a batch: W/24, at most 6 hours."""
    return min(window / _GROUP_SHARE, _GROUP_MOST)


def fits_group(first: Due, other: Due) -> bool:
    """Whether a request may share the batch of one that is due earlier: within the `group_span` of that."""
    return other.deadline_at - first.deadline_at <= group_span(first.window)


def split_by_deadline(requests: Sequence[Due]) -> list[int]:
    """Cuts requests of one lane, class and model into groups that may share a fate.

    Each group begins with the earliest deadline that is left, and takes what `fits_group` with it.

    Args:
        requests: By deadline, earliest first.

    Returns:
        How many requests each group has, in order.
    """
    sizes: list[int] = []
    first = None
    for request in requests:
        if first is not None and fits_group(first, request):
            sizes[-1] += 1
        else:
            sizes.append(1)
            first = request
    return sizes


def plan_early_flushes(
    now: datetime,
    backlog: Iterable[Waiting],
    classes: Mapping[str, LatencyClass],
    limits: Mapping[str, BatchLimits],
    next_slots: Mapping[str, datetime],
    margin: Margin,
    *,
    reserve: timedelta = timedelta(0),
) -> list[Flush]:
    """What must not wait for the schedule of its class.

    The margin is that of the request's own window, where the backlog says it, else of its class's.

    Args:
        now: The present instant.
        backlog: What waits.
        classes: The latency classes by name; what waits under a class that is gone leaves at once.
        limits: The largest batch of each class.
        next_slots: When each class's schedule fires next.
        margin: Kept before the deadline.
        reserve: What a batch needs before that to be worth its while: cancel lead and spare.
    """
    flushes = []
    for waiting in backlog:
        latency = classes.get(waiting.latency)
        if latency is None:
            flushes.append(Flush(waiting=waiting, reason=FlushReason.DEADLINE))
            continue
        full = _fills_batch(waiting, limits[waiting.latency])
        leave_by = waiting.earliest_deadline_at - margin.of(waiting.window or latency.deadline) - reserve
        if full:
            flushes.append(Flush(waiting=waiting, reason=FlushReason.FULL))
        elif max(now, next_slots.get(waiting.latency, now)) > leave_by:
            flushes.append(Flush(waiting=waiting, reason=FlushReason.DEADLINE))
    return flushes


def _fills_batch(waiting: Waiting, limit: BatchLimits) -> bool:
    """Whether what leaves first fills a batch: what is due later may have to wait for another one."""
    count, size = waiting.request_count, waiting.body_bytes
    if limit.one_fate and waiting.cohorts:
        dues = [Due(deadline_at=cohort.deadline_at, window=cohort.window) for cohort in waiting.cohorts]
        leaving = waiting.cohorts[: split_by_deadline(dues)[0]]
        count = sum(cohort.request_count for cohort in leaving)
        size = sum(cohort.body_bytes for cohort in leaving)
    return count >= limit.max_requests or wire_bytes(count, size) >= limit.max_bytes


def poll_interval(age: timedelta) -> timedelta:
    """How long to leave a batch alone between two looks: 10 s at first, 60 s from half an hour on."""
    return min(max(age / _POLL_SHARE, _POLL_MIN), _POLL_MAX)
