"""Latency classes: how long a call site can wait, and when its backlog leaves."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from llmrouter.errors import InvalidDeadlineError

REAL_TIME = "real-time"
"""The class that waits for nothing: it goes straight to ``messages.create``."""

CLASS_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
"""What a class may be called: lower case words joined by hyphens, 32 characters at most."""

_SPAN = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?")
_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, None: 1.0}
_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_WEEKDAY_NUMBERS = re.compile(r"(?:\*|([0-7])(?:-([0-7]))?)(?:/([1-9]\d*))?")
_LONGEST = timedelta(days=36_525)
"""A hundred years: what is added to the present instant must stay an instant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A flush schedule that fires every so often."""

    every: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class CronLine:
    """A flush schedule in the five fields of cron, in the time zone of the settings."""

    line: str


Schedule = Interval | CronLine


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyClass:
    """A promise about waiting: the answer is there ``deadline`` after it was accepted."""

    name: str
    deadline: timedelta
    flush: Schedule


def parse_span(value: str | float | timedelta) -> timedelta:
    """Reads a span: a number of seconds, or ``"90s"``, ``"15m"``, ``"24h"``, ``"7d"``, ``"200ms"``.

    Raises:
        ValueError: It is no span, is not positive, or is longer than a hundred years.
    """
    span = value if isinstance(value, timedelta) else _read_span(value)
    if span <= timedelta(0):
        raise ValueError(f"{value!r} is no span: it must be longer than nothing")
    if span > _LONGEST:
        raise ValueError(f"{value!r} is no span: it must not be longer than a hundred years")
    return span


def _read_span(text: str | float) -> timedelta:
    match = _SPAN.fullmatch(str(text).strip())
    if match is None:
        raise ValueError(
            f"{text!r} is no span: give seconds, or a number with s, m, h or d, like '90s' or '24h'"
        )
    try:
        return timedelta(seconds=float(match[1]) * _UNIT_SECONDS[match[2]])
    except OverflowError:
        return timedelta.max


def parse_schedule(text: str | float | timedelta) -> Schedule:
    """Reads a flush schedule: a span, or a cron line of five fields such as ``"0 22 * * *"``.

    The fields of a cron line are checked where it is scheduled, by APScheduler.

    Raises:
        ValueError: It is neither.
    """
    if isinstance(text, str) and len(text.split()) == 5:
        return CronLine(line=text.strip())
    try:
        return Interval(every=parse_span(text))
    except ValueError:
        raise ValueError(
            f"{text!r} is no schedule: give a span like '10m', or a cron line of five fields: '0 22 * * *'"
        ) from None


def name_weekdays(line: str) -> str:
    """A cron line with its weekdays by name: cron counts them from Sunday, APScheduler from Monday."""
    *others, days = line.split()
    return " ".join([*others, ",".join(map(_named, days.split(",")))])


def _named(part: str) -> str:
    match = _WEEKDAY_NUMBERS.fullmatch(part)
    if match is None or part == "*":
        return part
    first, last, step = match.groups()
    end = last or (first if step is None else None) or 6
    numbers = range(int(first or 0), int(end) + 1, int(step or 1))
    return ",".join(_WEEKDAYS[number % 7] for number in numbers) or part


def linger(window: timedelta, *, at_least: timedelta, at_most: timedelta) -> timedelta:
    """How long a group waits for company by default: a sixtieth of the window, clamped (docs/policy.md)."""
    return min(max(window / 60, at_least), at_most)


def check_deadline(deadline: timedelta | datetime | None, now: datetime) -> None:
    """Refuses a deadline of the caller's that cannot be one.

    Raises:
        InvalidDeadlineError: It is past, more than a hundred years away, has no time zone, or is
            of another type.
    """
    match deadline:
        case None:
            return
        case timedelta():
            if deadline <= timedelta(0):
                raise InvalidDeadlineError("deadline", f"{deadline} is not in the future")
            if deadline > _LONGEST:
                raise InvalidDeadlineError("deadline", f"{deadline} is too far: give a hundred years at most")
        case datetime():
            if deadline.tzinfo is None or deadline.utcoffset() is None:
                raise InvalidDeadlineError(
                    "deadline",
                    f"{deadline.isoformat()} has no time zone; give an aware datetime or a timedelta",
                )
            if deadline <= now:
                raise InvalidDeadlineError(
                    "deadline", f"{deadline.isoformat()} has passed (it is {now.isoformat()})"
                )
            if deadline - now > _LONGEST:
                raise InvalidDeadlineError(
                    "deadline", f"{deadline.isoformat()} is too far: give a hundred years at most"
                )
        case _:
            raise InvalidDeadlineError(
                "deadline", f"give a timedelta or an aware datetime, not {type(deadline).__name__}"
            )


def deadline_at(
    latency: LatencyClass, override: timedelta | datetime | None, accepted_at: datetime
) -> datetime:
    """The instant by which the answer must be there, UTC.

    Args:
        latency: The class, whose deadline counts when there is no override.
        override: The caller's own deadline, already checked.
        accepted_at: When the request became durable.
    """
    if isinstance(override, datetime):
        return override.astimezone(UTC)
    return accepted_at + (latency.deadline if override is None else override)
