"""What came of requests, counted: which way, in time or not and why, and what was paid in vain."""

from __future__ import annotations

import enum
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from datetime import date
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from llmrouter.domain.blocks import Reason
from llmrouter.domain.cache_use import (
    CacheUse,
    add_uses,
    cache_use_fields,
    read_cache_use,
    read_token_counts,
    sum_uses,
)
from llmrouter.domain.requests import Route

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from llmrouter.domain.cache_use import TokenCounts
    from llmrouter.domain.requests import Outcome

T = TypeVar("T")


class MissCause(enum.StrEnum):
    """Why a deadline was missed."""

    SPEND_CAP = "spend_cap"
    """A spend limit of the account was reached: it could not go live."""
    BUDGET = "budget"
    """``max_escalation_usd`` was used up."""
    BATCH_ONLY = "batch_only"
    """Only a batch could do it, and none came back in time."""
    CREDENTIAL = "credential"
    """The API did not accept the key for live calls."""
    NOT_INSURED = "not_insured"
    """The rate of live calls did not suffice for it as well, which was known."""
    LIVE_API = "live_api"
    """It went live, or was to, and nothing answered in time."""
    UNATTENDED = "unattended"
    """Nothing was decided in time: no process worked on the store, or its class was paused."""


def miss_cause(outcome: Outcome) -> MissCause | None:
    """Why an outcome came too late; None when it did not, and for what its owner took back."""
    if outcome.settled_at <= outcome.deadline_at or outcome.withdrawn:
        return None
    if outcome.reason is not None and outcome.reason.value in _HOLDS:
        return MissCause(outcome.reason.value)
    if outcome.reason is Reason.TOO_LATE:
        return MissCause.UNATTENDED
    if not outcome.insured:
        return MissCause.NOT_INSURED
    decided = outcome.reason is not None or outcome.route is Route.ESCALATED
    return MissCause.LIVE_API if decided else MissCause.UNATTENDED


_HOLDS = frozenset({MissCause.SPEND_CAP, MissCause.BUDGET, MissCause.BATCH_ONLY, MissCause.CREDENTIAL})


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassTally:
    """What came of the requests of one latency class."""

    settled: Mapping[Route, int] = field(default_factory=dict)
    """Outcomes by route, those aside that their owner took back."""
    missed: Mapping[MissCause, int] = field(default_factory=dict)
    """Those of them that came after their deadline."""
    wasted: int = 0
    """Answers that came second: a batch's and a live call's were both paid."""
    resent: int = 0
    """Live calls whose answer nobody knows, and whose requests were sent again: paid twice, perhaps."""
    live_usd: Mapping[date, Decimal] = field(default_factory=dict)
    """What its live calls cost, by day (UTC), as far as prices are known; the last 40 days."""
    cache: Mapping[Route, CacheUse] = field(default_factory=dict)
    """What the prompt cache did for them, by route: batches and live calls have caches of their own."""
    warm_ups: int = 0
    """Live calls that warmed the prompt cache before a batch left. Their price is in `live_usd`."""
    warm_up_use: CacheUse = field(default_factory=CacheUse)
    """What the prompt cache did in those calls."""


_DAYS_KEPT = 40

Tally: TypeAlias = "Mapping[str, ClassTally]"
"""By name of the latency class."""


def count_outcome(tally: ClassTally, outcome: Outcome) -> ClassTally:
    """One more outcome."""
    if outcome.withdrawn:
        return tally
    cause = miss_cause(outcome)
    counts = read_token_counts(outcome.raw)
    return replace(
        tally,
        settled={**tally.settled, outcome.route: tally.settled.get(outcome.route, 0) + 1},
        missed=tally.missed if cause is None else {**tally.missed, cause: tally.missed.get(cause, 0) + 1},
        cache=tally.cache if counts is None else _with_uses(tally.cache, {outcome.route: [counts]}),
    )


