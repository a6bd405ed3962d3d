"""Being the one engine of a store."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import threading
from datetime import timedelta
from typing import TYPE_CHECKING

from llmrouter.errors import LeaseLostError, StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from llmrouter.ports import Clock, Lease, Store

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

    @contextlib.contextmanager
    def prolonging(self, clock: Clock) -> Iterator[None]:
        """Prolongs the lease for the length of a block, however long that takes, if it is held."""
        done = threading.Event()

        def prolong() -> None:
            while not done.wait(RENEW_EVERY.total_seconds()):
                if self.lease is not None:
                    with contextlib.suppress(Exception):  # If it is lost by that, the next write says so.
                        self.run_once(clock.now())

        renewing = threading.Thread(target=prolong, name="llmrouter-lease", daemon=True)
        try:
            renewing.start()
        except RuntimeError:  # The interpreter ends, and no thread begins any more.
            yield
            return
        try:
            yield
        finally:
            done.set()
            renewing.join()

    def lose(self) -> None:
        """Forgets the lease if it is lost indeed: what was refused may have carried an earlier one."""
        if self.lease is not None:
            try:
                self._store.check_lease(self.lease)
            except LeaseLostError:
                self.lease = None
            except StoreError:
                return  # Whatever is done under it is checked again.

    def release(self) -> None:
        """Gives the lease back."""
        if self.lease is not None:
            self._store.release_lease(self.lease)
            self.lease = None
