"""One batch and its items: plain records, whose state follows from the clock alone."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from llmrouter.sandbox.outages import done_at, worked

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from llmrouter.sandbox.outages import Outage

EXPIRES_AFTER = timedelta(hours=24)
ARCHIVED_AFTER = timedelta(days=29)

Outcome = Literal["succeeded", "errored", "canceled", "expired"]
Status = Literal["in_progress", "canceling", "ended"]
OUTCOMES: tuple[Outcome, ...] = ("succeeded", "errored", "canceled", "expired")


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One request as the sandbox keeps it: an item of a batch, or a live call."""

    custom_id: str
    """The caller's name of it in its batch; empty for a live call."""
    params_json: bytes
    """The parameters as canonical JSON: 100,000 of them take less memory so than as objects."""
    digest: bytes
    """`llmrouter.sandbox.params_hash` of the parameters, as bytes."""
    model: str
    """The parameters' `model`; empty when it is missing or no string."""
    max_tokens: int
    """The parameters' `max_tokens`; 0 when it is missing or no number."""
    input_tokens: int
    """What the request is charged for its input."""
    written_5m_tokens: int = 0
    """How much of its input is written into the prompt cache for five minutes."""
    written_1h_tokens: int = 0
    """And for an hour."""
    problem: str | None = None
    """What the API refuses in the parameters; found out only when the batch has ended."""
    forced_outcome: Outcome | None = None
    """The outcome a fault decided on, for an item that is done in time."""
    forced_error: tuple[str, str] | None = None
    """Type and message of the error of an item that a fault made `errored`."""

    @property
    def params(self) -> Any:
        """The parameters, parsed anew at each call."""
        return json.loads(self.params_json)

    @property
    def params_hash(self) -> str:
        """`llmrouter.sandbox.params_hash` of the parameters."""
        return self.digest.hex()

    @property
    def error(self) -> tuple[str, str]:
        """Type and message of the error the item has when it is `errored`."""
        return self.forced_error or ("invalid_request_error", self.problem or "Invalid request")


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One batch. Nothing in it changes with time; the methods take the present instant."""

    id: str
    number: int
    """Its place among the batches of this sandbox, from 0."""
    created_at: datetime
    turnaround: timedelta
    """How long its items take together, when nothing cuts it short."""
    items: tuple[Item, ...]
    """In the order of the request."""
    order: tuple[int, ...]
    """Indexes of `items` in the order they are done and answered: evenly over `turnaround`."""
    api_key: str
    """The credential it was created with."""
    headers: Mapping[str, str]
    """The `anthropic-…` headers it was created with, names in lower case."""
    stuck: bool = False
    """Whether one of its items never gets done, so that the batch ends when it expires."""
    stalls_after: float = 1.0
    """What part of its items gets done at all; with less than 1 it is `stuck`."""
    outages: tuple[Outage, ...] = ()
    """When it stands still."""
    cancel_initiated_at: datetime | None = None
    cancel_takes: timedelta = timedelta(0)
    """How long `canceling` lasts."""
    deleted_at: datetime | None = None
    body: bytes | None = None
    """The exact body of the create call, with `keep_bodies`."""

    @property
    def expires_at(self) -> datetime:
        """24 hours after creation: what is not done then is `expired`."""
        return self.created_at + EXPIRES_AFTER

    @property
    def ends_at(self) -> datetime:
        """When processing ends, or has ended."""
        ends_at = self.expires_at
        if not self.stuck:
            ends_at = min(ends_at, done_at(self.created_at, self.turnaround, self.outages))
        if self.cancel_initiated_at is None:
            return ends_at
        held = [outage for outage in self.outages if not outage.cancels]
        return min(ends_at, done_at(self.cancel_initiated_at, self.cancel_takes, held))

    def status(self, now: datetime) -> Status:
        """The batch's `processing_status` at `now`."""
        if now >= self.ends_at:
            return "ended"
        return "in_progress" if self.cancel_initiated_at is None else "canceling"

    def outcomes(self) -> Iterator[tuple[Item, Outcome]]:
        """Every item with the outcome it has when the batch has ended, in the order of the results."""
        ends_at = self.ends_at
        unfinished: Outcome = "expired" if ends_at >= self.expires_at else "canceled"
        finished = self._count_finished(ends_at)
        for rank, index in enumerate(self.order):
            item = self.items[index]
            if rank >= finished or item.forced_outcome == "expired":
                yield item, unfinished
            elif item.forced_outcome is not None:
                yield item, item.forced_outcome
            else:
                yield item, "succeeded" if item.problem is None else "errored"

    def count_outcomes(self) -> Counter[Outcome]:
        """How many items have each outcome when the batch has ended."""
        return Counter(outcome for _, outcome in self.outcomes())

    def _count_finished(self, ends_at: datetime) -> int:
        size = int(len(self.items) * self.stalls_after)
        elapsed = worked(self.created_at, ends_at, self.outages)
        if elapsed >= self.turnaround:
            return size
        return min(size, (len(self.items) * elapsed) // self.turnaround)


def shuffled_order(size: int, seed: str) -> tuple[int, ...]:
    """A permutation of `range(size)` that is never the order of the request, for two items or more."""
    order = list(range(size))
    random.Random(seed).shuffle(order)  # noqa: S311 - a simulation, not a secret
    if order == list(range(size)):
        order.reverse()
    return tuple(order)
