"""Places where a test kills the process: ``LLMROUTER_FAILPOINT=claimed``; ``claimed:3`` the third time.

Switched off, `reach` is an empty function. Switched on, the process ends as by ``kill -9``: nothing
is flushed, closed or told. ``claimed:stop`` or ``claimed:3:stop`` stops it instead, all its threads,
until somebody sends it SIGCONT.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

VARIABLE = "LLMROUTER_FAILPOINT"

POINTS = (
    "queued",
    "claimed",
    "sending",
    "created",
    "recorded",
    "doubted",
    "adopted",
    "polling",
    "half-settled",
    "settled",
    "recalled",
    "canceling",
    "escalating",
    "calling",
    "answered",
    "deleting",
    "pruning",
    "store-created",
    "migrating",
)
"""In the order of a request's life, the store's own at the end."""


def _off(name: str) -> None:
    """Nothing."""


def _armed(setting: str) -> Callable[[str], None]:
    chosen, *options = setting.split(":")
    if chosen not in POINTS:
        raise ValueError(f"{VARIABLE}: there is no point {chosen!r}; there are {', '.join(POINTS)}")
    stops = options[-1:] == ["stop"]
    left = int(options[0]) if len(options) > stops else 1

    def strike(name: str) -> None:
        nonlocal left
        if name == chosen:
            left -= 1
            if left == 0:
                # To this thread, so that it goes no further; its signal takes the others with it.
                signal.pthread_kill(threading.get_ident(), signal.SIGSTOP if stops else signal.SIGKILL)

    return strike


reach: Callable[[str], None] = _armed(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else _off
"""Says that a point is reached."""
