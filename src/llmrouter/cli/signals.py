"""Stopping when asked to, at a place where stopping is safe."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from typing import TYPE_CHECKING, Self

from llmrouter.cli.console import err, note
from llmrouter.cli.failures import INTERRUPTED

if TYPE_CHECKING:
    from types import FrameType, TracebackType


class Stop:
    """Notes a signal instead of breaking off what is under way. A context manager, of the main thread.

    At the second signal the process leaves at once: the store survives that, too.

    Attributes:
        requested: Set from the first signal on.
    """

    def __init__(self, *signals: signal.Signals) -> None:
        self.requested = threading.Event()
        self._signals = signals
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        for each in self._signals:
            self._before[each] = signal.signal(each, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)  # type: ignore[arg-type]  # what signal.signal gave

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        if not self.requested.is_set():
            self.requested.set()
            return
        # Whoever printed when the signal came may hold the console's lock.
        threading.Thread(target=_say_goodbye, daemon=True).start()
        threading.Event().wait(0.2)
        os._exit(INTERRUPTED)


def _say_goodbye() -> None:
    with contextlib.suppress(OSError, ValueError):
        err.show_cursor(True)
        note("left at once; what is in the store is safe")
