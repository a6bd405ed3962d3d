"""A request, where it is in its life, and how it ended."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime, timedelta

    from llmrouter.domain.blocks import Reason

PAGE_SLOTS = 1000
"""How many request ids share a page: the unit in which ids are handed out and states are kept."""

REQUEST_ID = re.compile(r"req_[0-9a-hjkmnp-tv-z]{20}[0-9]{3}")
"""Shape of a request id: ``req_``, a time-ordered page of 20 characters, a slot of three digits."""


class RequestState(enum.StrEnum):
    """Where a stored request is. Real-time requests are never stored."""

    QUEUED = "queued"
    """Durable, waiting to be flushed."""
    CLAIMED = "claimed"
    """Taken into a batch that is about to be created, or in doubt, or in flight."""
    SETTLED = "settled"
    """Has its one outcome."""


class OutcomeKind(enum.StrEnum):
    """How a request ended, spelled as the API does."""

    SUCCEEDED = "succeeded"
    ERRORED = "errored"
    CANCELED = "canceled"
    EXPIRED = "expired"


class Route(enum.StrEnum):
    """Which way an outcome came."""

    BATCH = "batch"
    """A batch's results, or no way at all: it was canceled in the queue."""
    ESCALATED = "escalated"
    """A live call of the router's, because its deadline asked for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """Requests that may share a batch: everything that belongs to the batch as a whole."""

    lane_id: str
    """Hash of the other fields: the same lane has the same id in every process."""
    base_url: str
    credential: str
    """Keyed fingerprint of the credential. The credential itself is never stored."""
    headers: tuple[tuple[str, str], ...]
    """Headers that differ from the client's own or split batches (version, betas, workspace), sorted."""
    endpoint: str = "/v1/messages/batches"


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """What requests have in common that may be flushed together."""

    lane: Lane
    latency: str
    """Name of the latency class."""
    site: str
    """The call site, ``module:function`` or a name of the user's."""
    model: str
    prefix: str = ""
    """Hash of the prompt's beginning up to its last cache breakpoint; empty where it has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuedRequest:
    """A request on its way into the store."""

    request_id: str
    group: Group
    accepted_at: datetime
    deadline_at: datetime
    body: bytes = field(repr=False)
    """The exact JSON bytes that will be sent as ``params``."""
    key: str | None = None
    """The caller's idempotency key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """What the store says of a request after it took it."""

    request_id: str
    """The id it has: that of the earlier request when its key was known already."""
    accepted_at: datetime
    deadline_at: datetime
    duplicate: bool
    """True when the key was known: nothing was stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestView:
    """Where a stored request is, for people and for futures."""

    request_id: str
    state: RequestState
    latency: str
    accepted_at: datetime
    deadline_at: datetime
    attempts: int
    """Batches it has been in that ended without an answer for it."""
    batch_id: str | None
    """The batch it is claimed into; None in any other state."""
    key: str | None
    lane_id: str | None = None
    """The lane that it waits or flies in; None when it is settled."""
    given_up: bool = False
    """Whether its owner does not want it any more, though it is in a batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a request ended. There is at most one for each."""

    request_id: str
    kind: OutcomeKind
    latency: str
    accepted_at: datetime
    deadline_at: datetime
    settled_at: datetime
    attempts: int
    """How many batches it has been in, the one that answered included."""
    batch_id: str | None
    """The batch that answered; None when canceled in the queue."""
    key: str | None
    raw: bytes = field(repr=False)
    """The result line as the API gave it (JSON, ``{"custom_id", "result"}``); empty when it gave none.

    That of a live call has the same form.
    """
    route: Route = Route.BATCH
    reason: Reason | None = None
    """Why it went live, or should have gone and did not; None when nothing was decided."""
    insured: bool = True
    """False: it was known that the rate of live calls would not suffice for it, if it came to that."""

    @property
    def withdrawn(self) -> bool:
        """Whether its owner took it back before there was an answer: there is nothing to pick up."""
        return self.kind is OutcomeKind.CANCELED and not self.raw


@dataclass(frozen=True, slots=True, kw_only=True)
class Cohort:
    """Requests of a backlog that are due at about the same time."""

    deadline_at: datetime
    """The earliest of them."""
    before: datetime
    """All of them are due before it, and all that are due later are not of them."""
    window: timedelta
    """Of the one with the earliest deadline: from its acceptance to its deadline."""
    request_count: int
    body_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """The backlog of one lane, latency class and model: what may share a batch, deadlines aside."""

    lane: Lane
    latency: str
    model: str
    request_count: int
    body_bytes: int
    earliest_deadline_at: datetime
    window: timedelta | None = None
    """Of the request with that deadline: from its acceptance to its deadline. None: that of its class."""
    cohorts: tuple[Cohort, ...] = ()
    """The same requests by deadline, earliest first; none due later than `group_span` after its first."""
    prefixes: Mapping[str, int] = field(default_factory=dict)
    """How many of them begin with the same prompt, by `Group.prefix`; those with none are left out."""


def format_request_id(page: str, slot: int) -> str:
    """The id of one slot of a page."""
    return f"req_{page}{slot:03d}"


def split_request_id(request_id: str) -> tuple[str, int]:
    """The page and slot of a request id.

    Raises:
        ValueError: It is no request id.
    """
    if REQUEST_ID.fullmatch(request_id) is None:
        raise ValueError(f"{request_id!r} is no request id")
    return request_id[4:24], int(request_id[24:])
