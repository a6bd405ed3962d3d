"""What waits, what is in flight, and who works on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from llmrouter.domain.batches import BatchState
    from llmrouter.domain.requests import Lane
    from llmrouter.ports import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class BacklogStatus:
    """What waits in one lane and latency class."""

    latency: str
    lane_id: str
    request_count: int
    body_bytes: int
    earliest_deadline_at: datetime
    served: bool
    """False: this process does not hold the lane's credential, so it leaves the lane waiting."""
    held_until: datetime | None
    """The API refused the lane's last batch: nothing of it is sent before then."""
    held_reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchStatus:
    """An open batch."""

    batch_id: str
    provider_batch_id: str | None
    latency: str
    state: BatchState
    request_count: int
    claimed_at: datetime
    expires_at: datetime | None
    served: bool
    """False: this process does not hold its credential, so it cannot collect it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterStatus:
    """Where a router's work stands."""

    at: datetime
    working: bool
    """Whether this process does the store's work; another one may."""
    backlog: tuple[BacklogStatus, ...]
    batches: tuple[BatchStatus, ...]
    problems: Mapping[str, str]
    """What went wrong in this process's engine, last time it tried, by job."""

    @property
    def queued(self) -> int:
        """Requests that wait to be flushed."""
        return sum(line.request_count for line in self.backlog)

    @property
    def in_batches(self) -> int:
        """Requests in open batches, those in doubt included. May count settled ones of a batch in reading."""
        return sum(batch.request_count for batch in self.batches)


class Held(Protocol):
    """A lane that is held back."""

    @property
    def until(self) -> datetime:
        """Until when."""
        ...

    @property
    def reason(self) -> str:
        """Why."""
        ...


def describe(
    store: Store,
    now: datetime,
    *,
    working: bool,
    serves: Callable[[Lane], bool],
    holds: Mapping[str, Held],
    problems: Mapping[str, str],
) -> RouterStatus:
    """The status as of now. Reads keys and batches, no bodies.

    Args:
        store: Where the work is.
        now: The present instant.
        working: Whether this process does the store's work.
        serves: Whether this process holds a lane's credential.
        holds: Lanes that are held back, by lane id.
        problems: What went wrong in the engine, by job.
    """
    backlog = []
    for waiting in store.waiting():
        hold = holds.get(waiting.lane.lane_id)
        if hold is not None and hold.until <= now:
            hold = None
        backlog.append(
            BacklogStatus(
                latency=waiting.latency,
                lane_id=waiting.lane.lane_id,
                request_count=waiting.request_count,
                body_bytes=waiting.body_bytes,
                earliest_deadline_at=waiting.earliest_deadline_at,
                served=serves(waiting.lane),
                held_until=hold.until if hold else None,
                held_reason=hold.reason if hold else None,
            )
        )
    batches = tuple(
        BatchStatus(
            batch_id=batch.batch_id,
            provider_batch_id=batch.provider_batch_id,
            latency=batch.latency,
            state=batch.state,
            request_count=batch.request_count,
            claimed_at=batch.claimed_at,
            expires_at=batch.expires_at,
            served=serves(batch.lane),
        )
        for batch in store.open_batches()
    )
    return RouterStatus(
        at=now, working=working, backlog=tuple(backlog), batches=batches, problems=dict(problems)
    )
