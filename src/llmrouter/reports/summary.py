"""What a job came to: how its requests went, how long they waited, what they cost."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmrouter.domain.ledger import MissCause

CANCELED = "canceled"
"""The error type of a request that was taken back."""

_NOTHING = Decimal(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """One request that has ended, as far as a summary needs it."""

    latency: str
    batch_id: str | None
    """The batch that answered it; None when it went live, or was canceled before it went at all."""
    error_type: str | None
    """Why there is no message: the API's error type, `CANCELED` or ``expired``. None: it succeeded."""
    waited: timedelta
    """From accepted to settled."""
    on_time: bool | None
    """Whether its deadline was kept; None when it had none."""
    paid_usd: Decimal | None
    """What it cost; None when no price is known. What did not succeed costs nothing."""
    list_usd: Decimal | None
    """What it would have cost live."""
    escalated: bool = False
    """Whether it went live because its deadline asked for it."""
    missed: MissCause | None = None
    """Why its deadline was missed; None when it was not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SummaryRow:
    """Some requests of a job taken together: those of a latency class, or all."""

    request_count: int
    live_count: int
    """Those that went live, escalated or real-time."""
    escalated_count: int
    """Those that were to be batched, and went live to keep their deadline."""
    batch_count: int
    """Different batches that the others were in."""
    errors: Mapping[str, int]
    """How many did not succeed, by error type, the most frequent first."""
    wait_p50: timedelta | None
    """The median wait, by nearest rank; None without requests."""
    wait_max: timedelta | None
    on_time_count: int
    late_count: int
    """Those whose deadline was missed; what had none is in neither count."""
    missed: Mapping[MissCause, int]
    """The same by cause, the most frequent first; without what was taken back."""
    paid_usd: Decimal
    list_usd: Decimal
    """What all of it would have cost live. Both sums leave out what has no known price."""
    unpriced_count: int
    """Messages with no known price."""

    @property
    def failed_count(self) -> int:
        """Requests that did not succeed."""
        return sum(self.errors.values())

    @property
    def saved_share(self) -> Decimal | None:
        """The part of the live price that was not paid, from 0 to 1; None when nothing was to be paid."""
        return None if not self.list_usd else 1 - self.paid_usd / self.list_usd


class Tally:
    """Counts requests as they end; keeps a few bytes of each. Not to be used from two threads at once."""

    def __init__(self) -> None:
        self._accounts: dict[str, _Account] = {}
        self.done = 0
        """Requests counted so far."""
        self.failed = 0
        """Those of them that did not succeed."""
        self.paid_usd = _NOTHING
        """What they cost so far, as far as prices are known."""
        self.unpriced = 0
        """Messages so far whose price is not known."""

    def add(self, finished: Finished) -> None:
        """Counts one more."""
        self._accounts.setdefault(finished.latency, _Account()).add(finished)
        self.done += 1
        self.failed += finished.error_type is not None
        self.paid_usd += finished.paid_usd or _NOTHING
        self.unpriced += finished.paid_usd is None

    def rows(self) -> dict[str, SummaryRow]:
        """A row for each latency class that had requests, by its name."""
        return {latency: account.row() for latency, account in self._accounts.items()}

    def total(self) -> SummaryRow:
        """All of them together."""
        everything = _Account()
        for account in self._accounts.values():
            everything.merge(account)
        return everything.row()


@dataclass(slots=True)
class _Account:
    waits: array[float] = field(default_factory=lambda: array("d"))
    batch_ids: set[str] = field(default_factory=set)
    errors: Counter[str] = field(default_factory=Counter)
    missed: Counter[MissCause] = field(default_factory=Counter)
    live: int = 0
    escalated: int = 0
    on_time: int = 0
    late: int = 0
    unpriced: int = 0
    paid_usd: Decimal = _NOTHING
    list_usd: Decimal = _NOTHING

    def add(self, finished: Finished) -> None:
        self.waits.append(finished.waited.total_seconds())
        if finished.batch_id is not None:
            self.batch_ids.add(finished.batch_id)
        elif finished.escalated or finished.error_type != CANCELED:
            self.live += 1
        self.escalated += finished.escalated
        if finished.missed is not None:
            self.missed[finished.missed] += 1
        if finished.error_type is not None:
            self.errors[finished.error_type] += 1
        self.on_time += finished.on_time is True
        self.late += finished.on_time is False
        if finished.paid_usd is None or finished.list_usd is None:
            self.unpriced += 1
        else:
            self.paid_usd += finished.paid_usd
            self.list_usd += finished.list_usd

    def merge(self, other: _Account) -> None:
        self.waits.extend(other.waits)
        self.batch_ids |= other.batch_ids
        self.errors += other.errors
        self.missed += other.missed
        self.live += other.live
        self.escalated += other.escalated
        self.on_time += other.on_time
        self.late += other.late
        self.unpriced += other.unpriced
        self.paid_usd += other.paid_usd
        self.list_usd += other.list_usd

    def row(self) -> SummaryRow:
        waits = sorted(self.waits)
        return SummaryRow(
            request_count=len(waits),
            live_count=self.live,
            escalated_count=self.escalated,
            batch_count=len(self.batch_ids),
            errors=dict(self.errors.most_common()),
            wait_p50=timedelta(seconds=waits[math.ceil(len(waits) / 2) - 1]) if waits else None,
            wait_max=timedelta(seconds=waits[-1]) if waits else None,
            on_time_count=self.on_time,
            late_count=self.late,
            missed=dict(self.missed.most_common()),
            paid_usd=self.paid_usd,
            list_usd=self.list_usd,
            unpriced_count=self.unpriced,
        )
