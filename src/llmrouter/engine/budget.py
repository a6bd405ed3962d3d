"""What escalations may still cost today."""

from __future__ import annotations

import threading
from decimal import Decimal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import date

    from llmrouter.domain.ledger import Tally
    from llmrouter.ports import Clock, Store

_NOTHING = Decimal(0)


class Budget:
    """The setting ``max_escalation_usd``, of all classes and of each. May be used from several threads.

    It is looked at before each call: those that are under way then may take it over by what they cost.
    A call without a known price uses it up: nobody could say when it is.
    """

    def __init__(
        self, store: Store, clock: Clock, *, most: Decimal | None, by_class: Mapping[str, Decimal]
    ) -> None:
        """Makes a budget.

        Args:
            store: Whose tally says what was spent.
            clock: Tells the day (UTC).
            most: US dollars a day, of all classes together; None for no limit.
            by_class: The same of single classes, those without a limit left out.
        """
        self._store = store
        self._clock = clock
        self._most = most
        self._by_class = by_class
        self._lock = threading.Lock()
        self._day: date | None = None
        self._spent: dict[str, Decimal] = {}
        self._unpriced: set[str] = set()

    def refresh(self) -> None:
        """Looks at the store's tally: another process may have spent some. Raises as `Store.tally`."""
        if self._is_limited:
            tally = self._store.tally()
            with self._lock:
                self._turn(self._clock.now().date())
                self._spent = self._spent_today(tally)

    def note(self, latency: str, paid_usd: Decimal | None) -> None:
        """A call was paid, or has no known price."""
        if not self._is_limited:
            return
        with self._lock:
            self._turn(self._clock.now().date())
            if paid_usd is None:
                self._unpriced.add(latency)
            else:
                self._spent[latency] = self._spent.get(latency, _NOTHING) + paid_usd

    def is_used_up(self, latency: str | None = None) -> bool:
        """Whether nothing more may be spent today: on a class, or at all."""
        if not self._is_limited:
            return False
        with self._lock:
            self._turn(self._clock.now().date())
            if self._most is not None and (
                self._unpriced or sum(self._spent.values(), _NOTHING) >= self._most
            ):
                return True
            most = None if latency is None else self._by_class.get(latency)
            if most is None or latency is None:
                return False
            return latency in self._unpriced or self._spent.get(latency, _NOTHING) >= most

    @property
    def _is_limited(self) -> bool:
        return self._most is not None or bool(self._by_class)

    def _turn(self, day: date) -> None:
        if day != self._day:
            self._day = day
            self._spent.clear()
            self._unpriced.clear()

    def _spent_today(self, tally: Tally) -> dict[str, Decimal]:
        return {
            latency: one.live_usd[self._day]
            for latency, one in tally.items()
            if self._day is not None and self._day in one.live_usd
        }
