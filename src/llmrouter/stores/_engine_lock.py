"""Whether the holder of the lease is alive, as the operating system knows it."""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

if sys.platform != "win32":
    import fcntl


LOCK_NAME = "engine.lock"

_TAKES = 3
_BETWEEN_TAKES_SECONDS = 0.001


class EngineLock:
    """A file lock that dies with its process.

    The lease alone would make a restarted process wait until the dead one's time has run out. The
    kernel knows at once: it drops the lock of a killed process. A paused process keeps it, and
    then the lease's time and its fencing number decide, as they do where there is no such lock.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK_NAME
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
            for _ in range(_TAKES):
                self._descriptor = _locked(self._path, fcntl.LOCK_EX, os.O_CREAT)
                if self._descriptor is not None:
                    return True
                # Somebody may only be looking, see `is_free`.
                time.sleep(_BETWEEN_TAKES_SECONDS)
            return False

    def is_free(self) -> bool:
        """Whether nobody has the lock. Only a look: it is not taken."""
        if sys.platform == "win32":
            return False
        if not self._path.exists():
            return True
        with self._guard:
            descriptor = None if self._descriptor is not None else _locked(self._path, fcntl.LOCK_SH)
            if descriptor is not None:
                os.close(descriptor)
            return descriptor is not None

    def release(self) -> None:
        """Lets it go, if this object has it."""
        with self._guard:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None


def _locked(path: Path, how: int, flags: int = 0) -> int | None:
    """A descriptor that holds the lock, or None when another has it."""
    descriptor = os.open(path, flags | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except OSError:  # Held by another, or a file system without such locks.
        os.close(descriptor)
        return None
    return descriptor
