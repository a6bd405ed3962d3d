"""Brings outcomes to the futures that wait for them, in this process, whoever collected them."""

from __future__ import annotations

import logging
import threading
import weakref
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from llmrouter.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from llmrouter.domain.requests import Outcome
    from llmrouter.ports import Store

_LOOK_EVERY_SECONDS = 0.1
_IDLE_SECONDS = 1.0

log = logging.getLogger("llmrouter.engine")


class Waiter(Protocol):
    """Something that waits for the outcome of one request."""

    request_id: str

    def settle(self, outcome: Outcome) -> None:
        """Takes the outcome. May be called more than once, with the same one."""
        ...

    def abandon(self) -> None:
        """The router is closed: no outcome will come in this process."""
        ...


WaiterT = TypeVar("WaiterT", bound=Waiter)


class Resolver(Generic[WaiterT]):
    """Follows the log of outcomes while anybody waits.

    It keeps a place in the log and moves it on before it looks who waits for a chunk. Whoever
    begins to wait therefore either is found, or sees that the place has moved since before the
    request could be settled, and looks for the outcome itself.
    """

    def __init__(self, store: Store, on_error: Callable[[Exception], None]) -> None:
        """Begins to follow the log, in a thread of its own."""
        self._store = store
        self._on_error = on_error
        self._lock = threading.Lock()
        self._waiters: weakref.WeakValueDictionary[str, WaiterT] = weakref.WeakValueDictionary()
        self._pinned: dict[str, WaiterT] = {}
        self._place = store.outcome_cursor()
        self._missed: set[str] = set()
        self._delivered: list[str] = []
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._follow, name="llmrouter-resolver", daemon=True)
        self._thread.start()

    def position(self) -> int:
        """The place in the log. Take it before a request is submitted, and give it to `register`."""
        with self._lock:
            return self._place

    def register(self, waiters: Iterable[WaiterT], since: int) -> tuple[list[WaiterT], bool]:
        """Lets waiters wait; after `close`, tells them that it is closed. Does not touch the store.

        Args:
            waiters: Who begins to wait.
            since: The `position` before their requests could have been settled.

        Returns:
            Who waits now, in the same order (the one that waited already, where there is one), and
            whether `look_up` must be called with them, because their outcomes may have been missed.
        """
        listed = list(waiters)
        with self._lock:
            if not self._closing:
                waiting = [self._waiters.setdefault(waiter.request_id, waiter) for waiter in listed]
                return waiting, since != self._place
        for waiter in listed:
            waiter.abandon()
        return listed, False

    def look_up(self, waiters: Iterable[WaiterT]) -> None:
        """Asks the store for the outcomes of requests that may have been settled already.

        Where the store cannot say now, it is asked again by the thread: who waits has been accepted.
        """
        request_ids = [waiter.request_id for waiter in waiters]
        try:
            self._look_for(request_ids)
        except StoreError as error:
            with self._lock:
                self._missed.update(request_ids)
            self._on_error(error)

    def _look_for(self, request_ids: Collection[str]) -> None:
        for outcome in self._store.outcomes(request_ids):
            self._hand_over(outcome)

    def _look_again(self) -> None:
        missed = list(self._missed)
        if missed:
            self._look_for(missed)
            with self._lock:
                self._missed.difference_update(missed)

    def pin(self, waiter: WaiterT) -> None:
        """Keeps a waiter alive that somebody listens to, though nobody holds it."""
        with self._lock:
            if self._waiters.get(waiter.request_id) is waiter:
                self._pinned[waiter.request_id] = waiter

    def notify(self) -> None:
        """Something was settled in this process: do not wait for the next look."""
        self._wake.set()

    def close(self) -> None:
        """Stops looking; whoever still waits is told so. A waiter may call it."""
        with self._lock:
            self._closing = True
        self._wake.set()
        if self._thread is not threading.current_thread():
            self._thread.join()
        try:
            self._note_delivered()
        except StoreError as error:
            self._on_error(error)  # They are kept longer than they had to be.
        for waiter in list(self._waiters.values()):
            waiter.abandon()

    def run_once(self) -> int:
        """Hands over what is new in the log; answers with the number of outcomes it saw."""
        seen = 0
        while not self._closing:
            outcomes, following = self._store.outcomes_since(self._place)
            if not outcomes:
                break
            with self._lock:
                self._place = following
            for outcome in outcomes:
                try:
                    self._hand_over(outcome)
                except BaseException:  # A callback may call sys.exit; the others still wait.
                    log.exception("a waiter failed", extra={"request_id": outcome.request_id})
            seen += len(outcomes)
        return seen

    def _skip(self) -> None:
        """Moves to the end of the log while nobody waits, so that it need not be read later."""
        end = self._store.outcome_cursor()
        with self._lock:
            if not self._waiters:
                self._place = end

    def _hand_over(self, outcome: Outcome) -> None:
        with self._lock:
            waiter = self._waiters.pop(outcome.request_id, None)
            self._pinned.pop(outcome.request_id, None)
        if waiter is not None:
            waiter.settle(outcome)
            with self._lock:
                self._delivered.append(outcome.request_id)

    def _note_delivered(self) -> None:
        """Tells the store which answers need not be kept for somebody to pick them up."""
        with self._lock:
            delivered, self._delivered = self._delivered, []
        if not delivered:
            return
        try:
            self._store.deliver(delivered)
        except BaseException:
            with self._lock:
                self._delivered += delivered
            raise

    def _follow(self) -> None:
        while not self._closing:
            waited_for = bool(self._waiters)
            try:
                if waited_for:
                    self._look_again()
                    self.run_once()
                else:
                    self._skip()
                self._note_delivered()
            except Exception as error:  # noqa: BLE001  (one bad look must not end all waiting)
                self._on_error(error)
            self._wake.wait(_LOOK_EVERY_SECONDS if waited_for else _IDLE_SECONDS)
            self._wake.clear()
