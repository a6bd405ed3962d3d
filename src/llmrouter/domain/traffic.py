"""What each call site sends live, added up by day: how much it is, and what it costs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, date
from decimal import Decimal
from functools import reduce
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from llmrouter.domain.cache_use import CacheUse, cache_use_fields, read_cache_use, sum_uses

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

MOST_ROWS = 10_000
"""Of one day. What would be more is added to rows of the site `OTHER`: names can be made by the million."""

OTHER = "(other)"

_MOST_NAMED = MOST_ROWS - 1_000
"""From here on, new sites have no row of their own; what is left is for the models and classes of `OTHER`."""

_LONGEST_NAME = 200
"""Characters of a site, a model or a class: callers name them."""

TrafficKey: TypeAlias = "tuple[date, str, str, str, bool]"
"""What tells rows apart: day, site, model, latency class, streaming."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficRow:
    """Live calls of one call site, to one model, on one day."""

    day: date
    """When their answers came, or began to; UTC."""
    site: str
    """``module:function``, or what the user calls it; `OTHER`: of several."""
    model: str
    """As it was asked for."""
    latency: str
    """The class that the call's tag, its block or a rule asks for; ``"real-time"`` without any."""
    streaming: bool
    """Whether they asked for a stream of events."""
    calls: int = 0
    """Requests sent; those that the SDK sends again by itself count again."""
    errors: int = 0
    """Those of them that gave no message: refused, failed or cancelled."""
    use: CacheUse = field(default_factory=CacheUse)
    """Input tokens; `CacheUse.requests` is the number of messages that told theirs."""
    output_tokens: int = 0
    priced: int = 0
    """Messages whose price is known."""
    cost_usd: Decimal = Decimal(0)
    """What those cost, at standard prices."""
    total_seconds: float = 0.0
    """From the beginning of each call to the end of its answer."""
    max_seconds: float = 0.0

    @property
    def unpriced(self) -> int:
        """Messages of unknown price: of an unknown model, or of a stream that was not read to its end."""
        return max(0, self.calls - self.errors - self.priced)


Noted: TypeAlias = "tuple[str, object, str, bool, float, int, int, float, Any]"
"""The fields of a `Sample`, as they are noted on the way of a call, where that costs least."""


class Sample(NamedTuple):
    """What is noted of a live call.

    Of an answer that its caller reads piece by piece there are two: one that counts it, one of its end.
    """

    site: str
    model: object
    """As it was asked for, whatever that is."""
    latency: str
    streaming: bool
    came: float
    """When its answer came, or began to, or there was none; by `Clock.monotonic`."""
    calls: int
    errors: int
    seconds: float
    answer: Any
    """What can be read of the answer later; None: nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What was read of an answer."""

    use: CacheUse = field(default_factory=CacheUse)
    output_tokens: int = 0
    cost_usd: Decimal | None = None
    """None: nobody knows."""
    failed: bool = False
    """Whether it ended with an error of the API's: a stream can."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A sample after its answer was read."""

    sample: Sample
    at: datetime
    told: Told


def rows_of(readings: Iterable[Reading]) -> list[TrafficRow]:
    """Readings, added up."""
    sums: dict[TrafficKey, list[Reading]] = {}
    for reading in readings:
        sample, day = reading.sample, reading.at.astimezone(UTC).date()
        site, model, latency = (str(name)[:_LONGEST_NAME] for name in sample[:3])
        sums.setdefault((day, site, model, latency, sample.streaming), []).append(reading)
    return [_row(key, each) for key, each in sums.items()]


