"""Being the one engine of a store."""

from __future__ import annotations

import logging
import os
import secrets
import socket
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

    from llmrouter.ports import Lease, Store

LEASE_LENGTH = timedelta(seconds=30)
"""How long a holder that is silent, but not known to be dead, is waited for."""

RENEW_EVERY = timedelta(seconds=5)

log = logging.getLogger("llmrouter.engine")


class LeaseKeeper:
    """Takes the lease when it can be had, and prolongs it while it is held."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.holder = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self.lease: Lease | None = None

    def run_once(self, now: datetime) -> Lease | None:
        """Takes or prolongs the lease; None while another process has it."""
        before = self.lease
        self.lease = self._store.acquire_lease(self.holder, now, LEASE_LENGTH)
        if self.lease is not None and before is None:
            log.info("this process works on the store now", extra={"fence": self.lease.fence})
        elif self.lease is None and before is not None:
            log.warning("another process has taken the store over", extra={"fence": before.fence})
        return self.lease

    def lose(self) -> None:
        """Forgets a lease that turned out to be lost."""
        self.lease = None

    def release(self) -> None:
        """Gives the lease back."""
        if self.lease is not None:
            self._store.release_lease(self.lease)
            self.lease = None
