"""Numbers and times as people read them."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime, timedelta

_MINUTE = 60
_HOUR = 3600
_DAY = 86400


def format_count(number: int, noun: str, plural: str | None = None) -> str:
    """``1 request``, ``2,000 requests``.

    Args:
        number: How many.
        noun: Of what.
        plural: Its plural, where an s does not make it.
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def format_usd(amount_usd: Decimal) -> str:
    """Dollars, with as many digits as a small sum needs, and as few as a large one."""
    if not amount_usd:
        return "$0"
    if abs(amount_usd) >= 1000:
        return f"${amount_usd:,.0f}"
    if abs(amount_usd) >= 1:
        return f"${amount_usd:,.2f}"
    return f"${amount_usd:.4f}" if abs(amount_usd) >= Decimal("0.001") else f"${amount_usd:.6f}"


def format_share(share: Decimal | None) -> str:
    """A part as whole percent; a dash when there is none."""
    return "–" if share is None else f"{share * 100:.0f} %"  # noqa: RUF001  (a dash, as people write it)


def format_span(span: timedelta | None) -> str:
    """A span in the one unit that suits it; a dash when there is none."""
    if span is None:
        return "–"  # noqa: RUF001
    seconds = span.total_seconds()
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    if seconds < 90 * _MINUTE:
        return f"{seconds / _MINUTE:.0f} min"
    if seconds < 48 * _HOUR:
        return f"{seconds / _HOUR:.1f} h"
    return f"{seconds / _DAY:.1f} d"


def format_bytes(size_bytes: int) -> str:
    """A size, decimal as the API counts."""
    size = float(size_bytes)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 10 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def format_instant(instant: datetime, now: datetime) -> str:
    """An instant to the second, and how far from now that is; both in UTC."""
    return f"{instant:%Y-%m-%d %H:%M:%S} UTC, {format_from_now(instant, now)}"


def format_from_now(instant: datetime | None, now: datetime) -> str:
    """How far an instant is from now; nothing when there is none."""
    if instant is None:
        return ""
    return f"{format_span(now - instant)} ago" if instant <= now else f"in {format_span(instant - now)}"
