"""A batch, where it is in its life, and what it weighs on the wire."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from decimal import Decimal

    from llmrouter.domain.blocks import Reason
    from llmrouter.domain.requests import Lane, OutcomeKind

API_MAX_REQUESTS = 100_000
API_MAX_BYTES = 256_000_000
"""The API's limits for one batch, decimal (docs/api.md)."""

NONCE_CHARS = 10
_CUSTOM_ID_CHARS = 27 + 1 + NONCE_CHARS
_ITEM_BYTES = len('{"custom_id":"","params":}') + _CUSTOM_ID_CHARS
_ENVELOPE_BYTES = len('{"requests":[]}')


class BatchState(enum.StrEnum):
    """Where a batch is."""

    CLAIMED = "claimed"
    """The intent is on disk; the create may be under way."""
    IN_DOUBT = "in_doubt"
    """Created, perhaps: its requests are neither sent again nor given up."""
    IN_FLIGHT = "in_flight"
    """The API has it."""
    ESCALATING = "escalating"
    """It is no batch at the API: its requests go live, each by itself."""
    ENDED = "ended"
    """Every request of it is settled or queued again."""
    RELEASED = "released"
    """It does not exist at the API; its requests are queued again."""


PASSING_ERRORS = frozenset({"api_error", "overloaded_error", "rate_limit_error", "timeout_error"})
"""Error types that say nothing about the request: the same one may succeed in the next batch."""

RESULTS_KEPT = timedelta(days=29)
"""How long after a batch was created the API keeps its results (docs/api.md)."""

UNCOLLECTED_ALARM = timedelta(days=20)
"""From this age on a batch whose results were not collected is an alarm: they will soon be gone."""

OPEN_STATES = frozenset(
    {BatchState.CLAIMED, BatchState.IN_DOUBT, BatchState.IN_FLIGHT, BatchState.ESCALATING}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A batch as the store knows it."""

    batch_id: str
    """Ours. The API's is ``provider_batch_id``."""
    lane: Lane
    latency: str
    nonce: str
    """Drawn afresh for each claim; a custom_id is ``{request_id}-{nonce}``."""
    state: BatchState
    request_count: int
    body_bytes: int
    """Sum of the request bodies. See `wire_bytes` for what is posted."""
    claimed_at: datetime
    fence: int
    """Fencing number of the lease under which it was claimed."""
    provider_batch_id: str | None = None
    created_at: datetime | None = None
    """The API's own ``created_at``; results can be read for 29 days from it."""
    expires_at: datetime | None = None
    ended_at: datetime | None = None
    attempts: Mapping[str, int] = field(default_factory=dict)
    """Earlier attempts of its requests, those above none."""
    in_doubt_at: datetime | None = None
    """When it was found to be in doubt; None for one that never was."""
    candidates: tuple[str, ...] = ()
    """While in doubt: the API's batches that may be it, by their ids. Their results will tell."""
    cancel_wanted: bool = False
    """Whether every request that is still in it was given up by its owner."""
    cancel_asked_at: datetime | None = None
    """When the API was asked to cancel it."""
    model: str = ""
    """Of all its requests; empty for one that was claimed by an earlier version."""
    deadline_at: datetime | None = None
    """The earliest of its requests when they were claimed; None as for `model`."""
    window: timedelta | None = None
    """Of the request with that deadline, from its acceptance to its deadline."""
    reason: Reason | None = None
    """Of the last decision about its deadline: why it is canceled, goes live, or cannot."""
    insured: bool = True
    """False: the rate of live calls would not suffice for it as well."""
    recalled_at: datetime | None = None
    """When its requests were wanted back from the API: it is to be canceled."""
    escalated_at: datetime | None = None
    """When requests were taken out of it to go live although it may answer; of an ESCALATING one, when
    they were taken out of the queue or their batch."""
    raced: str | None = None
    """Of an ESCALATING one: our id of the batch that may answer its requests all the same."""
    wasted: int = 0
    """Answers of it that came after a live call's: they were paid for, and nobody got them."""


class ProcessingStatus(enum.StrEnum):
    """The API's word for where a batch is."""

    IN_PROGRESS = "in_progress"
    CANCELING = "canceling"
    ENDED = "ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderBatch:
    """A batch as the API describes it."""

    provider_batch_id: str
    status: ProcessingStatus
    created_at: datetime
    expires_at: datetime
    ended_at: datetime | None
    request_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The batches of a workspace, as the API listed them."""

    batches: tuple[ProviderBatch, ...]
    listed_at: datetime | None
    """When, by the API's clock; None when it did not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultLine:
    """One line of a batch's results."""

    custom_id: str
    kind: OutcomeKind | None
    """None for a type that this version does not know."""
    error_type: str | None
    """The API's error type, for an errored item."""
    raw: bytes = field(repr=False)
    """The line as it came."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a batch says of one of its requests: an outcome, or that it must be sent again."""

    request_id: str
    kind: OutcomeKind
    raw: bytes = field(repr=False)
    """The result line; empty when the file had none."""
    retry: bool
    """True: queue it again, one attempt later. False: this is its outcome."""
    paid_usd: Decimal | None = None
    """What a live call cost; None where no price is known, and for answers of batches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """What a settle did."""

    outcomes: int
    """Requests that got their outcome by it."""
    retried: int
    """Requests queued again by it."""
    repeated: int
    """Answers of requests that had left this batch already: nothing was changed."""
    unknown: int
    """Answers of requests that were never in this batch."""
    wasted: int = 0
    """Of the repeated ones: successes of requests that were answered another way. They were paid for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Canceled:
    """What a cancel did, in numbers of requests."""

    canceled: int
    """Were queued: settled as canceled."""
    asked: int
    """Are in a batch: canceled unless the API answers them first."""
    settled: int
    """Had their outcome already: nothing was changed."""


def is_overdue(batch: Batch, now: datetime) -> bool:
    """Whether a batch should have been collected long ago."""
    return batch.created_at is not None and now - batch.created_at >= UNCOLLECTED_ALARM


def custom_id(request_id: str, nonce: str) -> str:
    """What a request is called in a batch: at most 64 of ``[a-zA-Z0-9_-]`` (the API's rule)."""
    return f"{request_id}-{nonce}"


def request_id_of(custom_id: str, nonce: str) -> str | None:
    """The request behind a custom_id, or None when it does not carry this batch's nonce."""
    request_id, _, suffix = custom_id.rpartition("-")
    return request_id if suffix == nonce and request_id else None


def nonce_of(custom_id: str) -> str:
    """The nonce at the end of a custom_id."""
    return custom_id.rpartition("-")[2]


def wire_bytes(request_count: int, body_bytes: int) -> int:
    """Exact length of the posted body: the request bodies and what stands around them."""
    return _ENVELOPE_BYTES + body_bytes + request_count * _ITEM_BYTES + max(0, request_count - 1)
