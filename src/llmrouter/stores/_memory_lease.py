"""The lease of the store in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmrouter.domain.reporting import EngineView
from llmrouter.errors import LeaseLostError
from llmrouter.ports import Lease

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from llmrouter.domain.reporting import EngineReport


class LeaseDesk:
    """Gives out leases. No holder is ever known to be dead: all are in this process."""

    def __init__(self) -> None:
        self._fence = 0
        self._lease: Lease | None = None
        self._until: datetime | None = None
        self._report: EngineReport | None = None

    def acquire(self, holder: str, now: datetime, length: timedelta) -> Lease | None:
        """See `Store.acquire_lease`."""
        if self._lease is None or self._lease.holder != holder:
            if self._until is not None and now < self._until <= now + length:
                return None
            self._fence += 1
            self._lease = Lease(holder=holder, fence=self._fence)
            self._report = None
        self._until = now + length
        return self._lease

    def release(self, lease: Lease) -> None:
        """See `Store.release_lease`."""
        if self._lease == lease:
            self._lease = self._until = self._report = None
            self._fence += 1

    def check(self, lease: Lease) -> None:
        """See `Store.check_lease`."""
        if lease.fence != self._fence:
            raise LeaseLostError(f"{lease.holder}: lease {lease.fence} was given back or has been followed")

    def report(self, lease: Lease, report: EngineReport) -> None:
        """See `Store.report`."""
        self.check(lease)
        self._report = report

    def view(self) -> EngineView | None:
        """See `Store.engine`."""
        if self._lease is None or self._until is None:
            return None
        return EngineView(holder=self._lease.holder, until=self._until, report=self._report)
