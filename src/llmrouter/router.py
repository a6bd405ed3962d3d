"""The router: what applications submit requests to."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import secrets
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, Self

from llmrouter.domain.latency import REAL_TIME, check_deadline
from llmrouter.domain.requests import Group, RequestState
from llmrouter.engine.intake import Draft
from llmrouter.engine.resolver import Resolver
from llmrouter.errors import InvalidRequestError, RouterClosedError, SettingsError, UnknownRequestError
from llmrouter.futures import MessageFuture
from llmrouter.reports.status import RouterStatus, describe
from llmrouter.routing import call_site
from llmrouter.wiring import build

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Mapping, Sequence
    from datetime import datetime, timedelta
    from types import TracebackType

    from anthropic import Anthropic
    from anthropic.types import Message

    from llmrouter.domain.requests import Accepted, Lane, Outcome
    from llmrouter.ports import Clock, Store
    from llmrouter.settings import Settings
    from llmrouter.worker import Worker

__all__ = ["Router"]

_DRAIN_LOOK_SECONDS = 0.05
_DRAIN_FLUSH_SECONDS = 1.0

log = logging.getLogger("llmrouter")


class Router:
    """Sends each request the cheapest way that still answers in time.

    Real-time requests go to ``messages.create`` at once. All others are written to a durable
    queue, leave as batches on the schedule of their latency class, and their futures resolve when
    the results come back. May be used from any number of threads; make one for each process.
    """

    def __init__(
        self,
        client: Anthropic | None = None,
        *,
        store: str | Store | None = None,
        settings: Settings | None = None,
        worker: bool = True,
        _clock: Clock | None = None,
    ) -> None:
        """Opens the store and, unless told otherwise, starts to work on it.

        Args:
            client: A synchronous client; by default ``Anthropic()``, from the environment. It is
                the caller's: the router does not close it.
            store: A URL (``disk:///folder``, ``memory://``) or a `Store`; by default that of the
                settings.
            settings: By default from the environment and the files that `Settings` names.
            worker: False: only enqueue and await; a separate ``llmrouter worker`` does the rest.

        Raises:
            SettingsError: A setting is wrong, or the client's platform has no batches.
            StoreUnusableError: The store cannot be opened.
        """
        self._parts = build(client, store, settings, _clock)
        self._resolver: Resolver[MessageFuture] = Resolver(self._parts.store, _log_lookup_error)
        self._worker = self._make_worker() if worker else None
        self._groups: dict[tuple[str, str, str, str], Group] = {}
        self._closed = False
        self._closing = threading.Lock()
        self._pid = os.getpid()
        if self._worker is not None:
            self._worker.start()
        self._at_exit = _close_at_exit(weakref.ref(self))

    def submit(
        self,
        request: Mapping[str, Any],
        *,
        latency: str,
        deadline: timedelta | datetime | None = None,
        site: str | None = None,
        key: str | None = None,
        extra_headers: Mapping[str, str] | None = None,
    ) -> MessageFuture:
        """Accepts a request; when it returns, the request survives a killed process.

        Args:
            request: The keyword arguments of ``messages.create``, ``extra_body`` included.
            latency: ``"real-time"``, ``"hourly"``, ``"daily"``, ``"weekly"`` or a class of your own.
            deadline: Overrides the class's: a span from now, or an aware instant.
            site: Name of the call site; by default ``module:function`` of the caller.
            key: Idempotency key: the same key gives the same request, in this process or the next.
                Real-time requests are not stored, so theirs has no effect.
            extra_headers: Headers of this request. In a batch they belong to the whole batch, so
                requests that differ in them travel apart.

        Raises:
            InvalidRequestError: The request cannot be accepted; names the field. Nothing is stored.
            StoreError: The store could not take it. Nothing is stored.
            RouterClosedError: The router was closed.
        """
        site = site or call_site(1)
        if latency == REAL_TIME:
            return self._start_live(self._check_live(request, deadline, extra_headers), key, extra_headers)
        draft = self._draft(request, latency, deadline, site, key, extra_headers, None)
        since = self._resolver.position()
        return self._wait([draft], self._parts.intake.enqueue([draft]), since)[0]

    def submit_many(
        self,
        requests: Iterable[Mapping[str, Any]],
        *,
        latency: str,
        deadline: timedelta | datetime | None = None,
        site: str | None = None,
        keys: Sequence[str | None] | None = None,
        extra_headers: Mapping[str, str] | None = None,
    ) -> list[MessageFuture]:
        """Accepts many requests in one transaction: all of them, or none.

        Args:
            requests: As for `submit`.
            latency: As for `submit`, of all.
            deadline: As for `submit`, of all.
            site: As for `submit`, of all.
            keys: An idempotency key, or None, for each request.
            extra_headers: As for `submit`, of all.

        Raises:
            InvalidRequestError: One cannot be accepted; names its index and field. Nothing is stored.
            StoreError: The store could not take them. Nothing is stored.
            RouterClosedError: The router was closed.
        """
        site = site or call_site(1)
        pairs = _pair(requests, keys)
        if latency == REAL_TIME:
            return self._all_live(pairs, deadline, extra_headers)
        drafts = self._drafts(pairs, latency, deadline, site, extra_headers)
        since = self._resolver.position()
        return self._wait(drafts, self._parts.intake.enqueue(drafts), since)

    def asubmit(
        self,
        request: Mapping[str, Any],
        *,
        latency: str,
        deadline: timedelta | datetime | None = None,
        site: str | None = None,
        key: str | None = None,
        extra_headers: Mapping[str, str] | None = None,
    ) -> Coroutine[Any, Any, MessageFuture]:
        """`submit` for asyncio code: returns when the request is durable, and never blocks the loop.

        Concurrent callers share one commit. Cancelled before the commit began, nothing is stored.
        """
        # Not `async` itself: the caller of a coroutine can be the event loop, which is no call site.
        return self._asubmit(request, latency, deadline, site or call_site(1), key, extra_headers)

    async def _asubmit(
        self,
        request: Mapping[str, Any],
        latency: str,
        deadline: timedelta | datetime | None,
        site: str,
        key: str | None,
        extra_headers: Mapping[str, str] | None,
    ) -> MessageFuture:
        if latency == REAL_TIME:
            return self._start_live(self._check_live(request, deadline, extra_headers), key, extra_headers)
        draft = self._draft(request, latency, deadline, site, key, extra_headers, None)
        return (await self._enqueue_soon([draft]))[0]

    def asubmit_many(
        self,
        requests: Iterable[Mapping[str, Any]],
        *,
        latency: str,
        deadline: timedelta | datetime | None = None,
        site: str | None = None,
        keys: Sequence[str | None] | None = None,
        extra_headers: Mapping[str, str] | None = None,
    ) -> Coroutine[Any, Any, list[MessageFuture]]:
        """`submit_many` for asyncio code; encodes and writes in threads, so the loop goes on."""
        return self._asubmit_many(requests, latency, deadline, site or call_site(1), keys, extra_headers)

    async def _asubmit_many(
        self,
        requests: Iterable[Mapping[str, Any]],
        latency: str,
        deadline: timedelta | datetime | None,
        site: str,
        keys: Sequence[str | None] | None,
        extra_headers: Mapping[str, str] | None,
    ) -> list[MessageFuture]:
        pairs = _pair(requests, keys)
        if latency == REAL_TIME:
            return self._all_live(pairs, deadline, extra_headers)
        drafts = await asyncio.to_thread(self._drafts, pairs, latency, deadline, site, extra_headers)
        return await self._enqueue_soon(drafts)

    def future(self, request_id: str | None = None, *, key: str | None = None) -> MessageFuture:
        """A future for a request that another process, or yesterday's run, submitted.

        Args:
            request_id: Its id, or
            key: its idempotency key.

        Raises:
            UnknownRequestError: The store has no such request.
        """
        self._check_open()
        if (request_id is None) == (key is None):
            raise TypeError("give either a request_id or a key")
        store = self._parts.store
        found = store.find_key(key) if key is not None else request_id
        view = store.find(found) if found is not None else None
        if view is None:
            raise UnknownRequestError(f"the store has no request {request_id or f'with key {key!r}'}")
        since = self._resolver.position()
        future = MessageFuture(
            self,
            request_id=view.request_id,
            key=view.key,
            latency=view.latency,
            deadline=view.deadline_at,
        )
        waiting, _ = self._resolver.register([future], since)
        self._resolver.look_up(waiting)
        return waiting[0]

    def flush(self) -> int:
        """Sends everything that waits, now; answers with the number of batches that were created.

        0 where another process works on the store: it is asked to do it.
        """
        self._check_open()
        worker = self._worker
        if worker is None:
            self._parts.store.request_flush()
            return 0
        return worker.flush()

    def drain(self, timeout: float | None = None) -> bool:
        """Flushes, and waits until every request in the store has its outcome.

        Args:
            timeout: Seconds to wait at most; None waits as long as it takes.

        Returns:
            True when nothing is left, False when the time was up first.
        """
        give_up_at = None if timeout is None else time.monotonic() + timeout
        flush_at = 0.0
        store = self._parts.store
        while True:
            self._check_open()
            flying, waiting = store.open_batches(), store.waiting()
            # Looked at twice: between two looks a request can go from the queue into a batch, or back.
            if not flying and not waiting and not store.open_batches():
                return True
            now = time.monotonic()
            if give_up_at is not None and now >= give_up_at:
                return False
            if waiting and now >= flush_at:  # Also what a batch has sent back.
                self.flush()
                flush_at = now + _DRAIN_FLUSH_SECONDS
            time.sleep(_DRAIN_LOOK_SECONDS)

    def status(self) -> RouterStatus:
        """What waits, what is in flight, what is held back, and who works on it."""
        self._check_open()
        worker = self._worker
        return describe(
            self._parts.store,
            self._parts.clock.now(),
            working=worker is not None and worker.working,
            serves=self._serves,
            holds=worker.holds if worker is not None else {},
            problems=worker.problems if worker is not None else {},
        )

    def close(self) -> None:
        """Stops cleanly; may be repeated. What is queued or in flight stays in the store.

        Waits for real-time calls, commits and creates that are under way. Futures that still wait
        fail with `RouterClosedError`; their requests do not.
        """
        with self._closing:
            if self._closed or os.getpid() != self._pid:
                return
            self._closed = True
        parts = self._parts
        # Outside the lock: what is waited for may call close too. Whatever fails, the rest is closed.
        with contextlib.ExitStack() as stack:
            stack.callback(atexit.unregister, self._at_exit)
            if parts.owns_store:
                stack.callback(parts.store.close)
            stack.callback(self._resolver.close)
            if self._worker is not None:
                stack.callback(self._worker.stop)
            stack.callback(parts.intake.close)
            parts.live.close(wait=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.close)

    # What futures ask of their router

    def cancel(self, request_id: str) -> bool:
        """Takes a request out of the queue; False when it has left it."""
        self._check_open()
        return self._parts.store.cancel(request_id, self._parts.clock.now())

    def state(self, request_id: str) -> str:
        """Where a request is."""
        view = self._parts.store.find(request_id)
        if view is None:
            return "running"
        if view.state is RequestState.CLAIMED:
            states = {batch.batch_id: batch.state for batch in self._parts.store.open_batches()}
            return states.get(view.batch_id or "", view.state).value
        return view.state.value

    def decode(self, outcome: Outcome) -> Message | Exception:
        """The message of an outcome, or its exception."""
        return self._parts.decode(outcome)

    def pin(self, future: MessageFuture) -> None:
        """Keeps a future alive that somebody listens to."""
        self._resolver.pin(future)

    def _serves(self, lane: Lane) -> bool:
        try:
            return self._parts.lanes.serves(lane)
        except SettingsError:  # There is no credential at all.
            return False

    def _make_worker(self) -> Worker:
        from llmrouter.worker import Worker  # noqa: PLC0415  (APScheduler loads with the first worker)

        engine = self._parts.engine(on_settled=self._resolver.notify)
        settings = self._parts.settings
        return Worker(engine, poll=settings.poll, timezone=settings.timezone)

    def _draft(
        self,
        request: Mapping[str, Any],
        latency: str,
        deadline: timedelta | datetime | None,
        site: str,
        key: str | None,
        extra_headers: Mapping[str, str] | None,
        index: int | None,
    ) -> Draft:
        self._check_open()
        chosen = self._parts.routing.batch_class(latency)
        _check_text("site", site, index)
        if key is not None:
            _check_text("key", key, index)
        if deadline is not None:
            check_deadline(deadline, self._parts.clock.now())
        encoded = self._parts.encode(request, batch=True, extra_headers=extra_headers, index=index)
        try:
            lane = self._parts.lanes.lane_for(encoded.headers)
        except InvalidRequestError as error:
            raise InvalidRequestError(error.field, error.problem, index=index) from None
        name = (lane.lane_id, latency, site, encoded.model)
        group = self._groups.get(name)
        if group is None:
            group = self._groups[name] = Group(lane=lane, latency=latency, site=site, model=encoded.model)
        return Draft(group=group, latency=chosen, body=encoded.body, deadline=deadline, key=key)

    def _drafts(
        self,
        pairs: Iterable[tuple[Mapping[str, Any], str | None]],
        latency: str,
        deadline: timedelta | datetime | None,
        site: str,
        extra_headers: Mapping[str, str] | None,
    ) -> list[Draft]:
        return [
            self._draft(request, latency, deadline, site, key, extra_headers, index)
            for index, (request, key) in enumerate(pairs)
        ]

    async def _enqueue_soon(self, drafts: list[Draft]) -> list[MessageFuture]:
        since = self._resolver.position()
        accepted = await asyncio.wrap_future(self._parts.intake.enqueue_soon(drafts))
        futures, look = self._register(drafts, accepted, since)
        if look:
            await asyncio.to_thread(self._resolver.look_up, futures)
        return futures

    def _wait(self, drafts: list[Draft], accepted: list[Accepted], since: int) -> list[MessageFuture]:
        futures, look = self._register(drafts, accepted, since)
        if look:
            self._resolver.look_up(futures)
        return futures

    def _register(
        self, drafts: list[Draft], accepted: list[Accepted], since: int
    ) -> tuple[list[MessageFuture], bool]:
        futures = [
            MessageFuture(
                self,
                request_id=one.request_id,
                key=draft.key,
                latency=draft.group.latency,
                deadline=one.deadline_at,
            )
            for draft, one in zip(drafts, accepted, strict=True)
        ]
        waiting, moved = self._resolver.register(futures, since)
        # A known key may belong to a request that was answered long ago.
        return waiting, moved or any(one.duplicate for one in accepted)

    def _all_live(
        self,
        pairs: Iterable[tuple[Mapping[str, Any], str | None]],
        deadline: timedelta | datetime | None,
        extra_headers: Mapping[str, str] | None,
    ) -> list[MessageFuture]:
        checked = [
            (self._check_live(request, deadline, extra_headers, index), key)
            for index, (request, key) in enumerate(pairs)
        ]
        return [self._start_live(arguments, key, extra_headers) for arguments, key in checked]

    def _check_live(
        self,
        request: Mapping[str, Any],
        deadline: timedelta | datetime | None,
        extra_headers: Mapping[str, str] | None,
        index: int | None = None,
    ) -> Mapping[str, Any]:
        self._check_open()
        check_deadline(deadline, self._parts.clock.now())
        encoded = self._parts.encode(request, batch=False, extra_headers=extra_headers, index=index)
        return encoded.arguments

    def _start_live(
        self, arguments: Mapping[str, Any], key: str | None, extra_headers: Mapping[str, str] | None
    ) -> MessageFuture:
        future = MessageFuture(
            self, request_id=f"live_{secrets.token_hex(10)}", key=key, latency=REAL_TIME, deadline=None
        )
        self._parts.live.start(arguments, extra_headers or {}, future.take)
        return future

    def _check_open(self) -> None:
        if self._closed:
            raise RouterClosedError("the router was closed")
        if os.getpid() != self._pid:
            raise RouterClosedError(
                "this router belongs to the process that this one was forked from; make one after the fork"
            )


def _pair(
    requests: Iterable[Mapping[str, Any]], keys: Sequence[str | None] | None
) -> list[tuple[Mapping[str, Any], str | None]]:
    listed = list(requests)
    if keys is None:
        return [(request, None) for request in listed]
    if len(keys) != len(listed):
        raise TypeError(f"{len(listed)} requests need as many keys, not {len(keys)}")
    return list(zip(listed, keys, strict=True))


def _check_text(field: str, text: object, index: int | None) -> None:
    """Refuses what no store could keep, before it gets into a commit with others."""
    if not isinstance(text, str) or not text:
        raise InvalidRequestError(field, "should be a text that is not empty", index=index)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            problem = "has a lone surrogate, which is no valid text"
            raise InvalidRequestError(field, problem, index=index) from None


def _close_at_exit(router: weakref.ref[Router]) -> Any:
    """Closes a router that is still there when the interpreter ends."""

    def close() -> None:
        alive = router()
        if alive is not None:
            alive.close()

    atexit.register(close)
    return close


def _log_lookup_error(error: Exception) -> None:
    log.warning("could not look for outcomes; trying again: %s", error)
