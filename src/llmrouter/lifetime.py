"""How long a router is open, and how it ends: when it is told to, or with the interpreter."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
from typing import TYPE_CHECKING

from llmrouter.errors import RouterClosedError

if TYPE_CHECKING:
    from llmrouter.engine.resolver import Resolver
    from llmrouter.futures import MessageFuture
    from llmrouter.wiring import Parts
    from llmrouter.worker import Worker


class Lifetime:
    """Closes what a router has opened, once, in the process that opened it.

    A router that is dropped without `close` is closed at the end of the interpreter: its threads work
    until then.

    Attributes:
        worker: What is stopped with it; None for a router that only enqueues.
    """

    def __init__(self, parts: Parts, resolver: Resolver[MessageFuture]) -> None:
        self.worker: Worker | None = None
        self._parts = parts
        self._resolver = resolver
        self._closed = False
        self._closing = threading.Lock()
        self._pid = os.getpid()
        atexit.register(self.close)

    @property
    def leaks(self) -> bool:
        """Whether it is still to be closed, by this process."""
        return not self._closed and os.getpid() == self._pid

    def check_open(self) -> None:
        """Raises `RouterClosedError` when it was closed, or was opened before a fork."""
        if self._closed:
            raise RouterClosedError("the router was closed")
        if os.getpid() != self._pid:
            raise RouterClosedError(
                "this router belongs to the process that this one was forked from; make one after the fork"
            )

    def close(self) -> None:
        """See `Router.close`."""
        with self._closing:
            if not self.leaks:
                return
            self._closed = True
        parts = self._parts
        # Outside the lock: what is waited for may call close too. Whatever fails, the rest is closed.
        with contextlib.ExitStack() as stack:
            stack.callback(atexit.unregister, self.close)
            if parts.owns_store:
                stack.callback(parts.store.close)
            if parts.observer is not None:
                stack.callback(parts.observer.close)
            stack.callback(parts.rules.stop)
            stack.callback(self._resolver.close)
            if self.worker is not None:
                stack.callback(self.worker.stop)
            stack.callback(parts.intake.close)
            parts.live.close(wait=True)
