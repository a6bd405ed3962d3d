"""Spans in which batches stand still, and how long work takes across them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from llmrouter.sandbox.clocks import format_instant

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_NOTHING = timedelta(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outage:
    """A span of the sandbox's time in which no item of any batch gets done. Calls are answered.

    Raises:
        ValueError: an instant has no time zone, or the span ends before it begins.
    """

    from_at: datetime
    until_at: datetime
    cancels: bool = True
    """Whether a batch that is canceled in it ends as ever; False: that takes until the outage is over."""

    def __post_init__(self) -> None:
        if self.from_at.tzinfo is None or self.until_at.tzinfo is None:
            raise ValueError("an outage's instants must have a time zone")
        if self.until_at < self.from_at:
            raise ValueError("an outage must not end before it begins")

    def to_json(self) -> dict[str, Any]:
        """Its fields as JSON."""
        return {
            "from_at": format_instant(self.from_at),
            "until_at": format_instant(self.until_at),
            "cancels": self.cancels,
        }


def worked(since: datetime, until: datetime, outages: Iterable[Outage]) -> timedelta:
    """How much of the time between two instants lies in no outage."""
    total = until - since
    for outage in _apart(outages):
        total -= max(_NOTHING, min(until, outage.until_at) - max(since, outage.from_at))
    return total


def done_at(since: datetime, span: timedelta, outages: Iterable[Outage]) -> datetime:
    """When work that takes `span` is done that began at an instant and stands still in outages."""
    end = since + span
    for outage in _apart(outages):
        if outage.until_at > since and outage.from_at < end:
            end += outage.until_at - max(since, outage.from_at)
    return end


def _apart(outages: Iterable[Outage]) -> Iterator[Outage]:
    """The same spans in order, none of which overlap."""
    last: Outage | None = None
    for outage in sorted(outages, key=lambda one: one.from_at):
        if last is None:
            last = outage
        elif outage.from_at > last.until_at:
            yield last
            last = outage
        else:
            last = Outage(from_at=last.from_at, until_at=max(last.until_at, outage.until_at))
    if last is not None:
        yield last
