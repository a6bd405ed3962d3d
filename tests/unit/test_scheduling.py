"""What leaves before its schedule, how large a batch may be, when to look at one."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrouter.domain.batches import wire_bytes
from llmrouter.domain.latency import Interval, LatencyClass
from llmrouter.domain.packing import BatchLimits
from llmrouter.domain.requests import Cohort, Waiting
from llmrouter.domain.scheduling import (
    Due,
    Flush,
    FlushReason,
    Margin,
    batch_limits,
    fits_group,
    group_span,
    plan_early_flushes,
    poll_interval,
    split_by_deadline,
)
from support.clocks import START
from support.requests import DAILY, LANE

MARGIN = Margin(at_least=timedelta(minutes=2), at_most=timedelta(minutes=60))
NEXT_SLOT = START + timedelta(minutes=10)
BACKLOG = Waiting(
    lane=LANE,
    latency="daily",
    model="claude-sonnet",
    request_count=5,
    body_bytes=5_000,
    earliest_deadline_at=START + timedelta(hours=24),
)


def plan(*backlog: Waiting, limits: BatchLimits | None = None) -> list[Flush]:
    """What leaves now, of a daily class whose next slot is in ten minutes."""
    return plan_early_flushes(
        START,
        backlog,
        {"daily": DAILY},
        {"daily": limits or BatchLimits()},
        {"daily": NEXT_SLOT},
        MARGIN,
    )


def class_of(deadline: timedelta) -> LatencyClass:
    """A class with this deadline."""
    return LatencyClass(name="own", deadline=deadline, flush=Interval(every=timedelta(minutes=1)))


def test_what_has_time_waits_for_its_slot() -> None:
    """Waiting costs nothing and buys company."""
    assert plan(BACKLOG) == []


def test_what_fills_a_batch_by_number_leaves_at_once() -> None:
    """At the limit, not one before it."""
    assert plan(BACKLOG, limits=BatchLimits(max_requests=6)) == []
    assert plan(BACKLOG, limits=BatchLimits(max_requests=5)) == [
        Flush(waiting=BACKLOG, reason=FlushReason.FULL)
    ]


def test_what_fills_a_batch_by_weight_leaves_at_once() -> None:
    """Weighed as it is posted."""
    weight = wire_bytes(5, 5_000)

    assert plan(BACKLOG, limits=BatchLimits(max_bytes=weight + 1)) == []
    assert plan(BACKLOG, limits=BatchLimits(max_bytes=weight))[0].reason is FlushReason.FULL


def test_what_is_due_later_fills_no_batch() -> None:
    """A daily batch holds an hour of deadlines: of three cohorts, the first two share it."""

    def cohort(hours: float, count: int) -> Cohort:
        first = START + timedelta(hours=hours)
        return Cohort(
            deadline_at=first,
            before=first + timedelta(minutes=1),
            window=timedelta(hours=24),
            request_count=count,
            body_bytes=100 * count,
        )

    cohorts = (cohort(20, 2), cohort(21, 3), cohort(21.1, 4))
    waiting = replace(BACKLOG, request_count=9, body_bytes=900, cohorts=cohorts)

    def leaves(most: int, size: int = 200_000_000, *, one_fate: bool = True) -> bool:
        limits = BatchLimits(max_requests=most, max_bytes=size, one_fate=one_fate)
        return bool(plan(waiting, limits=limits))

    assert leaves(5)
    assert not leaves(6)
    assert leaves(9, one_fate=False)
    assert leaves(100, wire_bytes(5, 500))
    assert not leaves(100, wire_bytes(5, 500) + 1)


def test_what_the_next_slot_would_make_late_leaves_at_once() -> None:
    """The margin of a daily class is an hour."""
    in_time = replace(BACKLOG, earliest_deadline_at=NEXT_SLOT + timedelta(minutes=60))
    late = replace(in_time, earliest_deadline_at=in_time.earliest_deadline_at - timedelta(seconds=1))

    assert plan(in_time) == []
    assert plan(late) == [Flush(waiting=late, reason=FlushReason.DEADLINE)]


def test_what_is_late_already_leaves_at_once() -> None:
    """Better late than never."""
    overdue = replace(BACKLOG, earliest_deadline_at=START - timedelta(hours=3))

    assert plan(overdue)[0].reason is FlushReason.DEADLINE


def test_what_waits_under_a_class_that_is_gone_leaves_at_once() -> None:
    """Taken out of the settings between two runs: no schedule will ever fire for it."""
    orphan = replace(BACKLOG, latency="nightly")

    assert plan(orphan) == [Flush(waiting=orphan, reason=FlushReason.DEADLINE)]


def test_each_backlog_is_judged_alone() -> None:
    """One that presses does not take the others along."""
    pressing = replace(BACKLOG, earliest_deadline_at=START)

    assert [flush.waiting for flush in plan(BACKLOG, pressing, BACKLOG)] == [pressing]


@given(st.integers(0, 48 * 60), st.integers(0, 48 * 60))
def test_nothing_stays_that_could_not_make_it_from_the_next_slot(deadline: int, slot: int) -> None:
    """And nothing leaves early that could."""
    waiting = replace(BACKLOG, earliest_deadline_at=START + timedelta(minutes=deadline))
    next_slot = START + timedelta(minutes=slot)
    planned = plan_early_flushes(
        START, [waiting], {"daily": DAILY}, {"daily": BatchLimits()}, {"daily": next_slot}, MARGIN
    )

    assert bool(planned) == (next_slot + timedelta(minutes=60) > waiting.earliest_deadline_at)


@pytest.mark.parametrize(
    ("window", "margin"),
    [
        (timedelta(minutes=12), timedelta(minutes=2)),
        (timedelta(hours=1), timedelta(minutes=5)),
        (timedelta(hours=24), timedelta(minutes=60)),
        (timedelta(days=7), timedelta(minutes=60)),
    ],
)
def test_margin_is_a_twelfth_of_the_window_clamped(window: timedelta, margin: timedelta) -> None:
    """docs/policy.md: hourly 5 minutes, daily and weekly 60."""
    assert MARGIN.of(window) == margin


@pytest.mark.parametrize(
    ("deadline", "set_requests", "set_bytes", "requests", "size"),
    [
        (timedelta(hours=1), None, None, 10_000, 200_000_000),
        (timedelta(hours=24), None, None, 10_000, 200_000_000),
        (timedelta(hours=48), None, None, 100_000, 256_000_000),
        (timedelta(days=7), None, None, 100_000, 256_000_000),
        (timedelta(days=7), 7, 900, 7, 900),
        (timedelta(hours=1), 50_000, None, 50_000, 200_000_000),
    ],
)
def test_batch_size_is_policys_or_what_was_set(
    deadline: timedelta, set_requests: int | None, set_bytes: int | None, requests: int, size: int
) -> None:
    """Full-size batches only where no deadline is nearer than 48 hours; a setting is taken exactly.

    Deadlines decide besides, whatever was set.
    """
    limits = batch_limits(class_of(deadline), set_requests, set_bytes)

    assert limits.one_fate

    assert (limits.max_requests, limits.max_bytes) == (requests, size)


@pytest.mark.parametrize(
    ("age", "expected"),
    [
        (timedelta(0), timedelta(seconds=10)),
        (timedelta(minutes=5), timedelta(seconds=10)),
        (timedelta(minutes=15), timedelta(seconds=30)),
        (timedelta(minutes=30), timedelta(seconds=60)),
        (timedelta(hours=20), timedelta(seconds=60)),
    ],
)
def test_a_batch_is_looked_at_less_often_with_age(age: timedelta, expected: timedelta) -> None:
    """From every 10 seconds to every 60."""
    assert poll_interval(age) == expected


def test_the_margin_is_that_of_the_requests_own_window() -> None:
    """A daily class, and a request that was given an hour: five minutes are kept, not sixty."""
    waiting = replace(BACKLOG, earliest_deadline_at=NEXT_SLOT + timedelta(minutes=5))

    assert plan(replace(waiting, window=timedelta(hours=1))) == []
    assert [flush.reason for flush in plan(waiting)] == [FlushReason.DEADLINE]


def test_what_a_batch_needs_is_kept_on_top_of_the_margin() -> None:
    """Cancel lead and spare: what leaves later would go live at once."""
    waiting = replace(BACKLOG, earliest_deadline_at=NEXT_SLOT + timedelta(minutes=68))

    def planned(reserve: timedelta) -> list[Flush]:
        return plan_early_flushes(
            START,
            [waiting],
            {"daily": DAILY},
            {"daily": BatchLimits()},
            {"daily": NEXT_SLOT},
            MARGIN,
            reserve=reserve,
        )

    assert planned(timedelta(minutes=8)) == []
    assert planned(timedelta(minutes=8, seconds=1)) != []


@pytest.mark.parametrize(
    ("deadline", "per_minute", "requests"),
    [
        (timedelta(hours=24), 400, 1_200),
        (timedelta(hours=24), 33.4, 100),
        (timedelta(hours=24), 0, 100),
        (timedelta(hours=24), 33.7, 101),
        (timedelta(hours=24), 4_000, 10_000),
        (timedelta(hours=24), float("inf"), 10_000),
        (timedelta(days=7), 400, 100_000),
    ],
)
def test_a_batch_is_what_goes_live_in_three_minutes(
    deadline: timedelta, per_minute: float, requests: int
) -> None:
    """Within 100 and 10,000; full size where deadlines are far. A setting counts exactly."""
    assert (
        batch_limits(class_of(deadline), None, None, requests_per_minute=per_minute).max_requests == requests
    )
    assert batch_limits(class_of(deadline), 7, None, requests_per_minute=per_minute).max_requests == 7


@pytest.mark.parametrize(
    ("window", "span"),
    [
        (timedelta(hours=1), timedelta(minutes=2.5)),
        (timedelta(hours=24), timedelta(hours=1)),
        (timedelta(days=7), timedelta(hours=6)),
    ],
)
def test_a_batch_holds_deadlines_of_one_neighbourhood(window: timedelta, span: timedelta) -> None:
    """A twenty-fourth of the window; weekly six hours."""
    assert group_span(window) == span


def test_requests_are_cut_into_groups_by_deadline() -> None:
    """From the first deadline on, by the window of the first, as a store claims them."""

    def due(minutes: float, hours: float = 24) -> Due:
        return Due(deadline_at=START + timedelta(minutes=minutes), window=timedelta(hours=hours))

    assert split_by_deadline([]) == []
    assert split_by_deadline([due(0), due(30), due(60), due(60.1), due(120)]) == [3, 2]
    assert split_by_deadline([due(0, 1), due(1), due(2.5), due(2.6)]) == [3, 1]
    assert split_by_deadline([due(0), due(30, 1), due(60, 1), due(61, 1)]) == [3, 1]


@given(
    st.lists(st.tuples(st.integers(0, 3_000), st.sampled_from([0.5, 1, 24, 168])), min_size=1, max_size=40)
)
def test_each_group_is_narrow_for_the_window_of_its_first(requests: list[tuple[int, float]]) -> None:
    """And as large as that allows; nobody is left out."""
    dues = [
        Due(deadline_at=START + timedelta(minutes=minutes), window=timedelta(hours=hours))
        for minutes, hours in sorted(requests)
    ]
    sizes, first = split_by_deadline(dues), 0

    assert sum(sizes) == len(dues)
    for size in sizes:
        group = dues[first : first + size]
        until = group[0].deadline_at + group_span(group[0].window)
        assert group[-1].deadline_at <= until
        assert all(due.deadline_at > until for due in dues[first + size : first + size + 1])
        assert all(fits_group(group[0], due) for due in group)
        first += size
