"""The words of `llmrouter.domain.escalation`: what is outstanding, what is known, what is decided."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from llmrouter.domain.scheduling import Margin

if TYPE_CHECKING:
    from llmrouter.domain.rates import PerMinute, Work

_MARGIN = Margin(at_least=timedelta(minutes=2), at_most=timedelta(minutes=60))


class BlockKind(enum.StrEnum):
    """Where the requests of a block are."""

    WAITING = "waiting"
    """Queued, to be flushed together."""
    IN_FLIGHT = "in_flight"
    """In a batch, which nobody has asked to cancel."""
    CANCELING = "canceling"
    """In a batch that was asked to cancel, and has not ended."""
    LIVE = "live"
    """Queued for live calls, or in one; perhaps still in a batch as well."""


class Hold(enum.StrEnum):
    """Why requests must not go live, whatever their deadline."""

    SPEND_CAP = "spend_cap"
    """The API refuses calls: a spend limit is reached."""
    BUDGET = "budget"
    """``max_escalation_usd`` is used up."""
    BATCH_ONLY = "batch_only"
    """They ask for what only a batch can do."""
    CREDENTIAL = "credential"
    """The API does not accept the key for live calls, or its rights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Requests that share a fate: a batch, a group that waits, or what is queued for live calls."""

    block_id: str
    """The caller's name for it."""
    kind: BlockKind
    work: Work
    """What would have to be sent live now: not what was answered already."""
    deadline_at: datetime
    """The earliest of its requests."""
    window: timedelta
    """Of the request with that deadline: from its acceptance to its deadline."""
    hold: Hold | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The numbers of the policy."""

    margin: Margin = _MARGIN
    """Kept before a deadline: rides out a hiccup of the live API."""
    min_window: timedelta = timedelta(minutes=15)
    """With a smaller one a request goes live at once."""
    spare: timedelta = timedelta(minutes=3)
    """What must be left on top of margin and cancel lead for a batch to be worth its while."""
    storm_window: timedelta = timedelta(hours=2)
    """Windows up to it have the storm margin in a storm."""
    storm_silence: timedelta = timedelta(minutes=20)
    """No batch came back for so long: that is a storm, if several are waited for."""
    storm_age: timedelta = timedelta(minutes=15)
    """From which on a batch counts as waited for."""
    storm_share: float = 0.75
    """The storm margin, as a share of the window."""
    insurable_share: float = 0.1
    """Of the window: a block that would have to start before it is over cannot be insured."""
    rebatch_left: timedelta = timedelta(minutes=180)
    """What a final cancel or an expiry leaves is batched again when more than this is left."""
    ramp: timedelta = timedelta(minutes=1)
    """In which the rate of live calls doubles after a pause, see `llmrouter.domain.rates.ramp_share`."""


def rules_of(*, margin: Margin, min_window: timedelta, ramp: timedelta) -> Rules:
    """The numbers of the policy for other spans than its own.

    Args:
        margin: Kept before a deadline.
        min_window: What has less time goes live at once. The other spans keep their ratio to it.
        ramp: In which the rate of live calls doubles.
    """
    return Rules(
        margin=margin,
        min_window=min_window,
        spare=min_window / 5,
        rebatch_left=12 * min_window,
        storm_window=8 * min_window,
        storm_silence=4 * min_window / 3,
        storm_age=min_window,
        ramp=ramp,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What is known of the API now."""

    rate: PerMinute
    """What escalations may use, see `llmrouter.domain.rates.planning_rate`."""
    cancel_lead: timedelta = timedelta(minutes=5)
    """See `llmrouter.domain.weather.cancel_lead`."""
    storm: bool = False
    """See `llmrouter.domain.weather.is_storm`."""
    ramping: bool = False
    """Whether live calls would begin after a pause, and so below the rate."""
    hold: Hold | None = None
    """Stops every escalation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LatestStart:
    """When a block must begin to go live."""

    block: Block
    starts_at: datetime
    """From then on it should be going live; earlier than ``latest_at`` in a storm only."""
    latest_at: datetime
    """Begun by then, it makes its deadline less its margin, and so do all others that are insured."""
    insured: bool
    """False: the rate does not suffice for it as well, or it is late, or must not go live."""


class Action(enum.StrEnum):
    """What to do with a block now."""

    CANCEL = "cancel"
    """Ask the API to cancel its batch; what that leaves goes live (`plan_leftover`)."""
    GO_LIVE = "go_live"
    """Queue it for live calls."""
    RACE = "race"
    """Queue it for live calls, although its batch may still answer; ask for the cancel if nobody has."""
    STAY = "stay"
    """It should go live and must not: the miss is to be reported."""


class Reason(enum.StrEnum):
    """Why."""

    LATEST_START = "latest_start"
    """Its latest start is reached, or the cancel lead before it."""
    STORM = "storm"
    """No batch comes back now, and its window is short."""
    SHORT_WINDOW = "short_window"
    """It was accepted with too little time for a batch."""
    LITTLE_LEFT = "little_left"
    """Too little time is left for a batch."""
    CANCEL_NOT_FINAL = "cancel_not_final"
    """Its latest start is reached, and its batch has not ended."""
    TOO_LATE = "too_late"
    """Its latest start had passed when it was looked at: nobody worked, or its class was paused."""
    OVERTAKEN = "overtaken"
    """Younger batches of its kind have come back: it is sent again."""
    SPEND_CAP = "spend_cap"
    BUDGET = "budget"
    BATCH_ONLY = "batch_only"
    CREDENTIAL = "credential"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What to do with a block now, and why."""

    block: Block
    action: Action
    reason: Reason
    latest_at: datetime
    insured: bool


class Leftover(enum.StrEnum):
    """Where the requests go that a batch gave back unanswered."""

    BATCH = "batch"
    LIVE = "live"
