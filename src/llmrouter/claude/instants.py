"""Instants as the API writes them outside of JSON: in a header, in the text of an error."""

from __future__ import annotations

import contextlib
import email.utils
import re
from datetime import UTC, datetime

_NAMED = re.compile(
    r"\b(?:regain|resets?|resumes?|until)\b[^.\n]{0,40}?"
    r"\b(?P<date>\d{4}-\d\d-\d\d)"
    r"(?:(?: at |[T ])(?P<time>\d\d:\d\d(?::\d\d)?)(?P<zone>[+-]\d\d:\d\d)?)?",
    re.IGNORECASE | re.ASCII,
)
"""Such as "You will regain access on 2026-12-01 at 00:00 UTC."; without an offset it is UTC."""


def http_date(text: str) -> datetime | None:
    """The instant of an HTTP date, aware, UTC; None for what is none."""
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        at = email.utils.parsedate_to_datetime(text)
        return at.astimezone(UTC) if at.tzinfo is not None else at.replace(tzinfo=UTC)
    return None


def named_end(text: str) -> datetime | None:
    """When a limit ends by the text of its error, aware, UTC; None where it names no end.

    A day without a time is its start.
    """
    named = _NAMED.search(text)
    if named is None:
        return None
    with contextlib.suppress(ValueError, OverflowError):
        zone = named["zone"] or "+00:00"
        return datetime.fromisoformat(f"{named['date']}T{named['time'] or '00:00'}{zone}").astimezone(UTC)
    return None
