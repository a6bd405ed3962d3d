"""Waiting for the locks of other processes: a bounded time."""

from __future__ import annotations

import os
import random
import time
from typing import TYPE_CHECKING

from diskcache.core import DBNAME

from llmrouter.errors import StoreBusyError, StoreUnusableError
from llmrouter.stores import _faults as faults

if TYPE_CHECKING:
    from pathlib import Path

ATTEMPT_SECONDS = 0.01
"""How long SQLite waits in an attempt."""

_LOCK_SECONDS = 30.0


class Patience:
    """Waits for a lock: a bounded time from the start, and not at all for what is no lock."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._give_up_at = time.monotonic() + _LOCK_SECONDS

    def wait(self) -> None:
        """Waits a little before the next attempt.

        Raises:
            StoreBusyError: The time is up.
            StoreUnusableError: It is no lock that is in the way.
        """
        # diskcache says Timeout for any error at BEGIN, so the reason has to be looked for.
        check_writable(self._folder)
        if time.monotonic() > self._give_up_at:
            raise StoreBusyError(
                f"other processes kept the store in {self._folder} locked for {_LOCK_SECONDS:.0f} s"
            ) from None
        # Jitter: without it two processes can keep missing each other's gap.
        time.sleep(random.uniform(0, ATTEMPT_SECONDS))  # noqa: S311


def check_writable(folder: Path) -> None:
    """Whether the store is there, and may be written.

    Raises:
        StoreUnusableError: It is not, or not by this process.
    """
    path = folder / DBNAME
    if not path.exists():
        raise StoreUnusableError(f"the store in {folder} has been deleted while it was open")
    if not (os.access(path, os.W_OK) and os.access(folder, os.W_OK)):
        raise faults.read_only(folder)
