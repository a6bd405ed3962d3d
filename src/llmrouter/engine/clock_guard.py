"""Notices when somebody sets the machine's clock."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_LOOK_EVERY_SECONDS = 1.0
_JUMP_SECONDS = 5.0

log = logging.getLogger("llmrouter.worker")


class ClockGuard:
    """Compares the clock on the wall with the one that never jumps, in a thread of its own.

    APScheduler goes by the wall: an hour set back is an hour in which nothing would run, and its
    own threads would be asleep for it.
    """

    def __init__(
        self,
        on_jump: Callable[[float], None],
        *,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Makes a guard that does not look yet.

        Args:
            on_jump: Called with the seconds by which the clock was set, forward or back.
            wall: The clock that can be set.
            monotonic: The one that cannot.
        """
        self._on_jump = on_jump
        self._wall = wall
        self._monotonic = monotonic
        self._apart = wall() - monotonic()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="llmrouter-clock", daemon=True)

    def start(self) -> None:
        """Begins to look."""
        self._thread.start()

    def stop(self) -> None:
        """Ends it."""
        self._stopped.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def run_once(self) -> bool:
        """Looks; True when the clock was set since the last look."""
        apart = self._wall() - self._monotonic()
        seconds = apart - self._apart
        if abs(seconds) < _JUMP_SECONDS:
            # Not moved along: many small steps are a jump too.
            return False
        self._apart = apart
        self._on_jump(seconds)
        return True

    def _run(self) -> None:
        while not self._stopped.wait(_LOOK_EVERY_SECONDS):
            try:
                self.run_once()
            except Exception:
                log.exception("could not make the schedules anew")
