"""Whether the holder of the lease is alive, as the operating system knows it."""

from __future__ import annotations

import os
import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

if sys.platform != "win32":
    import fcntl


class EngineLock:
    """A file lock that dies with its process.

    The lease alone would make a restarted process wait until the dead one's time has run out. The
    kernel knows at once: it drops the lock of a killed process. A paused process keeps it, and
    then the lease's time and its fencing number decide, as they do where there is no such lock.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "engine.lock"
        self._descriptor: int | None = None
        self._guard = threading.Lock()
        self._fence = 0

    def is_held_for(self, fence: int) -> bool:
        """Whether this object has the lock for the lease with this fencing number."""
        return self._descriptor is not None and self._fence == fence

    def take(self, fence: int) -> bool:
        """Tries to take the lock for a lease, without waiting. True when this object has it."""
        if sys.platform == "win32":
            return False
        with self._guard:
            self._fence = fence
            if self._descriptor is not None:
                return True
            descriptor = os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:  # Held by another, or a file system without such locks.
                os.close(descriptor)
                return False
            self._descriptor = descriptor
            return True

    def release(self) -> None:
        """Lets it go, if this object has it."""
        with self._guard:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None
