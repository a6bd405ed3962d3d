"""What the router's own batches told, as `llmrouter.domain.turnaround` and `weather` want it.

Closed batches are those of `Store.closed_batches`, in any order; flying ones those that are in flight.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from llmrouter.domain.batches import BatchState
from llmrouter.domain.turnaround import Observation
from llmrouter.domain.weather import Sent

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from llmrouter.domain.batches import Batch


def ended_by_itself(batch: Batch) -> bool:
    """Whether the API did all of a batch: it ended, was not to be canceled, and did not expire."""
    if batch.state is not BatchState.ENDED or batch.cancel_asked_at is not None:
        return False
    ended, expires = batch.ended_at, batch.expires_at
    return ended is not None and (expires is None or ended < expires)


def observations(closed: Sequence[Batch], flying: Sequence[Batch], now: datetime) -> list[Observation]:
    """How long batches took, or have been waited for: oldest first.

    One that was canceled counts until that was asked, one that expired until then, one in flight until
    now. What lacks an instant for that is left out.

    Args:
        closed: The latest that ended.
        flying: Those in flight, being canceled or not.
        now: The present instant.
    """
    created = [
        (batch.created_at, batch)
        for batch in (*closed, *flying)
        if batch.created_at is not None and batch.state in (BatchState.ENDED, BatchState.IN_FLIGHT)
    ]
    created.sort(key=lambda one: (one[0], one[1].batch_id))
    found = []
    for created_at, batch in created:
        until = _watched_until(batch, now)
        if until is not None:
            age = max(until - created_at, timedelta(0))
            found.append(Observation(model=batch.model, age=age, ended=ended_by_itself(batch)))
    return found


def _watched_until(batch: Batch, now: datetime) -> datetime | None:
    """To the end of a batch, or to the last moment at which it was waited for."""
    if ended_by_itself(batch):
        return batch.ended_at
    if batch.state is BatchState.IN_FLIGHT:
        until = now
    elif batch.ended_at is not None:
        until = batch.ended_at
    else:
        return None
    limits = (batch.cancel_asked_at, batch.expires_at)
    return min([until, *(limit for limit in limits if limit is not None)])


def cancels_seen(closed: Sequence[Batch]) -> list[timedelta]:
    """How long cancels took, from the request to the end, in the order of the batches.

    The end is by the API's clock and the request by ours: what seems less than nothing is nothing.
    """
    return [
        max(batch.ended_at - batch.cancel_asked_at, timedelta(0))
        for batch in closed
        if batch.cancel_asked_at is not None and batch.ended_at is not None
    ]


def last_result_at(closed: Sequence[Batch]) -> datetime | None:
    """When a batch last ended by itself; None when none has."""
    ended = [batch.ended_at for batch in closed if batch.ended_at is not None and ended_by_itself(batch)]
    return max(ended, default=None)


def sent(closed: Sequence[Batch], flying: Sequence[Batch]) -> list[Sent]:
    """What `llmrouter.domain.weather.overtaken` compares: those in flight, those that ended by themselves.

    One that is to be canceled is no longer waited for, and left out.
    """
    found = []
    for batch in (*closed, *flying):
        waited = batch.state is BatchState.IN_FLIGHT and batch.cancel_asked_at is None
        if batch.created_at is not None and (waited or ended_by_itself(batch)):
            found.append(
                Sent(
                    batch_id=batch.batch_id,
                    group=(batch.lane.lane_id, batch.latency, batch.model),
                    created_at=batch.created_at,
                    ended_at=None if waited else batch.ended_at,
                )
            )
    return found
