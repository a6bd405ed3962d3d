"""What came of all requests so far, by latency class, as `status` tells it."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

from llmrouter.domain.requests import Route

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import date

    from llmrouter.domain.ledger import ClassTally, MissCause, Tally

_NOTHING = Decimal(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class TallyStatus:
    """What came of the requests of a latency class since the store was made."""

    latency: str
    by_batch: int
    """Requests whose outcome a batch gave."""
    escalated: int
    """Requests whose outcome a live call of the router's gave."""
    missed: Mapping[MissCause, int]
    """Deadlines that were missed, by cause."""
    wasted: int
    """Answers that came second: a batch's and a live call's were both paid."""
    resent: int
    """Live calls made again because nobody knows the answer of the first: paid twice, perhaps."""
    escalation_usd_today: Decimal
    """What its live calls cost today (UTC), as far as prices are known."""
    escalation_usd: Decimal
    """The same of the last 40 days with any."""

    @property
    def eventful(self) -> bool:
        """Whether there is more to tell than that batches answered in time."""
        return bool(self.escalated or self.missed or self.wasted or self.resent or self.escalation_usd)


def describe_tally(tally: Tally, today: date) -> tuple[TallyStatus, ...]:
    """A line for each class of which anything was counted, by name.

    Args:
        tally: The store's.
        today: By UTC.
    """
    return tuple(_describe(latency, one, today) for latency, one in sorted(tally.items()))


def _describe(latency: str, tally: ClassTally, today: date) -> TallyStatus:
    return TallyStatus(
        latency=latency,
        by_batch=tally.settled.get(Route.BATCH, 0),
        escalated=tally.settled.get(Route.ESCALATED, 0),
        missed=dict(tally.missed),
        wasted=tally.wasted,
        resent=tally.resent,
        escalation_usd_today=tally.live_usd.get(today, _NOTHING),
        escalation_usd=sum(tally.live_usd.values(), _NOTHING),
    )