def count_outcomes(tally: Tally, outcomes: Iterable[Outcome]) -> Tally:
    """Many more outcomes at once, each under its class. The same tally when none of them counts."""
    counting = [outcome for outcome in outcomes if not outcome.withdrawn]
    settled = Counter([(outcome.latency, outcome.route) for outcome in counting])
    late = [outcome for outcome in counting if outcome.settled_at > outcome.deadline_at]
    missed = Counter([(outcome.latency, cause) for outcome in late if (cause := miss_cause(outcome))])
    used: dict[str, dict[Route, list[TokenCounts]]] = defaultdict(lambda: defaultdict(list))
    for outcome in counting:
        counts = read_token_counts(outcome.raw)
        if counts is not None:
            used[outcome.latency][outcome.route].append(counts)
    if not settled:
        return tally
    counted = dict(tally)
    for latency in {latency for latency, _ in settled}:
        earlier = counted.get(latency, ClassTally())
        counted[latency] = replace(
            earlier,
            settled=_added(earlier.settled, latency, settled),
            missed=_added(earlier.missed, latency, missed),
            cache=_with_uses(earlier.cache, used[latency]),
        )
    return counted


def _added(earlier: Mapping[T, int], latency: str, more: Counter[tuple[str, T]]) -> dict[T, int]:
    return dict(
        Counter(earlier) + Counter({name: count for (of, name), count in more.items() if of == latency})
    )


def _with_uses(
    earlier: Mapping[Route, CacheUse], more: Mapping[Route, list[TokenCounts]]
) -> dict[Route, CacheUse]:
    added = {route: add_uses(earlier.get(route, CacheUse()), counts) for route, counts in more.items()}
    return {**earlier, **added}


def count_paid(tally: ClassTally, day: date, paid_usd: Decimal) -> ClassTally:
    """The price of one more live call."""
    by_day = {**tally.live_usd, day: tally.live_usd.get(day, Decimal(0)) + paid_usd}
    for oldest in sorted(by_day)[:-_DAYS_KEPT]:
        del by_day[oldest]
    return replace(tally, live_usd=by_day)


def count_warm_up(tally: ClassTally, use: CacheUse, day: date, paid_usd: Decimal | None) -> ClassTally:
    """One more call that warmed the prompt cache, and its price where it is known."""
    counted = replace(tally, warm_ups=tally.warm_ups + 1, warm_up_use=sum_uses(tally.warm_up_use, use))
    return counted if paid_usd is None else count_paid(counted, day, paid_usd)


def tally_fields(tally: ClassTally) -> dict[str, Any]:
    """A tally as plain JSON data."""
    return {
        "settled": dict(tally.settled),
        "missed": dict(tally.missed),
        "wasted": tally.wasted,
        "resent": tally.resent,
        "live_usd": {day.isoformat(): str(usd) for day, usd in tally.live_usd.items()},
        "cache": {route: cache_use_fields(use) for route, use in tally.cache.items()},
        "warm_ups": tally.warm_ups,
        "warm_up_use": cache_use_fields(tally.warm_up_use),
    }


def read_tally(fields: Mapping[str, Any]) -> ClassTally:
    """The tally of its JSON data; what is not in it is nothing.

    Raises:
        ValueError: It is none.
    """
    return ClassTally(
        settled={Route(route): int(count) for route, count in fields.get("settled", {}).items()},
        missed={MissCause(cause): int(count) for cause, count in fields.get("missed", {}).items()},
        wasted=int(fields.get("wasted", 0)),
        resent=int(fields.get("resent", 0)),
        live_usd={date.fromisoformat(day): Decimal(usd) for day, usd in fields.get("live_usd", {}).items()},
        cache={Route(route): read_cache_use(use) for route, use in fields.get("cache", {}).items()},
        warm_ups=int(fields.get("warm_ups", 0)),
        warm_up_use=read_cache_use(fields.get("warm_up_use", {})),
    )
