"""Takes requests in: ids, the instant of acceptance, and one commit for all who wait for one."""

from __future__ import annotations

import secrets
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llmrouter import failpoints
from llmrouter.domain.latency import deadline_at
from llmrouter.domain.requests import PAGE_SLOTS, QueuedRequest, format_request_id
from llmrouter.errors import KeyConflictError, RouterClosedError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime, timedelta

    from llmrouter.domain.latency import LatencyClass
    from llmrouter.domain.requests import Accepted, Group
    from llmrouter.ports import Clock, Store

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_FRESH_PAGE_FROM = 100
_CLOSE_SECONDS = 60.0
_COMMIT_BYTES = 64_000_000
"""One commit takes about so much of what waits: it bounds how long the lock is held."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A checked request that is not durable yet."""

    group: Group
    latency: LatencyClass
    body: bytes = field(repr=False)
    deadline: timedelta | datetime | None = None
    """The caller's own deadline, checked; None for that of the class."""
    key: str | None = None


@dataclass(slots=True)
class _Ticket:
    """What one caller wants stored, all of it or none."""

    drafts: Sequence[Draft]
    done: Future[list[Accepted]] = field(default_factory=Future)

    def body_bytes(self) -> int:
        return sum(len(draft.body) for draft in self.drafts)


class Pages:
    """Hands out request ids: neighbours share a page, and pages grow with time."""

    def __init__(self) -> None:
        self._number = 0
        self._page = ""
        self._slot = PAGE_SLOTS

    def take(self, count: int, now: datetime) -> list[str]:
        """New ids, in order. Many at once begin a page of their own, so that they lie together."""
        if count >= _FRESH_PAGE_FROM and self._slot:
            self._slot = PAGE_SLOTS
        ids = []
        for _ in range(count):
            if self._slot == PAGE_SLOTS:
                self._turn_page(now)
            ids.append(format_request_id(self._page, self._slot))
            self._slot += 1
        return ids

    def _turn_page(self, now: datetime) -> None:
        """A page: its time in milliseconds, then chance, so that two processes never share one."""
        number = int(now.timestamp() * 1000) << 50 | secrets.randbits(50)
        # Within a millisecond, and when the clock was set back, a page is still later than the last.
        self._number = max(number, self._number + 1 + secrets.randbits(40))
        self._page = "".join(_ALPHABET[self._number >> shift & 31] for shift in range(95, -1, -5))
        self._slot = 0


