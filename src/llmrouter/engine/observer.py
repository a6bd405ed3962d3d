"""Writes down what call sites send live: noted on the way of the calls, added up and stored behind them."""

from __future__ import annotations

import logging
import os
import threading
import traceback
import weakref
from collections import deque
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeAlias

from llmrouter.domain.traffic import Reading, Sample, Told, add_rows, rows_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from llmrouter.domain.traffic import Noted, TrafficRow
    from llmrouter.ports import Clock, Store

    Read: TypeAlias = Callable[[Any, bool, datetime], Told]
    """What an answer tells: given `Sample.answer`, whether it is a stream, and when it came."""

_log = logging.getLogger("llmrouter")

_EVERY_SECONDS = 1.0
_MOST_WAITING = 20_000
"""Samples of 12 kB at most each, while the store lets nobody write; more are not counted."""


class Observer:
    """Adds samples to a store's traffic once a second, on a thread of its own."""

    def __init__(self, store: Store, clock: Clock, read: Read) -> None:
        """Starts the thread.

        Args:
            store: Where the traffic goes.
            clock: That of the samples.
            read: Reads an answer; on the thread.
        """
        self._store = store
        self._clock = clock
        self._read = read
        self._waiting: deque[Noted] = deque()
        self._unwritten: list[TrafficRow] = []
        self._writing = threading.Lock()
        self._closing = threading.Event()
        self._told: set[str] = set()
        self._lost = 0
        self._most = _MOST_WAITING
        self._thread = threading.Thread(target=self._work, name="llmrouter-observer", daemon=True)
        self._thread.start()
        _observers.add(self)
        _log.info("observe mode: all calls on wrapped clients go live, none waits, and each is counted")

    def note(self, sample: Noted) -> None:
        """Takes a sample; on the way of a call."""
        if len(self._waiting) < self._most:
            self._waiting.append(sample)
        elif self._most:
            self._lost += 1

    def leave_to_parent(self) -> None:
        """Takes no more, in a process that was forked: it has no thread to write it."""
        self._most = 0
        self._waiting.clear()

    def flush(self) -> None:
        """Writes what was noted so far. Logs what goes wrong; what could not be written stays."""
        with self._writing:
            try:
                self._gather()
                if self._unwritten:
                    self._store.add_traffic(self._unwritten)
                    self._unwritten = []
            except Exception as error:  # noqa: BLE001  (no call is to be harmed by it, whatever it is)
                self.complain("The traffic of call sites could not be written; trying again", error)

    def complain(self, what: str, error: BaseException) -> None:
        """Logs what went wrong, once for each `what`; not the error's text, which may quote an answer."""
        if what not in self._told:
            self._told.add(what)
            where = "".join(traceback.format_tb(error.__traceback__))
            _log.error("%s (%s).\n%s", what, type(error).__name__, where)

    def close(self) -> None:
        """Writes what is left, and takes no more."""
        self._closing.set()
        self._thread.join()
        self._most = 0
        self.flush()
        lost = self._lost + sum(row.calls for row in self._unwritten)
        if lost:
            _log.error("%d live calls were not counted: the store did not take them", lost)

    def _work(self) -> None:
        while not self._closing.wait(_EVERY_SECONDS):
            self.flush()

    def _gather(self) -> None:
        """Adds up what waits, up to here: others go on noting."""
        samples = [Sample(*self._waiting.popleft()) for _ in range(len(self._waiting))]
        if samples:
            now, monotonic = self._clock.now(), self._clock.monotonic()
            readings = [
                self._reading(sample, now - timedelta(seconds=monotonic - sample.came)) for sample in samples
            ]
            self._unwritten = add_rows(self._unwritten, rows_of(readings))

    def _reading(self, sample: Sample, at: datetime) -> Reading:
        told = Told()
        try:
            told = self._read(sample.answer, sample.streaming, at)
        except Exception as error:  # noqa: BLE001  (whatever was answered, the call counts)
            self.complain("The usage of an answer could not be read: it counts as unknown", error)
        return Reading(sample=sample, at=at, told=told)


_observers: weakref.WeakSet[Observer] = weakref.WeakSet()


def _forked() -> None:
    for observer in _observers:
        observer.leave_to_parent()


os.register_at_fork(after_in_child=_forked)
