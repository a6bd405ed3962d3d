"""The sandbox's own account: who was answered and charged, and which calls were made."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

Route = Literal["live", "batch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """One answer that was made, and is paid for whether or not it reached anyone."""

    route: Route
    batch_id: str | None
    """The batch it was an item of; None for a live call."""
    custom_id: str | None
    """Its name in the batch; None for a live call."""
    params_hash: str
    """`llmrouter.sandbox.params_hash` of the request's parameters."""
    model: str
    usage: Mapping[str, Any]
    """The `usage` of the answer: token counts and `service_tier`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRecord:
    """One HTTP call as it came in, kept with `keep_bodies`."""

    endpoint: str
    headers: Mapping[str, str]
    """All its headers, names in lower case."""
    body: bytes
    """Its exact body."""


class Books:
    """What was charged and called, by the sandbox's own account. Safe to use from several threads.

    Args:
        charge_batches: returns the charges of every batch that has ended by now; called whenever the
            charges are looked at, because nothing runs in the sandbox while nobody looks.
    """

    def __init__(self, charge_batches: Callable[[], Iterable[Charge]]) -> None:
        self._charge_batches = charge_batches
        self._live: list[Charge] = []
        self._calls: Counter[str] = Counter()
        self._records: list[CallRecord] = []
        self._lock = threading.Lock()

    @property
    def charges(self) -> tuple[Charge, ...]:
        """Every answer charged by now: succeeded live calls, then succeeded items of ended batches."""
        from_batches = self._charge_batches()
        with self._lock:
            return (*self._live, *from_batches)

    @property
    def calls(self) -> Counter[str]:
        """How many HTTP calls each endpoint got, the refused and dropped ones too."""
        with self._lock:
            return Counter(self._calls)

    @property
    def records(self) -> tuple[CallRecord, ...]:
        """The calls themselves, in order; empty unless the sandbox keeps bodies."""
        with self._lock:
            return tuple(self._records)

    def count_charges(self) -> Counter[str]:
        """How many times each request was charged, by `params_hash`: above 1 means paid twice."""
        return Counter(charge.params_hash for charge in self.charges)

    def summarize(self) -> dict[str, Any]:
        """The account in figures, as plain JSON."""
        charges = self.charges
        repeats = Counter(charge.params_hash for charge in charges)
        return {
            "calls": dict(self.calls),
            "charges": {
                route: _sum_charges(charge for charge in charges if charge.route == route)
                for route in ("live", "batch")
            },
            "charged_requests": len(repeats),
            "charged_more_than_once": sum(1 for times in repeats.values() if times > 1),
        }

    def add_call(self, endpoint: str) -> None:
        """Counts one HTTP call."""
        with self._lock:
            self._calls[endpoint] += 1

    def add_record(self, record: CallRecord) -> None:
        """Keeps one HTTP call as it came in."""
        with self._lock:
            self._records.append(record)

    def add_charge(self, charge: Charge) -> None:
        """Books the answer to a live call."""
        with self._lock:
            self._live.append(charge)

    def clear(self) -> None:
        """Forgets everything booked so far."""
        with self._lock:
            self._live.clear()
            self._calls.clear()
            self._records.clear()


def _sum_charges(charges: Iterable[Charge]) -> dict[str, int]:
    total = {"answers": 0, "input_tokens": 0, "output_tokens": 0}
    for charge in charges:
        total["answers"] += 1
        total["input_tokens"] += charge.usage["input_tokens"]
        total["output_tokens"] += charge.usage["output_tokens"]
    return total