def _row(key: TrafficKey, each: Sequence[Reading]) -> TrafficRow:
    day, site, model, latency, streaming = key
    samples = [reading.sample for reading in each]
    prices = [reading.told.cost_usd for reading in each if reading.told.cost_usd is not None]
    return TrafficRow(
        day=day,
        site=site,
        model=model,
        latency=latency,
        streaming=streaming,
        calls=sum(sample.calls for sample in samples),
        errors=sum(reading.sample.errors or reading.told.failed for reading in each),
        use=reduce(sum_uses, (reading.told.use for reading in each)),
        output_tokens=sum(reading.told.output_tokens for reading in each),
        priced=len(prices),
        cost_usd=sum(prices, Decimal(0)),
        total_seconds=sum(sample.seconds for sample in samples),
        max_seconds=max(sample.seconds for sample in samples),
    )


def traffic_key(row: TrafficRow) -> TrafficKey:
    """What tells a row from others."""
    return row.day, row.site, row.model, row.latency, row.streaming


def add_rows(earlier: Iterable[TrafficRow], more: Iterable[TrafficRow]) -> list[TrafficRow]:
    """Rows added up, one for each key, sorted; at most `MOST_ROWS` of a day.

    Args:
        earlier: What was added up before, which keeps its rows.
        more: Of any days.
    """
    sums: dict[TrafficKey, TrafficRow] = {}
    counts: dict[date, int] = {}
    for row in (*earlier, *more):
        key = _place(sums, counts.get(row.day, 0), traffic_key(row))
        known = sums.get(key)
        if known is None:
            counts[row.day] = counts.get(row.day, 0) + 1
            day, site, model, latency, streaming = key
            sums[key] = replace(row, day=day, site=site, model=model, latency=latency, streaming=streaming)
        else:
            sums[key] = _sum(known, row)
    return [sums[key] for key in sorted(sums)]


def _place(sums: Mapping[TrafficKey, TrafficRow], count: int, key: TrafficKey) -> TrafficKey:
    """Where a row goes: under its own key, or one of `OTHER` when there are too many."""
    day, _, model, latency, streaming = key
    if key in sums or count < _MOST_NAMED:
        return key
    without_site = day, OTHER, model, latency, streaming
    if without_site in sums or count < MOST_ROWS - 2:
        return without_site
    return day, OTHER, OTHER, OTHER, streaming


def _sum(one: TrafficRow, other: TrafficRow) -> TrafficRow:
    """Two rows of one key."""
    return replace(
        one,
        calls=one.calls + other.calls,
        errors=one.errors + other.errors,
        use=sum_uses(one.use, other.use),
        output_tokens=one.output_tokens + other.output_tokens,
        priced=one.priced + other.priced,
        cost_usd=one.cost_usd + other.cost_usd,
        total_seconds=one.total_seconds + other.total_seconds,
        max_seconds=max(one.max_seconds, other.max_seconds),
    )


def traffic_fields(row: TrafficRow) -> dict[str, Any]:
    """A row as plain JSON data, without its day."""
    return {
        "site": row.site,
        "model": row.model,
        "latency": row.latency,
        "streaming": row.streaming,
        "calls": row.calls,
        "errors": row.errors,
        "use": cache_use_fields(row.use),
        "output_tokens": row.output_tokens,
        "priced": row.priced,
        "cost_usd": str(row.cost_usd),
        "total_seconds": row.total_seconds,
        "max_seconds": row.max_seconds,
    }


def read_traffic(day: date, fields: Mapping[str, Any]) -> TrafficRow:
    """The row of its JSON data.

    Raises:
        ValueError: It is none; or KeyError.
    """
    return TrafficRow(
        day=day,
        site=str(fields["site"]),
        model=str(fields["model"]),
        latency=str(fields["latency"]),
        streaming=bool(fields["streaming"]),
        calls=int(fields["calls"]),
        errors=int(fields["errors"]),
        use=read_cache_use(fields["use"]),
        output_tokens=int(fields["output_tokens"]),
        priced=int(fields["priced"]),
        cost_usd=Decimal(fields["cost_usd"]),
        total_seconds=float(fields["total_seconds"]),
        max_seconds=float(fields["max_seconds"]),
    )