class Intake:
    """Group commit: whoever comes while a commit is under way shares the next one.

    A caller who comes alone commits in its own thread: no hand-over, no wait.
    """

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._pages = Pages()
        self._numbering = threading.Lock()
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._waiting: list[_Ticket] = []
        self._committing = False
        self._leader = 0
        self._closed = False
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="llmrouter-intake")

    def enqueue(self, drafts: Sequence[Draft]) -> list[Accepted]:
        """Makes requests durable, all of them or none; returns when they are.

        Raises:
            KeyConflictError: An idempotency key belongs to another request.
            StoreError: The store could not take them.
            RouterClosedError: It was closed.
        """
        me, leads, ticket = threading.get_ident(), False, None
        # An exception of a signal handler can end any line: a leader that comes again takes over from
        # itself, so that what it left behind blocks nobody for ever.
        try:
            with self._lock:
                self._check_open()
                if self._committing and self._leader != me:
                    ticket = _Ticket(drafts)
                    self._waiting.append(ticket)
                else:
                    leads, self._leader, self._committing = True, me, True
            if ticket is not None:
                return ticket.done.result()
            return self._store_all(drafts)
        except KeyConflictError as conflict:
            if ticket is not None:
                raise
            raise _own_conflict(conflict, conflict.index or 0, len(drafts)) from None
        finally:
            if leads:
                self._pass_on()

    def enqueue_soon(self, drafts: Sequence[Draft]) -> Future[list[Accepted]]:
        """The same without blocking. Cancelled before its commit begins, nothing is stored.

        Raises:
            RouterClosedError: It was closed.
        """
        ticket = _Ticket(drafts)
        with self._lock:
            self._check_open()
            self._waiting.append(ticket)
            lead = not self._committing
            self._committing = True
        if lead:
            self._soon(self._commit_round)
        return ticket.done

    def close(self) -> None:
        """Takes nothing more, and waits for the commits under way and in line."""
        with self._lock:
            self._closed = True
            while self._committing and self._leader != threading.get_ident():
                if not self._idle.wait(_CLOSE_SECONDS):
                    break  # Its leader was interrupted, and has not come back.
        self._executor.shutdown(wait=True)

    def _commit_round(self) -> None:
        """Commits what is in line."""
        with self._lock:
            self._leader = threading.get_ident()
            tickets = self._take_tickets()
        try:
            self._commit([ticket for ticket in tickets if ticket.done.set_running_or_notify_cancel()])
        finally:
            self._pass_on()

    def _pass_on(self) -> None:
        """Leaves what came during a commit to a thread of our own: no caller works for others."""
        with self._lock:
            more = self._committing = bool(self._waiting)
            if not more:
                self._idle.notify_all()
        if more:
            self._soon(self._commit_round)

    def _soon(self, work: Callable[[], None]) -> None:
        try:
            self._executor.submit(work)
        except RuntimeError:  # The interpreter ends: who still waits must not wait for ever.
            work()

    def _check_open(self) -> None:
        if self._closed:
            raise RouterClosedError("the router was closed")

    def _take_tickets(self) -> list[_Ticket]:
        count = body_bytes = 0
        for ticket in self._waiting:
            count += 1
            body_bytes += ticket.body_bytes()
            if body_bytes >= _COMMIT_BYTES:
                break
        tickets, self._waiting = self._waiting[:count], self._waiting[count:]
        return tickets

    def _store_all(self, drafts: Sequence[Draft]) -> list[Accepted]:
        accepted = self._store.enqueue(self._requests(drafts))
        failpoints.reach("queued")
        return accepted

    def _commit(self, tickets: list[_Ticket]) -> None:
        while tickets:
            try:
                drafts = [draft for ticket in tickets for draft in ticket.drafts]
                accepted = self._store_all(drafts)
            except KeyConflictError as conflict:
                # One caller's mistake is nobody else's: the others are tried again without it.
                _refuse(tickets, conflict)
            except BaseException as error:
                for ticket in tickets:
                    ticket.done.set_exception(error)
                if not isinstance(error, Exception):
                    raise
                return
            else:
                for ticket in tickets:
                    ticket.done.set_result(accepted[: len(ticket.drafts)])
                    accepted = accepted[len(ticket.drafts) :]
                return

    def _requests(self, drafts: Sequence[Draft]) -> list[QueuedRequest]:
        now = self._clock.now()
        with self._numbering:
            request_ids = self._pages.take(len(drafts), now)
        return [
            QueuedRequest(
                request_id=request_id,
                group=draft.group,
                accepted_at=now,
                deadline_at=deadline_at(draft.latency, draft.deadline, now),
                body=draft.body,
                key=draft.key,
            )
            for draft, request_id in zip(drafts, request_ids, strict=True)
        ]


def _refuse(tickets: list[_Ticket], conflict: KeyConflictError) -> None:
    """Fails the ticket that a conflict is about, and takes it out of the list."""
    place = conflict.index or 0
    for ticket in tickets:
        if place < len(ticket.drafts):
            ticket.done.set_exception(_own_conflict(conflict, place, len(ticket.drafts)))
            tickets.remove(ticket)
            return
        place -= len(ticket.drafts)
    raise conflict


def _own_conflict(conflict: KeyConflictError, place: int, count: int) -> KeyConflictError:
    """A conflict as its caller sees it: with a place in a list only when there was a list."""
    return KeyConflictError(conflict.field, conflict.problem, index=place if count > 1 else None)
