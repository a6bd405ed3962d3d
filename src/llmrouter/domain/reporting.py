"""What the engine says of itself, for other processes to read."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from llmrouter.domain.blocks import Hold as LiveHold


class HoldCause(enum.StrEnum):
    """Why a lane waits."""

    CREDENTIAL = "credential"
    """The API did not accept the key, or its rights (401, 403)."""
    SPENT = "spent"
    """A spend limit is reached."""
    LIMITED = "limited"
    """Too many requests, or a full batch queue (429)."""
    REFUSED = "refused"
    """The API refused for another reason, or could not be reached."""
    UNCLEAR = "unclear"
    """The last create has no clear answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """A lane that waits since the API did not take its last batch."""

    lane_id: str
    since: datetime
    until: datetime
    """When it is tried again."""
    cause: HoldCause
    reason: str
    """The API's own words, or what came instead of them."""
    refusals: int
    """How many batches in a row it did not take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Uninsured:
    """Requests for which the rate of live calls would not suffice, should their batch not come back."""

    latency: str
    model: str
    request_count: int
    deadline_at: datetime
    """The earliest of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveReport:
    """What the escalator last said of live calls."""

    requests_per_minute: float | None
    """The rate that it plans with, in requests of the usual size; None: nothing limits it."""
    going: int
    """Requests that go live and have no answer yet."""
    under_way: int
    """Calls that are under way."""
    storm: bool
    """Whether no batch comes back now."""
    hold: LiveHold | None
    """What stops every escalation."""
    hold_until: datetime | None
    """When it is tried again; None: when it ends is not known, or there is no hold."""
    waits_until: datetime | None
    """The API asked to wait with calls until then."""
    uninsured: tuple[Uninsured, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineReport:
    """What the process that works on a store last said of its work."""

    at: datetime
    holds: tuple[Hold, ...] = ()
    problems: Mapping[str, str] = field(default_factory=dict)
    """What went wrong, last time it tried, by job."""
    live: LiveReport | None = None
    """None before its escalator has looked for the first time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineView:
    """Who works on a store."""

    holder: str
    """``host:pid:token`` of the lease's holder."""
    until: datetime
    """When its lease runs out unless it prolongs it."""
    report: EngineReport | None
    """Its last words; None when it has said nothing yet."""
