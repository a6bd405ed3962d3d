"""Runs: pieces of work that have a name, and how far they have come."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING

from llmrouter.domain.requests import OutcomeKind

if TYPE_CHECKING:
    from datetime import datetime

    from llmrouter.domain.requests import Outcome

RUN_PREFIX = "run:"
"""How the idempotency keys of runs begin: ``run:NAME:HASH:NUMBER`` of a block, ``run:NAME:INDEX:HASH`` of
``llmrouter run``. Only NAME may have colons of its own."""

_KEY = re.compile(r"run:(.+):(?:[0-9a-f]{32}:[0-9]+|[0-9]+:[0-9a-f]{64})", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunProgress:
    """How far a run has come: all its requests that the store still has, of every time it was started."""

    name: str
    latencies: tuple[str, ...]
    """The latency classes of its requests, sorted."""
    queued: int
    in_batches: int
    """Claimed into a batch, or going live to keep their deadline."""
    answered: int
    """Those that succeeded."""
    failed: int
    """Those that ended otherwise, but for `canceled`."""
    canceled: int
    """Those that were taken back before there was an answer."""
    first_accepted_at: datetime
    last_answered_at: datetime | None
    """When the latest of those that ended did; None when none has."""

    @property
    def requests(self) -> int:
        """How many there are."""
        return self.unsettled + self.answered + self.failed + self.canceled

    @property
    def unsettled(self) -> int:
        """How many have no outcome yet."""
        return self.queued + self.in_batches


class RunCounter:
    """Adds the requests of runs up, one by one. What belongs to no run is left out."""

    def __init__(self) -> None:
        self._sums: dict[str, _Sum] = {}

    def add_unsettled(self, key: str, latency: str, accepted_at: datetime, *, queued: bool) -> bool:
        """Counts a request without an outcome; False when its key is of no run."""
        one = self._of(key, latency, accepted_at)
        if one is None:
            return False
        one.queued += queued
        one.in_batches += not queued
        return True

    def add_settled(
        self, outcome: Outcome, *, counted_queued: bool = False, counted_in: bool = False
    ) -> None:
        """Counts a request that has ended.

        Args:
            outcome: How it ended.
            counted_queued: It was counted as queued before, which is taken back.
            counted_in: It was counted as in a batch before, which is taken back.
        """
        one = None if outcome.key is None else self._of(outcome.key, outcome.latency, outcome.accepted_at)
        if one is None:
            return
        one.queued -= counted_queued
        one.in_batches -= counted_in
        succeeded = outcome.kind is OutcomeKind.SUCCEEDED
        one.answered += succeeded
        one.canceled += outcome.withdrawn
        one.failed += not (succeeded or outcome.withdrawn)
        latest = one.last_answered_at
        one.last_answered_at = outcome.settled_at if latest is None else max(latest, outcome.settled_at)

    def progress(self) -> list[RunProgress]:
        """The runs, the one that began last first."""
        runs = [one.progress(name) for name, one in sorted(self._sums.items())]
        return sorted(runs, key=attrgetter("first_accepted_at"), reverse=True)

    def _of(self, key: str, latency: str, accepted_at: datetime) -> _Sum | None:
        name = run_name(key)
        if name is None:
            return None
        one = self._sums.get(name)
        if one is None:
            one = self._sums[name] = _Sum(first_accepted_at=accepted_at)
        one.latencies.add(latency)
        one.first_accepted_at = min(one.first_accepted_at, accepted_at)
        return one


@dataclass(slots=True, kw_only=True)
class _Sum:
    first_accepted_at: datetime
    latencies: set[str] = field(default_factory=set)
    queued: int = 0
    in_batches: int = 0
    answered: int = 0
    failed: int = 0
    canceled: int = 0
    last_answered_at: datetime | None = None

    def progress(self, name: str) -> RunProgress:
        return RunProgress(
            name=name,
            latencies=tuple(sorted(self.latencies)),
            queued=self.queued,
            in_batches=self.in_batches,
            answered=self.answered,
            failed=self.failed,
            canceled=self.canceled,
            first_accepted_at=self.first_accepted_at,
            last_answered_at=self.last_answered_at,
        )


def run_name(key: str) -> str | None:
    """The run that an idempotency key belongs to; None: it is a key of the caller's own."""
    found = _KEY.fullmatch(key) if key.startswith(RUN_PREFIX) else None
    return None if found is None else found[1]
