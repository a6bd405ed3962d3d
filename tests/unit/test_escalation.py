"""When requests go live: latest starts, and what is to be done now."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmrouter.domain.blocks import (
    Action,
    Block,
    BlockKind,
    Conditions,
    Decision,
    Hold,
    LatestStart,
    Leftover,
    Reason,
    Rules,
    rules_of,
)
from llmrouter.domain.escalation import (
    live_order,
    next_action_at,
    plan_actions,
    plan_latest_starts,
    plan_leftover,
)
from llmrouter.domain.rates import RAMP, PerMinute, Work, ramp_work
from llmrouter.domain.scheduling import Margin
from support.clocks import START

RULES = Rules()
MINUTE = timedelta(minutes=1)
CONDITIONS = Conditions(rate=PerMinute(requests=100))
DAY = timedelta(hours=24)
HOUR = timedelta(hours=1)
TICK = timedelta(microseconds=1)
CLOSE = timedelta(milliseconds=1)
"""Instants are kept to the microsecond."""


def block(
    name: str = "a",
    *,
    requests: float = 100,
    left: timedelta = DAY,
    window: timedelta = DAY,
    kind: BlockKind = BlockKind.IN_FLIGHT,
    hold: Hold | None = None,
) -> Block:
    """A block that has some time left."""
    return Block(
        block_id=name,
        kind=kind,
        work=Work(requests=requests),
        deadline_at=START + left,
        window=window,
        hold=hold,
    )


def plan(
    *blocks: Block, now: datetime = START, conditions: Conditions = CONDITIONS
) -> dict[str, LatestStart]:
    """The plan, by name."""
    return {start.block.block_id: start for start in plan_latest_starts(now, blocks, conditions, RULES)}


def decide(one: Block, now: datetime = START, conditions: Conditions = CONDITIONS) -> Decision | None:
    """What is to be done with a block that stands alone."""
    decisions = plan_actions(now, plan(one, now=now, conditions=conditions).values(), conditions, RULES)
    return decisions[0] if decisions else None


def start_of(one: Block, conditions: Conditions = CONDITIONS) -> timedelta:
    """The latest start of a block that stands alone, from START."""
    return plan(one, conditions=conditions)["a"].latest_at - START


# Plans


def test_one_block_begins_as_late_as_its_work_allows() -> None:
    """A day less the margin of an hour, less 100 requests at 100 a minute."""
    assert start_of(block()) == DAY - timedelta(minutes=61)
    assert start_of(block(requests=6_000)) == DAY - timedelta(minutes=120)
    assert start_of(block(left=HOUR, window=HOUR)) == timedelta(minutes=54)


def test_blocks_that_are_due_together_begin_one_after_the_other() -> None:
    """20,000 requests with one deadline begin 200 minutes before it, and the margin earlier."""
    starts = plan(*(block(str(n), requests=1_000) for n in range(20)))

    begin = [start.latest_at for start in starts.values()]
    assert begin == [START + DAY - HOUR - timedelta(minutes=10 * n) for n in range(1, 21)]


def test_a_margin_counts_in_the_order() -> None:
    """A daily block due ten minutes after an hourly one must be out of hand 45 minutes before it."""
    starts = plan(
        block("hourly", requests=500, left=HOUR, window=HOUR),
        block("daily", requests=500, left=timedelta(minutes=70), window=DAY),
    )

    assert all(start.insured for start in starts.values())
    assert starts["hourly"].latest_at == START + timedelta(minutes=50)
    assert starts["daily"].latest_at == START + timedelta(minutes=5)


def test_what_is_scarce_counts() -> None:
    """Output tokens, here: 50,000 of them at 1,000 a minute."""
    conditions = Conditions(rate=PerMinute(requests=100, output_tokens=1_000))
    one = replace(block(), work=Work(requests=100, output_tokens=50_000))

    assert start_of(one, conditions) == DAY - HOUR - timedelta(minutes=50)


def test_a_block_that_cannot_be_insured_takes_no_capacity() -> None:
    """It would have to begin before a tenth of its window is over; it has its own last moment."""
    small = block("small", left=timedelta(hours=23), requests=100)
    large = block("large", left=DAY, requests=131_000)
    alone = plan(small)["small"]
    together = plan(small, large)

    assert together["small"] == alone
    assert together["small"].insured
    assert not together["large"].insured
    assert together["large"].latest_at == START + timedelta(hours=2.4)
    assert plan(replace(large, work=Work(requests=120_000)))["large"].insured


def test_without_a_rate_nothing_is_insured() -> None:
    """What goes live all the same does so at its margin, not at once."""
    start = plan(block(), conditions=Conditions(rate=PerMinute(requests=0)))["a"]

    assert not start.insured
    assert start.latest_at == START + DAY - HOUR


def test_what_is_late_takes_no_capacity() -> None:
    """It cannot be saved any more."""
    late = block("late", left=-MINUTE, requests=5_000)
    other = block("other", left=timedelta(minutes=-2), window=HOUR)

    assert not any(start.insured for start in plan(late, other).values())


def test_what_must_not_go_live_takes_no_capacity() -> None:
    """And is not insured."""
    held = block("held", requests=50_000, hold=Hold.BATCH_ONLY)
    starts = plan(block("free"), held)

    assert starts["free"] == plan(block("free"))["free"]
    assert not starts["held"].insured


def test_short_windows_begin_early_in_a_storm() -> None:
    """At a quarter of the window; the promise stays that of the plain margin."""
    storm = replace(CONDITIONS, storm=True)
    starts = plan(block("hourly", left=HOUR, window=HOUR), block("daily"), conditions=storm)

    assert starts["hourly"].starts_at == START + timedelta(minutes=14)
    assert starts["hourly"].latest_at == START + timedelta(minutes=54)
    assert starts["daily"].starts_at == starts["daily"].latest_at == START + DAY - timedelta(minutes=61)


def test_a_storm_takes_insurance_from_nobody() -> None:
    """3,000 hourly requests fit before their margin, not before that of a storm: they begin at once."""
    hourly = [block(str(n), left=HOUR, window=HOUR, requests=100) for n in range(30)]
    starts = plan(*hourly, conditions=replace(CONDITIONS, storm=True))

    assert all(start.insured for start in starts.values())
    assert min(start.starts_at for start in starts.values()) == START


def test_a_ramp_is_planned_for() -> None:
    """After a pause what takes long begins two minutes earlier, a single request six seconds."""
    ramping = replace(CONDITIONS, ramping=True)

    assert start_of(block()) - start_of(block(), ramping) == pytest.approx(
        timedelta(minutes=2), abs=3 * MINUTE / 60
    )
    assert start_of(block(requests=1)) - start_of(block(requests=1), ramping) < timedelta(seconds=6)


def test_a_longer_ramp_is_planned_for_too() -> None:
    """Doubling each ten minutes it costs twenty, and a single request ten times six seconds."""
    slow = replace(RULES, ramp=10 * MINUTE)
    ramping = replace(CONDITIONS, ramping=True)

    def lost(requests: int, rules: Rules) -> timedelta:
        one = block(requests=requests)
        starts = [
            plan_latest_starts(START, [one], conditions, rules)[0].latest_at
            for conditions in (CONDITIONS, ramping)
        ]
        return starts[0] - starts[1]

    assert lost(6_000, slow) == pytest.approx(timedelta(minutes=20.235), abs=timedelta(seconds=1))
    assert lost(6_000, slow) == pytest.approx(10 * lost(600, RULES), abs=timedelta(seconds=1))
    assert lost(10, slow) == pytest.approx(10 * lost(1, RULES), abs=timedelta(seconds=1))


def test_the_numbers_keep_their_ratio_to_the_smallest_window() -> None:
    """The policy's own give the policy's own; a thousandth gives a thousandth."""
    assert rules_of(margin=RULES.margin, min_window=15 * MINUTE, ramp=MINUTE) == RULES

    margin = Margin(at_least=timedelta(seconds=1), at_most=timedelta(seconds=9))
    small = rules_of(margin=margin, min_window=timedelta(seconds=0.9), ramp=timedelta(seconds=2))
    assert small == Rules(
        margin=margin,
        min_window=timedelta(seconds=0.9),
        spare=timedelta(seconds=0.18),
        storm_window=timedelta(seconds=7.2),
        storm_silence=timedelta(seconds=1.2),
        storm_age=timedelta(seconds=0.9),
        rebatch_left=timedelta(seconds=10.8),
        ramp=timedelta(seconds=2),
    )


minutes = st.integers(1, 3_000).map(lambda number: number * MINUTE)
rates = st.integers(5, 400)


@st.composite
def outstanding(draw: st.DrawFn) -> list[Block]:
    """Blocks of all kinds, some late, some too large to be insured, with some of one deadline."""
    deadlines = draw(st.lists(minutes, min_size=1, max_size=6))
    blocks = []
    for place in range(draw(st.integers(1, 14))):
        window = draw(st.sampled_from([timedelta(minutes=20), HOUR, 4 * HOUR, DAY, 7 * DAY]))
        # Everything was accepted in the past, or at the latest now.
        left = min(draw(st.sampled_from(deadlines)), window) - draw(st.sampled_from([0, 0, 90])) * MINUTE
        blocks.append(
            block(
                f"b{place:02}",
                requests=draw(st.integers(1, 5_000)),
                left=left,
                window=window,
                kind=draw(st.sampled_from(BlockKind)),
            )
        )
    return blocks


def insured_by_target(
    blocks: list[Block], conditions: Conditions, rules: Rules = RULES
) -> list[tuple[LatestStart, datetime, timedelta]]:
    """The insured blocks, first due first: by when each must be done, and how long it takes."""
    places = [
        (
            start,
            start.block.deadline_at - RULES.margin.of(start.block.window),
            start.block.work.requests / conditions.rate.requests * MINUTE,
        )
        for start in plan_latest_starts(START, blocks, conditions, rules)[::-1]
        if start.insured
    ]
    return sorted(places, key=lambda place: place[1])


@settings(deadline=None)
@given(outstanding(), rates)
def test_a_plan_is_feasible(blocks: list[Block], rate: int) -> None:
    """When each insured block begins at its start, all of them are done by their deadlines less margins."""
    busy_until = START - 1_000 * DAY
    for start, target, takes in insured_by_target(blocks, Conditions(rate=PerMinute(requests=rate))):
        busy_until = max(busy_until, start.latest_at) + takes
        assert busy_until <= target + CLOSE


@settings(deadline=None)
@given(outstanding(), rates)
def test_no_start_could_be_later(blocks: list[Block], rate: int) -> None:
    """Each is forced by some later target: begun later, what is due up to there would not be done by it."""
    places = insured_by_target(blocks, Conditions(rate=PerMinute(requests=rate)))
    for place, (start, _, _) in enumerate(places):
        work, forced = timedelta(0), []
        for _, target, takes in places[place:]:
            work += takes
            forced.append(target - work)
        assert abs(start.latest_at - min(forced)) <= CLOSE


@settings(deadline=None)
@given(outstanding(), rates, st.sampled_from([MINUTE, 4 * MINUTE, MINUTE / 60]))
@example(
    [block("a", requests=50, left=timedelta(hours=22, minutes=19.9)), block("b", requests=10_000)], 100, RAMP
)
@example(
    [block("a", requests=50, left=timedelta(hours=22, minutes=17)), block("b", requests=10_000)],
    100,
    4 * RAMP,
)
def test_a_plan_is_feasible_on_a_ramp(blocks: list[Block], rate: int, ramp: timedelta) -> None:
    """Also when the rate has to grow from a tenth each time that there was nothing to do."""
    conditions = Conditions(rate=PerMinute(requests=rate), ramping=True)
    places = insured_by_target(blocks, conditions, replace(RULES, ramp=ramp))
    releases = sorted((start.latest_at, target, takes / MINUTE) for start, target, takes in places)
    queue: list[tuple[datetime, float]] = []
    now, begun, done = START, START, 0.0
    while releases or queue:
        if not queue:
            now = begun = max(now, releases[0][0]) if done else releases[0][0]
            done = 0.0
        while releases and releases[0][0] <= now:
            queue.append(releases.pop(0)[1:])
        target, work = min(queue)
        queue.remove((target, work))
        until = begun + _ramped(done + work, ramp)
        if releases and releases[0][0] < until:  # Something else comes, perhaps something more urgent.
            now = releases[0][0]
            passed = ramp_work((now - begun) / MINUTE, ramp) - done
            queue.append((target, work - passed))
            done += passed
            continue
        now, done = until, done + work
        assert now <= target + 100 * CLOSE


def _ramped(work: float, ramp: timedelta) -> timedelta:
    """How long some work takes from the beginning of a ramp, found by bisection."""
    low, high = work, work + 3 * max(1.0, ramp / RAMP)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if ramp_work(middle, ramp) < work else (low, middle)
    return high * MINUTE


@settings(deadline=None)
@given(outstanding(), rates)
def test_who_is_not_insured_changes_nothing_for_the_others(blocks: list[Block], rate: int) -> None:
    """And each of them would in truth have had to begin before a tenth of its window."""
    conditions = Conditions(rate=PerMinute(requests=rate))
    starts = plan_latest_starts(START, blocks, conditions, RULES)
    insured = [start for start in starts if start.insured]

    assert plan_latest_starts(START, [start.block for start in insured], conditions, RULES) == insured
    for place, start in enumerate(starts):
        if start.insured or start.block.deadline_at <= START:
            continue
        after = [other.latest_at for other in starts[:place] if other.insured]
        target = start.block.deadline_at - RULES.margin.of(start.block.window)
        begin = min([*after, target]) - start.block.work.requests / rate * MINUTE
        assert begin < start.block.deadline_at - 0.9 * start.block.window + CLOSE


@settings(deadline=None)
@given(outstanding(), rates, st.booleans(), st.booleans())
def test_time_alone_changes_no_plan(blocks: list[Block], rate: int, storm: bool, ramping: bool) -> None:
    """Nor does the order in which the blocks are given."""
    conditions = Conditions(rate=PerMinute(requests=rate), storm=storm, ramping=ramping)
    due = [one.deadline_at for one in blocks if one.deadline_at > START]
    later = min(due, default=START + MINUTE) - TICK
    first = plan_latest_starts(START, blocks, conditions, RULES)

    assert plan_latest_starts(max(later, START), blocks[::-1], conditions, RULES) == first
    assert all(start.starts_at <= start.latest_at for start in first)


# Actions


def test_a_group_that_waits_goes_live_at_its_start() -> None:
    """Not before; here the start is an hour and ten minutes before the deadline."""
    waiting = block(kind=BlockKind.WAITING, requests=1_000)
    start = START + DAY - timedelta(minutes=70)

    assert decide(waiting, start - TICK) is None
    found = decide(waiting, start)
    assert found is not None
    assert (found.action, found.reason) == (Action.GO_LIVE, Reason.LATEST_START)


@pytest.mark.parametrize(
    ("window", "left", "reason"),
    [
        (timedelta(minutes=15) - TICK, 15 * MINUTE, Reason.SHORT_WINDOW),
        (timedelta(minutes=15), 15 * MINUTE, None),
        (HOUR, 13 * MINUTE, None),
        (HOUR, 13 * MINUTE - TICK, Reason.LITTLE_LEFT),
        (DAY, 68 * MINUTE, None),
        (DAY, 68 * MINUTE - TICK, Reason.LITTLE_LEFT),
    ],
)
def test_what_has_too_little_time_for_a_batch_goes_live_at_once(
    window: timedelta, left: timedelta, reason: Reason | None
) -> None:
    """A window below 15 minutes, or less left than margin, cancel lead and 3 minutes."""
    found = decide(block(kind=BlockKind.WAITING, requests=1, left=left, window=window))

    assert (found and (found.action, found.reason)) == (reason and (Action.GO_LIVE, reason))


def test_a_batch_is_canceled_the_lead_before_its_start() -> None:
    """Its answers can be read only then; what is left goes live."""
    start = START + DAY - timedelta(minutes=61)

    assert decide(block(), start - timedelta(minutes=5) - TICK) is None
    found = decide(block(), start - timedelta(minutes=5))
    assert found is not None
    assert (found.action, found.reason) == (Action.CANCEL, Reason.LATEST_START)


def test_what_its_batch_has_not_given_back_goes_live_all_the_same() -> None:
    """At its latest start, whether or not somebody asked for the cancel; it may be paid twice."""
    start = START + DAY - timedelta(minutes=61)
    canceling = block(kind=BlockKind.CANCELING)

    assert decide(canceling, start - TICK) is None
    for one, reason in ((canceling, Reason.CANCEL_NOT_FINAL), (block(), Reason.LATEST_START)):
        found = decide(one, start)
        assert found is not None
        assert (found.action, found.reason) == (Action.RACE, reason)


def test_a_storm_cancels_early_and_never_races_early() -> None:
    """A quarter of the window less the lead; the race begins at the plain start."""
    storm = replace(CONDITIONS, storm=True)
    hourly = block(left=HOUR, window=HOUR)

    assert decide(hourly, START + timedelta(minutes=9) - TICK, storm) is None
    found = decide(hourly, START + timedelta(minutes=9), storm)
    assert found is not None
    assert (found.action, found.reason) == (Action.CANCEL, Reason.STORM)
    late = decide(hourly, START + timedelta(minutes=30), storm)
    assert late is not None
    assert late.action is Action.CANCEL
    canceling = replace(hourly, kind=BlockKind.CANCELING)
    assert decide(canceling, START + timedelta(minutes=54) - TICK, storm) is None
    waiting = decide(replace(hourly, kind=BlockKind.WAITING), START + timedelta(minutes=14), storm)
    assert waiting is not None
    assert waiting.reason is Reason.STORM


@pytest.mark.parametrize("kind", [BlockKind.WAITING, BlockKind.IN_FLIGHT, BlockKind.CANCELING])
@pytest.mark.parametrize("hold", list(Hold))
def test_what_must_not_go_live_stays_and_is_named(kind: BlockKind, hold: Hold) -> None:
    """No cancel either: it would only lose the batch. The same for one block and for all."""
    stopped = replace(CONDITIONS, hold=hold)
    for one, conditions in ((block(kind=kind, hold=hold), CONDITIONS), (block(kind=kind), stopped)):
        assert decide(one, START, conditions) is None
        found = decide(one, START + DAY - HOUR, conditions)
        assert found is not None
        assert (found.action, found.reason) == (Action.STAY, Reason(hold))
        assert not found.insured


@settings(deadline=None)
@given(outstanding(), rates, st.booleans(), st.integers(0, 3_000))
def test_what_is_done_is_not_asked_for_again(
    blocks: list[Block],
    rate: int,
    storm: bool,
    minute: int,
) -> None:
    """Once each block has its new kind, there is nothing to do at the same instant."""
    conditions = Conditions(rate=PerMinute(requests=rate), storm=storm)
    now = START + minute * MINUTE
    decisions = plan_actions(now, plan_latest_starts(now, blocks, conditions, RULES), conditions, RULES)
    after = {one.block_id: one for one in blocks}
    for decision in decisions:
        canceled = decision.action is Action.CANCEL
        kind = BlockKind.CANCELING if canceled else BlockKind.LIVE
        after[decision.block.block_id] = replace(decision.block, kind=kind)

    again = plan_latest_starts(now, after.values(), conditions, RULES)
    assert plan_actions(now, again, conditions, RULES) == []


@settings(deadline=None)
@given(outstanding(), rates, st.booleans())
def test_until_the_next_moment_there_is_nothing_to_do(blocks: list[Block], rate: int, storm: bool) -> None:
    """And then there is."""
    conditions = Conditions(rate=PerMinute(requests=rate), storm=storm)
    starts = plan_latest_starts(START, blocks, conditions, RULES)
    moment = next_action_at(START, starts, conditions, RULES)

    if moment is None:
        assert all(one.kind is BlockKind.LIVE for one in blocks)
        return
    assert plan_actions(moment - TICK, starts, conditions, RULES) == [] or moment <= START
    assert plan_actions(moment + TICK, starts, conditions, RULES) != []


def test_live_calls_go_out_by_deadline_and_the_hopeless_last() -> None:
    """What is late or not insured waits for all the others."""
    live = {"kind": BlockKind.LIVE, "window": DAY}
    starts = plan(
        block("late", left=-MINUTE, **live),
        block("large", left=HOUR, requests=1_000_000, **live),
        block("second", left=3 * HOUR, **live),
        block("first", left=2 * HOUR, **live),
        block("batch", left=HOUR, window=DAY),
    )

    assert [start.block.block_id for start in live_order(starts.values())] == [
        "first",
        "second",
        "late",
        "large",
    ]


@pytest.mark.parametrize(
    ("left", "requests", "expected"),
    [
        (timedelta(minutes=180), 10, Leftover.LIVE),
        (timedelta(minutes=180) + TICK, 10, Leftover.BATCH),
        (timedelta(minutes=300), 22_000, Leftover.BATCH),
        (timedelta(minutes=300), 22_001, Leftover.LIVE),
    ],
)
def test_what_a_batch_gave_back_is_batched_again_when_there_is_time(
    left: timedelta, requests: int, expected: Leftover
) -> None:
    """More than 180 minutes, and 15 before it would be canceled again."""
    one = block(kind=BlockKind.WAITING, left=left, requests=requests)

    assert plan_leftover(START, plan(one)["a"], CONDITIONS, RULES) is expected


def test_what_must_not_go_live_is_batched_again() -> None:
    """Whatever time is left."""
    one = block(kind=BlockKind.WAITING, left=MINUTE, hold=Hold.BUDGET)

    assert plan_leftover(START, plan(one)["a"], CONDITIONS, RULES) is Leftover.BATCH
