"""Spans, schedules and deadlines."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrouter.domain.latency import (
    CronLine,
    Interval,
    LatencyClass,
    check_deadline,
    deadline_at,
    linger,
    name_weekdays,
    parse_schedule,
    parse_span,
)
from llmrouter.errors import InvalidDeadlineError

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
DAILY = LatencyClass(name="daily", deadline=timedelta(hours=24), flush=Interval(every=timedelta(minutes=10)))


@pytest.mark.parametrize(
    ("text", "span"),
    [
        (90, timedelta(seconds=90)),
        (0.3, timedelta(seconds=0.3)),
        ("0.3", timedelta(seconds=0.3)),
        ("200ms", timedelta(milliseconds=200)),
        ("90s", timedelta(seconds=90)),
        ("15m", timedelta(minutes=15)),
        ("1.5h", timedelta(minutes=90)),
        ("24h", timedelta(hours=24)),
        ("7d", timedelta(days=7)),
        (" 7 d ", timedelta(days=7)),
        (timedelta(minutes=3), timedelta(minutes=3)),
    ],
)
def test_a_span_is_seconds_or_a_number_with_a_unit(text: Any, span: timedelta) -> None:
    """As the reference of the settings lists them."""
    assert parse_span(text) == span


@pytest.mark.parametrize(
    "text",
    ["", "soon", "-5s", "5 minutes", "1h30m", "1e3", "nan", "inf", True, None, "0", "0s", 0, "0.0000001s"],
)
def test_what_is_no_span_is_refused(text: Any) -> None:
    """And named in the error."""
    with pytest.raises(ValueError, match=f"^{text!r} is no span"):
        parse_span(text)


@pytest.mark.parametrize("span", [timedelta(0), timedelta(seconds=-1), timedelta.max])
def test_a_timedelta_has_to_be_a_span_too(span: timedelta) -> None:
    """Longer than nothing, and not beyond all calendars."""
    with pytest.raises(ValueError, match="is no span"):
        parse_span(span)


@pytest.mark.parametrize("text", ["99999999999999d", "9" * 400, "4000000d"])
def test_a_span_beyond_all_calendars_is_refused(text: str) -> None:
    """With the same error as any other wrong span: no instant could be that far away."""
    with pytest.raises(ValueError, match="is no span"):
        parse_span(text)


@given(st.integers(1, 10**5), st.sampled_from(["s", "m", "h"]))
def test_a_span_is_its_number_times_its_unit(number: int, unit: str) -> None:
    """Whatever the number."""
    seconds = {"s": 1, "m": 60, "h": 3600}[unit]

    assert parse_span(f"{number}{unit}") == timedelta(seconds=number * seconds)


def test_a_schedule_is_a_span_or_a_cron_line() -> None:
    """Five fields are a cron line, anything else has to be a span."""
    assert parse_schedule("10m") == Interval(every=timedelta(minutes=10))
    assert parse_schedule(0.5) == Interval(every=timedelta(seconds=0.5))
    assert parse_schedule(" 0 22 * * 1-5 ") == CronLine(line="0 22 * * 1-5")


@pytest.mark.parametrize("text", ["nightly", "0 22 * *", "0 0 22 * * *", None])
def test_what_is_no_schedule_is_refused(text: Any) -> None:
    """And the error shows both forms."""
    with pytest.raises(ValueError, match=r"is no schedule: .*'10m'.*'0 22 \* \* \*'"):
        parse_schedule(text)


@pytest.mark.parametrize(
    ("days", "names"),
    [
        ("*", "*"),
        ("0", "sun"),
        ("1", "mon"),
        ("7", "sun"),
        ("1-5", "mon,tue,wed,thu,fri"),
        ("0,6", "sun,sat"),
        ("6-7", "sat,sun"),
        ("1-5/2", "mon,wed,fri"),
        ("*/2", "sun,tue,thu,sat"),
        ("mon-fri", "mon-fri"),
        ("MON", "MON"),
        ("8", "8"),
        ("5-1", "5-1"),
        ("*/0", "*/0"),
    ],
)
def test_weekdays_are_counted_as_cron_counts_them(days: str, names: str) -> None:
    """From Sunday; APScheduler counts from Monday. What is wrong is left for it to refuse."""
    assert name_weekdays(f"0 22 * * {days}") == f"0 22 * * {names}"


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        (timedelta(minutes=1), timedelta(seconds=30)),
        (timedelta(hours=1), timedelta(minutes=1)),
        (timedelta(hours=24), timedelta(minutes=10)),
        (timedelta(days=7), timedelta(minutes=10)),
    ],
)
def test_linger_is_a_sixtieth_of_the_window_clamped(window: timedelta, expected: timedelta) -> None:
    """docs/policy.md: hourly 1 minute, daily and weekly 10."""
    assert linger(window, at_least=timedelta(seconds=30), at_most=timedelta(minutes=10)) == expected


@pytest.mark.parametrize(
    ("deadline", "problem"),
    [
        (timedelta(0), "not in the future"),
        (timedelta(seconds=-1), "not in the future"),
        (NOW, "has passed"),
        (NOW - timedelta(days=1), "has passed"),
        (datetime(2030, 1, 1), "no time zone"),  # noqa: DTZ001
        (3600, "not int"),
        ("24h", "not str"),
        (timedelta.max, "too far"),
        (timedelta(days=365 * 8000), "too far"),
        (datetime.max.replace(tzinfo=timezone(timedelta(hours=-5))), "too far"),
    ],
)
def test_what_cannot_be_a_deadline_is_refused(deadline: Any, problem: str) -> None:
    """Naming the field, before anything is stored."""
    with pytest.raises(InvalidDeadlineError, match=problem) as caught:
        check_deadline(deadline, NOW)

    assert caught.value.field == "deadline"


@pytest.mark.parametrize(
    "deadline",
    [None, timedelta(microseconds=1), timedelta(days=30), NOW + timedelta(microseconds=1)],
)
def test_a_deadline_to_come_is_accepted(deadline: Any) -> None:
    """However soon."""
    check_deadline(deadline, NOW)


def test_the_deadline_of_the_class_counts_from_acceptance() -> None:
    """Where the caller gives none of their own."""
    assert deadline_at(DAILY, None, NOW) == NOW + timedelta(hours=24)


def test_a_deadline_of_the_callers_overrides_the_class() -> None:
    """A span counts from acceptance, an instant stands."""
    assert deadline_at(DAILY, timedelta(minutes=5), NOW) == NOW + timedelta(minutes=5)
    assert deadline_at(DAILY, NOW + timedelta(days=2), NOW) == NOW + timedelta(days=2)


def test_deadlines_are_kept_in_utc() -> None:
    """Also one that was given in another time zone: the same instant."""
    berlin = timezone(timedelta(hours=1))

    at = deadline_at(DAILY, datetime(2026, 11, 21, 13, tzinfo=berlin), NOW)

    assert (at, at.utcoffset()) == (datetime(2026, 11, 21, 12, tzinfo=UTC), timedelta(0))
