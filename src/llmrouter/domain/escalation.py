"""When requests must leave their batch and go live, so that all of them make their deadlines.

Everything is batched that has time, and insured by the latest moment at which it could still be sent
live. Decisions only: the caller says what there is and what is known, and does what comes back. The
numbers and their reasons are in ``docs/policy.md``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, assert_never

from llmrouter.domain.blocks import (
    Action,
    Block,
    BlockKind,
    Conditions,
    Decision,
    LatestStart,
    Leftover,
    Reason,
    Rules,
)
from llmrouter.domain.rates import minutes_for, ramp_lag

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(slots=True)
class _Place:
    """A block on the walk; instants in seconds since the epoch."""

    block: Block
    target: float
    """Deadline less margin."""
    seconds: float
    """What its work takes at the rate."""
    floor: float
    """When the share of its window is over that rules out insurance."""
    candidate: bool
    start: float = 0.0
    insured: bool = False


def plan_latest_starts(
    now: datetime, blocks: Iterable[Block], conditions: Conditions, rules: Rules
) -> list[LatestStart]:
    """When each block must begin to go live: earliest due first, planned from the end.

    Walks from the block with the last target (deadline less margin) to that with the first, each
    ending at its target or where the next one begins: ``start = min(s, target) - work / rate``. So
    all fit when each begins at its start, and none could begin later: whatever begins back to back
    up to some target would not all be done by it. One that would have to begin before a tenth of its
    window is over is not insured: it takes no capacity from the others, and has its own last moment.

    Args:
        now: The present instant: what is late already takes no capacity either. Nothing else
            depends on it, so the plan stays as it is while nothing changes.
        blocks: Everything outstanding.
        conditions: What is known of the API.
        rules: The numbers.

    Returns:
        One for each block, the last target first. Ties are broken by ``block_id``.
    """
    margins: dict[timedelta, float] = {}
    places = [_place(now, block, conditions, rules, margins) for block in blocks]
    places.sort(key=_order, reverse=True)
    _walk(places, conditions, rules, may_drop=True)
    latest = [datetime.fromtimestamp(place.start, UTC) for place in places]
    begin = latest
    if conditions.storm:
        _walk_in_storm(places, conditions, rules)
        begin = [
            min(at, datetime.fromtimestamp(place.start, UTC))
            for place, at in zip(places, latest, strict=True)
        ]
    return [
        LatestStart(block=place.block, starts_at=first, latest_at=last, insured=place.insured)
        for place, first, last in zip(places, begin, latest, strict=True)
    ]


def _place(
    now: datetime, block: Block, conditions: Conditions, rules: Rules, margins: dict[timedelta, float]
) -> _Place:
    window = block.window
    margin = margins.get(window)
    if margin is None:
        margin = margins[window] = rules.margin.of(window).total_seconds()
    deadline = block.deadline_at.timestamp()
    return _Place(
        block=block,
        target=deadline - margin,
        seconds=60 * minutes_for(block.work, conditions.rate),
        floor=deadline - (1 - rules.insurable_share) * window.total_seconds(),
        candidate=block.hold is None and conditions.hold is None and block.deadline_at > now,
    )


def _order(place: _Place) -> tuple[float, str]:
    return place.target, place.block.block_id


def _walk(places: Iterable[_Place], conditions: Conditions, rules: Rules, *, may_drop: bool) -> None:
    """Sets start and insurance of each, from the last target to the first."""
    next_start, together = math.inf, 0.0
    whole_lag = 60 * ramp_lag(math.inf, rules.ramp)
    for place in places:
        if place.candidate:
            end = min(next_start, place.target)
            # What begins soon after shares the ramp, and is delayed by it together with this.
            chain = place.seconds + (together if next_start - end < whole_lag else 0.0)
            lag = 60 * ramp_lag(chain / 60, rules.ramp) if conditions.ramping else 0.0
            start = end - place.seconds
            if not may_drop or start - lag >= place.floor:
                place.start, place.insured = start - lag, True
                next_start, together = start, chain
                continue
        place.insured = False
        place.start = _own_last_moment(place)


def _own_last_moment(place: _Place) -> float:
    """When a block must begin that has the whole rate for itself, but not as soon as it was accepted."""
    alone = place.target - place.seconds
    return max(alone, place.floor) if math.isfinite(alone) else place.target


def _walk_in_storm(places: list[_Place], conditions: Conditions, rules: Rules) -> None:
    """Sets the starts anew with the storm margin; who is insured stays so."""
    insured = [place for place in places if place.insured]
    for place in insured:
        if place.block.window <= rules.storm_window:
            margin = _margin(place.block.window, rules, storm=True)
            place.target = place.block.deadline_at.timestamp() - margin.total_seconds()
    insured.sort(key=_order, reverse=True)
    _walk(insured, conditions, rules, may_drop=False)
    for place in insured:
        place.start = max(
            place.start, place.block.deadline_at.timestamp() - place.block.window.total_seconds()
        )


def plan_actions(
    now: datetime, plan: Iterable[LatestStart], conditions: Conditions, rules: Rules
) -> list[Decision]:
    """What to do now.

    A group that waits goes live at its start, and at once where a batch is not worth its while. A
    batch is canceled the cancel lead before its start; where it has not ended at its latest start,
    its requests go live all the same. What must not go live stays where it is, and is named from
    its last moment on.

    Args:
        now: The present instant.
        plan: From `plan_latest_starts`, with the same conditions and rules.
        conditions: What is known of the API.
        rules: The numbers.

    Returns:
        A decision for each block with which something is to be done. Once it is done, and the block
        has its new kind, there is none for it until its next moment.
    """
    decisions = []
    for start in plan:
        found = _decide(now, start, conditions, rules)
        if found is None:
            continue
        action, reason = found
        hold = start.block.hold or conditions.hold
        if hold is not None:
            action, reason = Action.STAY, Reason(hold)
        decisions.append(
            Decision(
                block=start.block,
                action=action,
                reason=reason,
                latest_at=start.latest_at,
                insured=start.insured,
            )
        )
    return decisions


def _decide(
    now: datetime, start: LatestStart, conditions: Conditions, rules: Rules
) -> tuple[Action, Reason] | None:
    match start.block.kind:
        case BlockKind.WAITING:
            return _decide_waiting(now, start, conditions, rules)
        case BlockKind.IN_FLIGHT if now >= start.latest_at:
            return Action.RACE, Reason.LATEST_START
        case BlockKind.IN_FLIGHT if now >= start.starts_at - conditions.cancel_lead:
            calm = now >= start.latest_at - conditions.cancel_lead
            return Action.CANCEL, Reason.LATEST_START if calm else Reason.STORM
        case BlockKind.CANCELING if now >= start.latest_at:
            return Action.RACE, Reason.CANCEL_NOT_FINAL
        case BlockKind.IN_FLIGHT | BlockKind.CANCELING | BlockKind.LIVE:
            return None
        case kind:
            assert_never(kind)


def _decide_waiting(
    now: datetime, start: LatestStart, conditions: Conditions, rules: Rules
) -> tuple[Action, Reason] | None:
    if start.block.window < rules.min_window:
        return Action.GO_LIVE, Reason.SHORT_WINDOW
    if now >= start.starts_at:
        return Action.GO_LIVE, Reason.LATEST_START if now >= start.latest_at else Reason.STORM
    if now > _last_batch_at(start.block, conditions, rules):
        return Action.GO_LIVE, Reason.LITTLE_LEFT
    return None


def _last_batch_at(block: Block, conditions: Conditions, rules: Rules) -> datetime:
    """Until when a batch is worth its while for a group that waits."""
    margin = _margin(block.window, rules, storm=conditions.storm)
    return block.deadline_at - margin - conditions.cancel_lead - rules.spare


def _margin(window: timedelta, rules: Rules, *, storm: bool) -> timedelta:
    """What is kept before a deadline."""
    margin = rules.margin.of(window)
    return max(margin, rules.storm_share * window) if storm and window <= rules.storm_window else margin


def next_action_at(
    now: datetime, plan: Iterable[LatestStart], conditions: Conditions, rules: Rules
) -> datetime | None:
    """Until when `plan_actions` has nothing to say if nothing changes, as far as can be told.

    None when there is nothing to come. May be in the past: then there is something to do.
    """
    moments = [
        _moment(now, start, conditions, rules) for start in plan if start.block.kind is not BlockKind.LIVE
    ]
    return min(moments, default=None)


def _moment(now: datetime, start: LatestStart, conditions: Conditions, rules: Rules) -> datetime:
    match start.block.kind:
        case BlockKind.WAITING if start.block.window < rules.min_window:
            return now
        case BlockKind.WAITING:
            return min(start.starts_at, _last_batch_at(start.block, conditions, rules))
        case BlockKind.IN_FLIGHT:
            return min(start.starts_at - conditions.cancel_lead, start.latest_at)
        case BlockKind.CANCELING | BlockKind.LIVE:
            return start.latest_at
        case kind:
            assert_never(kind)


def live_order(plan: Iterable[LatestStart]) -> list[LatestStart]:
    """What is queued for live calls, in the order in which it should be sent.

    Earliest deadline first; what is late already or not insured comes last.
    """
    live = [start for start in plan if start.block.kind is BlockKind.LIVE]
    return sorted(live, key=lambda one: (not one.insured, one.block.deadline_at, one.block.block_id))


def plan_leftover(now: datetime, start: LatestStart, conditions: Conditions, rules: Rules) -> Leftover:
    """Where the requests go that a final cancel or an expiry left unanswered.

    Into a new batch when much time is left, and left before their start too: else that batch would
    be canceled at once.

    Args:
        now: The present instant.
        start: Of a block of these requests, waiting.
        conditions: What is known of the API.
        rules: The numbers.
    """
    if start.block.hold is not None or conditions.hold is not None:
        return Leftover.BATCH
    much = start.block.deadline_at - now > rules.rebatch_left
    pressing = start.starts_at - conditions.cancel_lead - now < rules.min_window
    return Leftover.BATCH if much and not pressing else Leftover.LIVE
