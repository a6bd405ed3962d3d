"""What to flush and when to ask the API: decisions without I/O."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from llmrouter.domain.batches import API_MAX_BYTES, API_MAX_REQUESTS, wire_bytes
from llmrouter.domain.packing import BatchLimits

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from llmrouter.domain.latency import LatencyClass
    from llmrouter.domain.requests import Waiting

_POLICY_MAX_REQUESTS = 10_000
_POLICY_MAX_BYTES = 200_000_000
_FAR_DEADLINE = timedelta(hours=48)
"""POLICY.md, batch size: one cancel must not move too much work, unless there is time for it."""

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
    """How long before a deadline a request should be out of our hands (POLICY.md)."""

    at_least: timedelta
    at_most: timedelta

    def of(self, window: timedelta) -> timedelta:
        """A twelfth of the window, clamped."""
        return min(max(window / 12, self.at_least), self.at_most)


@dataclass(frozen=True, slots=True, kw_only=True)
class Flush:
    """A backlog that leaves now."""

    waiting: Waiting
    reason: FlushReason


def batch_limits(latency: LatencyClass, max_requests: int | None, max_bytes: int | None) -> BatchLimits:
    """The largest batch of a class: what the settings say, or else POLICY.md."""
    far = latency.deadline >= _FAR_DEADLINE
    return BatchLimits(
        max_requests=max_requests or (API_MAX_REQUESTS if far else _POLICY_MAX_REQUESTS),
        max_bytes=max_bytes or (API_MAX_BYTES if far else _POLICY_MAX_BYTES),
    )


def plan_early_flushes(
    now: datetime,
    backlog: Iterable[Waiting],
    classes: Mapping[str, LatencyClass],
    limits: Mapping[str, BatchLimits],
    next_slots: Mapping[str, datetime],
    margin: Margin,
) -> list[Flush]:
    """What must not wait for the schedule of its class.

    Args:
        now: The present instant.
        backlog: What waits.
        classes: The latency classes by name; what waits under a class that is gone leaves at once.
        limits: The largest batch of each class.
        next_slots: When each class's schedule fires next.
        margin: Kept before the deadline.
    """
    flushes = []
    for waiting in backlog:
        latency = classes.get(waiting.latency)
        if latency is None:
            flushes.append(Flush(waiting=waiting, reason=FlushReason.DEADLINE))
            continue
        limit = limits[waiting.latency]
        full = (
            waiting.request_count >= limit.max_requests
            or wire_bytes(waiting.request_count, waiting.body_bytes) >= limit.max_bytes
        )
        leave_by = waiting.earliest_deadline_at - margin.of(latency.deadline)
        if full:
            flushes.append(Flush(waiting=waiting, reason=FlushReason.FULL))
        elif max(now, next_slots.get(waiting.latency, now)) > leave_by:
            flushes.append(Flush(waiting=waiting, reason=FlushReason.DEADLINE))
    return flushes


def poll_interval(age: timedelta) -> timedelta:
    """How long to leave a batch alone between two looks: 10 s at first, 60 s from half an hour on."""
    return min(max(age / _POLL_SHARE, _POLL_MIN), _POLL_MAX)
