"""The router: what applications submit requests to."""

from __future__ import annotations

import asyncio
import logging
import warnings
from typing import TYPE_CHECKING, Any, Self

from llmrouter.engine.resolver import Resolver
from llmrouter.lifetime import Lifetime
from llmrouter.middleware import check_unwrapped, wrap_client
from llmrouter.observing import middleware_for
from llmrouter.operations import Operations
from llmrouter.routing import call_site
from llmrouter.submission import Ask, Submission, Terms
from llmrouter.wiring import build

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Mapping, Sequence
    from datetime import date, datetime, timedelta
    from types import TracebackType

    from llmrouter.domain.batches import Canceled
    from llmrouter.domain.runs import RunProgress
    from llmrouter.domain.traffic import TrafficRow
    from llmrouter.futures import MessageFuture
    from llmrouter.middleware import ClientT
    from llmrouter.ports import Clock, Store
    from llmrouter.reports.status import RouterStatus
    from llmrouter.settings import Settings
    from llmrouter.wiring import Parts, SyncClient
    from llmrouter.worker import Worker

__all__ = ["Router"]

log = logging.getLogger("llmrouter")


class Router:
    """Sends each request the cheapest way that still answers in time.

    Real-time requests go to ``messages.create`` at once. All others are written to a durable
    queue, leave as batches on the schedule of their latency class, and their futures resolve when
    the results come back. May be used from any number of threads; make one for each process.
    """

    def __init__(
        self,
        client: SyncClient | None = None,
        *,
        store: str | Store | None = None,
        settings: Settings | None = None,
        worker: bool = True,
        observe: bool | None = None,
        _clock: Clock | None = None,
    ) -> None:
        """Opens the store and, unless told otherwise, starts to work on it.

        Args:
            client: A synchronous client; by default ``Anthropic()``, from the environment. It is
                the caller's: the router does not close it. With one of a platform without batches
                (Bedrock, Vertex, Foundry) everything goes live at once, whatever its latency class, and
                nobody works on the store.
            store: A URL (``disk:///folder``, ``memory://``) or a `Store`; by default that of the
                settings.
            settings: By default from the environment and the files that `Settings` names.
            worker: False: only enqueue and await; a separate ``llmrouter worker`` does the rest.
            observe: True: all calls on wrapped clients go live and are counted: see `traffic`. By default
                the setting ``observe``.

        Raises:
            SettingsError: A setting is wrong, or the client is asynchronous.
            StoreUnusableError: The store cannot be opened.
        """
        check_unwrapped(client)
        parts = build(client, store, settings, _clock, observe=observe)
        resolver: Resolver[MessageFuture] = Resolver(parts.store, _log_lookup_error)
        self._lifetime = Lifetime(parts, resolver)
        try:
            parts.rules.start()
            # It would keep a store from those who can send what is in it.
            if worker and parts.has_batches:
                self._lifetime.worker = _make_worker(parts, resolver)
                self._lifetime.worker.start()
        except BaseException:
            self._lifetime.close()
            raise
        self._parts = parts
        self._submission = Submission(parts, resolver, self._lifetime)
        self._operations = Operations(parts, self._lifetime)

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
        terms = Terms(
            latency=latency, deadline=deadline, site=site or call_site(1), extra_headers=extra_headers
        )
        return self._submission.submit([Ask(request=request, key=key)], terms)[0]

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
        terms = Terms(
            latency=latency, deadline=deadline, site=site or call_site(1), extra_headers=extra_headers
        )
        return self._submission.submit(_list(requests, keys), terms)

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
        terms = Terms(
            latency=latency, deadline=deadline, site=site or call_site(1), extra_headers=extra_headers
        )
        return self._asubmit(Ask(request=request, key=key), terms)

    async def _asubmit(self, ask: Ask, terms: Terms) -> MessageFuture:
        return (await self._submission.submit_soon([ask], terms, in_thread=False))[0]

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
        terms = Terms(
            latency=latency, deadline=deadline, site=site or call_site(1), extra_headers=extra_headers
        )
        return self._asubmit_many(requests, keys, terms)

    async def _asubmit_many(
        self, requests: Iterable[Mapping[str, Any]], keys: Sequence[str | None] | None, terms: Terms
    ) -> list[MessageFuture]:
        return await self._submission.submit_soon(_list(requests, keys), terms, in_thread=True)

    def future(self, request_id: str | None = None, *, key: str | None = None) -> MessageFuture:
        """A future for a request that another process, or yesterday's run, submitted.

        Args:
            request_id: Its id, or
            key: its idempotency key.

        Raises:
            UnknownRequestError: The store has no such request.
        """
        return self._submission.future(request_id, key)

    def wrap(self, client: ClientT) -> ClientT:
        """The drop-in: a client like the given one, whose calls of ``messages.create`` go as they are tagged.

        A tag is `llmrouter.tag`, a block of `llmrouter.latency` or a rule in the setting ``sites``, in this
        order of precedence. What is tagged with a batch class waits for its answer, as a call does, and
        survives a crash meanwhile; all other calls, and all other endpoints, go as before. Clients that
        are derived from the wrapped one are wrapped, too. It shares the given client's connections.

        Args:
            client: An ``Anthropic`` or ``AsyncAnthropic``, of any platform; without batches there,
                everything goes live. It must have the base URL and the credential of the router's own.

        Raises:
            SettingsError: It points elsewhere, or was wrapped by another router.
            RouterClosedError: The router was closed.
        """
        self._lifetime.check_open()
        return wrap_client(client, self, self._parts, middleware_for(self._parts))

    def traffic(self, since: date | None = None) -> list[TrafficRow]:
        """What call sites have sent live in observe mode; what other processes sent up to a second ago.

        Args:
            since: The first day (UTC); None: all there is.
        """
        self._lifetime.check_open()
        return self._operations.traffic(since)

    def flush(self) -> int:
        """Sends everything that waits, now; answers with the number of batches that were created.

        0 where another process works on the store: it is asked to do it. Paused classes stay.
        """
        self._lifetime.check_open()
        return self._operations.flush()

    def drain(self, timeout: float | None = None) -> bool:
        """Flushes, and waits until every request in the store has its outcome.

        What is paused or held back is waited for, too: `status` names it.

        Args:
            timeout: Seconds to wait at most; None waits as long as it takes.

        Returns:
            True when nothing is left, False when the time was up first.
        """
        return self._operations.drain(timeout)

    def status(self) -> RouterStatus:
        """What waits, what is in flight, what is held back or will be late, and who works on it."""
        self._lifetime.check_open()
        return self._operations.status()

    def why(self, request_id: str) -> str:
        """One sentence: what a request waits for and until when, or how it ended.

        Raises:
            UnknownRequestError: The store has no such request.
        """
        self._lifetime.check_open()
        return self._operations.why(request_id)

    def find(self, *, key: str | None = None, batch: str | None = None) -> list[str]:
        """Ids of the requests without an outcome whose key matches, or that are in a batch.

        Args:
            key: A shell pattern (``fnmatch``) of idempotency keys, such as ``"nightly-*"``, or
            batch: the id of a batch, ours or the API's.

        Raises:
            UnknownRequestError: The store has no such batch.
        """
        self._lifetime.check_open()
        return self._operations.find(key=key, batch=batch)

    def runs(self) -> list[RunProgress]:
        """How far each run in the store has come, the one that began last first.

        A run is what ``latency(..., run=NAME)`` names, or a ``llmrouter run``. Reads all keys in the store,
        so not for a loop.
        """
        self._lifetime.check_open()
        return self._operations.runs()

    def cancel(
        self,
        request_ids: str | Iterable[str] | None = None,
        *,
        key: str | None = None,
        batch: str | None = None,
    ) -> Canceled:
        """Gives requests up: those in the queue at once, those in a batch unless the API answers first.

        A batch of which nothing else is left is canceled at the API by whoever works on the store;
        what it has answered by then is paid for and handed over. Futures of canceled requests are
        cancelled.

        Args:
            request_ids: Their ids (unknown ones are left out), or
            key: a shell pattern of their keys, as for `find`, or
            batch: the batch they are in, as for `find`.

        Raises:
            UnknownRequestError: The store has no such batch.
        """
        self._lifetime.check_open()
        return self._operations.cancel(request_ids, key, batch)

    def pause(self, latency: str) -> None:
        """Leaves a latency class in the queue until `resume`, whichever process works on the store.

        Requests are still accepted, and what is in flight is collected. Their deadlines are missed
        if it takes that long: `status` tells of those.

        Raises:
            UnknownLatencyError: There is no such class, or it is real-time.
        """
        self._lifetime.check_open()
        self._operations.pause(latency)

    def resume(self, latency: str) -> bool:
        """Takes a `pause` back. False when the class was not paused.

        Raises:
            UnknownLatencyError: As for `pause`.
        """
        self._lifetime.check_open()
        return self._operations.resume(latency)

    def prune(self, older_than: timedelta | None = None, *, undelivered: bool = False) -> int:
        """Forgets requests that were settled long ago; answers with how many.

        Their answers and keys are gone then: the same key would be a new request, and paid again.
        Whoever works on the store does it every hour; this is for other limits.

        Args:
            older_than: Since they were settled; by default the setting ``retention``.
            undelivered: Also those whose answer nobody has picked up. It was paid for.

        Raises:
            InvalidRequestError: ``older_than`` is negative, or more than a hundred years.
            StoreBusyError: Another process works on the store.
        """
        self._lifetime.check_open()
        return self._operations.prune(older_than, undelivered=undelivered)

    def close(self) -> None:
        """Stops cleanly; may be repeated. What is queued or in flight stays in the store.

        Waits for real-time calls, commits and creates that are under way. Futures that still wait
        fail with `RouterClosedError`; their requests do not.
        """
        self._lifetime.close()

    def __del__(self) -> None:
        lifetime = getattr(self, "_lifetime", None)
        if lifetime is not None and lifetime.leaks:
            warnings.warn(
                f"{self!r} was dropped without close(): it works on until the interpreter ends",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )

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


def _make_worker(parts: Parts, resolver: Resolver[MessageFuture]) -> Worker:
    from llmrouter.worker import Worker  # noqa: PLC0415  (APScheduler loads with the first worker)

    engine = parts.engine(on_settled=resolver.notify)
    return Worker(engine, poll=parts.settings.poll, timezone=parts.settings.timezone)


def _list(requests: Iterable[Mapping[str, Any]], keys: Sequence[str | None] | None) -> list[Ask]:
    listed = list(requests)
    if keys is None:
        keys = [None] * len(listed)
    if len(keys) != len(listed):
        raise TypeError(f"{len(listed)} requests need as many keys, not {len(keys)}")
    return [
        Ask(request=request, key=key, index=index)
        for index, (request, key) in enumerate(zip(listed, keys, strict=True))
    ]


def _log_lookup_error(error: Exception) -> None:
    log.warning("could not look for outcomes; trying again: %s", error)
