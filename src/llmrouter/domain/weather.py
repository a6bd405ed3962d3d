"""What our own batches tell of the API now: whether they come back, and how fast it cancels."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from llmrouter.domain.rates import percentile_95

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

_ENOUGH_CANCELS = 20
"""Below it there is no 95th percentile but the maximum."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A batch that was created."""

    batch_id: str
    group: Hashable
    """What it shares with the batches it is compared with."""
    created_at: datetime
    ended_at: datetime | None


def is_storm(
    now: datetime,
    in_flight_since: Sequence[datetime],
    last_result_at: datetime | None,
    *,
    silence: timedelta,
    age: timedelta,
    batches: int = 3,
) -> bool:
    """Whether batches do not come back now: none for a while, and several are waited for.

    Args:
        now: The present instant.
        in_flight_since: When each batch in flight was created.
        last_result_at: When a batch last ended by itself, with results; None when none has yet.
        silence: How long none came, see `llmrouter.domain.blocks.Rules.storm_silence`.
        age: From which on a batch counts as waited for, see `storm_age` there.
        batches: How many of them it takes.
    """
    if not in_flight_since:
        return False
    silent_since = min(in_flight_since) if last_result_at is None else last_result_at
    old = sum(now - since >= age for since in in_flight_since)
    return now - silent_since >= silence and old >= batches


def cancel_lead(
    seen: Sequence[timedelta],
    *,
    first: timedelta = timedelta(minutes=5),
    at_least: timedelta = timedelta(minutes=1),
    at_most: timedelta = timedelta(minutes=15),
) -> timedelta:
    """How long before its start a batch is canceled: the 95th percentile of what cancels took here.

    Args:
        seen: From the request to the end of the batch, of the latest cancels.
        first: While fewer than 20 were seen, unless one of them took longer.
        at_least: Its least value.
        at_most: Its largest value.
    """
    seconds = [one.total_seconds() for one in seen]
    if len(seconds) < _ENOUGH_CANCELS:
        seconds = [first.total_seconds(), max(seconds, default=0.0)]
    return min(max(timedelta(seconds=percentile_95(seconds)), at_least), at_most)


def overtaken(
    now: datetime, batches: Sequence[Sent], *, age: timedelta = timedelta(minutes=20), younger: int = 3
) -> list[str]:
    """Batches in flight that several younger ones of their group have overtaken: to be counted.

    Creating them anew gains too little to be worth it where few batches stall.

    Args:
        now: The present instant.
        batches: Those in flight, and the latest that ended by themselves.
        age: From which on one counts.
        younger: How many have to have overtaken it.
    """
    ended: dict[Hashable, list[datetime]] = {}
    for batch in batches:
        if batch.ended_at is not None:
            ended.setdefault(batch.group, []).append(batch.created_at)
    for created in ended.values():
        created.sort()
    found = []
    for batch in batches:
        if batch.ended_at is None and now - batch.created_at >= age:
            created = ended.get(batch.group, [])
            if len(created) - bisect_right(created, batch.created_at) >= younger:
                found.append(batch.batch_id)
    return found
