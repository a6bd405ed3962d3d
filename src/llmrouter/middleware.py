"""The middleware of a wrapped client: sends each call the way that its tag says, and waits for the answer."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar, cast

from anthropic import Middleware

from llmrouter.domain.latency import REAL_TIME
from llmrouter.domain.requests import OutcomeKind
from llmrouter.errors import InvalidRequestError, KeyConflictError, RouterClosedError, SettingsError
from llmrouter.routing import By, sdk_call_site
from llmrouter.tagging import TAG_HEADERS, UNTAGGED, current_entry, read_tag, without_tag

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Mapping

    from anthropic import APIRequest, APIResponse, AsyncAPIResponse, AsyncCallNext, CallNext, MiddlewareInput

    from llmrouter.futures import MessageFuture
    from llmrouter.routing import Decision
    from llmrouter.tagging import Run, Tag
    from llmrouter.wiring import Parts

_log = logging.getLogger("llmrouter")

_TOLD_HEADERS = TAG_HEADERS | {"anthropic-beta"}
"""A call without any of them, outside of any block, is sent at once, unless sites have classes by rule."""

_LONG_OUTPUT_LATENCY = "daily"
"""Of what only a batch can answer, where nobody says how long it may take."""

_MOST_WARNINGS = 1024
"""Call sites may be named by the thousand."""


class Wrappable(Protocol):
    """A client of the SDK's, of any platform."""

    @property
    def middleware(self) -> tuple[MiddlewareInput, ...]:
        """What its calls go through, outermost first."""
        ...

    def with_middleware(self, *middleware: MiddlewareInput) -> Self:
        """A client like it, whose calls also go through this."""
        ...


ClientT = TypeVar("ClientT", bound=Wrappable)
AnswerT = TypeVar("AnswerT")


class Submitter(Protocol):
    """What the middleware asks of its router; see `llmrouter.Router`."""

    def submit(
        self,
        request: Mapping[str, Any],
        *,
        latency: str,
        site: str | None = None,
        key: str | None = None,
        extra_headers: Mapping[str, str] | None = None,
    ) -> MessageFuture:
        """Makes a request durable."""
        ...

    def asubmit(
        self,
        request: Mapping[str, Any],
        *,
        latency: str,
        site: str | None = None,
        key: str | None = None,
        extra_headers: Mapping[str, str] | None = None,
    ) -> Coroutine[Any, Any, MessageFuture]:
        """The same, without blocking the loop."""
        ...

    def future(self, request_id: str | None = None, *, key: str | None = None) -> MessageFuture:
        """A future for a request that the store has."""
        ...


def wrap_client(
    client: ClientT, router: Submitter, parts: Parts, kind: type[RoutingMiddleware] | None = None
) -> ClientT:
    """See `llmrouter.Router.wrap`."""
    if not hasattr(client, "with_middleware"):
        raise TypeError(f"wrap() takes a client of the SDK's, not {type(client).__name__}")
    for entry in client.middleware:
        if isinstance(entry, RoutingMiddleware):
            if entry.router is router:
                return client
            raise SettingsError(f"this {type(client).__name__} is wrapped by another router already")
    return client.with_middleware((kind or RoutingMiddleware)(router, parts, client))


def check_unwrapped(client: object) -> None:
    """Raises `SettingsError` for a wrapped client, through which a router would call itself."""
    if any(isinstance(entry, RoutingMiddleware) for entry in getattr(client, "middleware", ())):
        raise SettingsError("this client is wrapped: give Router the one that was given to wrap()")


class RoutingMiddleware(Middleware):
    """Routes the calls of one wrapped client, and of those that are derived from it.

    Attributes:
        router: Takes what goes in a batch.
    """

    def __init__(self, router: Submitter, parts: Parts, client: Any) -> None:
        """Keeps what calls need.

        Args:
            router: Takes what goes in a batch.
            parts: Of the same router.
            client: The client to wrap; calls of an asynchronous one go through `handle_async`.

        Raises:
            SettingsError: The client points elsewhere than the router's own.
        """
        self.router = router
        self._client = client
        self._parts = parts
        self._calls = parts.calls
        self._live_use = parts.live_use
        self._routing = parts.routing
        self._batchable = parts.calls.is_batchable(client)
        self._warned: set[tuple[str, str]] = set()

    def handle(self, request: APIRequest, call_next: CallNext) -> APIResponse[Any]:
        """Answers a call of a synchronous client."""
        if self._is_plain(request):
            return self._noted(request, call_next(request))
        request, errand = self._look(request, call_next)
        if errand is None:
            return self._noted(request, call_next(request))
        with errand.under_way():
            future = self._submit(errand)
            while errand.begins_anew(future):
                future = self._submit(errand)
            with contextlib.suppress(concurrent.futures.CancelledError):
                future.exception()
            return cast("APIResponse[Any]", errand.answer(future))

    async def handle_async(self, request: APIRequest, call_next: AsyncCallNext) -> AsyncAPIResponse[Any]:
        """Answers a call of an asynchronous client; its loop goes on."""
        if self._is_plain(request):
            return self._noted(request, await call_next(request))
        request, errand = self._look(request, call_next)
        if errand is None:
            return self._noted(request, await call_next(request))
        with errand.under_way():
            future = await self._submit_soon(errand)
            while errand.begins_anew(future):
                future = await self._submit_soon(errand)
            await future.wait()
            return cast("AsyncAPIResponse[Any]", errand.answer(future))

    def _noted(self, request: APIRequest, answer: AnswerT) -> AnswerT:
        """An answer to a live call, which counts against the limits that escalations share."""
        if self._batchable and self._calls.is_message(request):
            self._live_use.note(request, answer)
        return answer

    def _submit(self, errand: _Errand) -> MessageFuture:
        try:
            return self.router.submit(**errand.arguments)
        except KeyConflictError:
            # The run was begun with another class: what it has sent is not sent again.
            if errand.run is None:
                raise
            return self.router.future(key=errand.key)

    async def _submit_soon(self, errand: _Errand) -> MessageFuture:
        try:
            return await self.router.asubmit(**errand.arguments)
        except KeyConflictError:
            if errand.run is None:
                raise
            return await asyncio.to_thread(self.router.future, key=errand.key)

    def _is_plain(self, request: APIRequest) -> bool:
        """Whether nobody has said anything of a call: all that such a call pays for being wrapped."""
        headers = request.options.headers
        return (
            current_entry() is None
            and (not headers or _TOLD_HEADERS.isdisjoint(headers))
            and not self._routing.tags_sites
        )

    def _look(self, request: APIRequest, call_next: Callable[..., Any]) -> tuple[APIRequest, _Errand | None]:
        """What to send on; and what to submit instead, unless it goes live.

        Raises:
            InvalidRequestError: The call cannot go the way it was told to.
            SettingsError: The client points elsewhere than the router's own.
        """
        tag = read_tag(request.headers)
        if tag is not UNTAGGED:
            request = request.copy(headers=without_tag(request.headers))
        if not self._calls.is_message(request):
            return request, None
        entry = current_entry()
        site = sdk_call_site() if self._routing.has_rules else None
        decision = self._routing.decide(
            tuple(filter(None, (tag.site, site))),
            tag=tag.latency,
            block=entry.latency if entry is not None else None,
        )
        client = self._calls.client_of(call_next) or self._client
        only_batch = self._batchable and self._calls.needs_batch(request, client)
        if decision.latency == REAL_TIME and not only_batch:
            return request, None
        site = tag.site or site or sdk_call_site()
        latency = self._batch_latency(request, decision, site, only_batch=only_batch)
        if latency is None:
            return request, None
        run = entry.run if entry is not None else None
        return request, self._errand(request, client, latency, site, tag, run)

    def _batch_latency(
        self, request: APIRequest, decision: Decision, site: str, *, only_batch: bool
    ) -> str | None:
        """The class in which a call goes in a batch; None: it goes live after all."""
        latency = decision.latency
        if latency == REAL_TIME:
            if decision.by is not By.DEFAULT:
                problem = f"so long an answer comes from a batch only, and {decision.reason}"
                raise InvalidRequestError("max_tokens", problem)
            latency = _LONG_OUTPUT_LATENCY
            self._warn("an untagged call asks for what only a batch answers: it waits as %s", latency, site)
        if not self._batchable:
            # One for each client, not for each site: there is nothing to change at the site.
            name = type(self._client).__name__
            self._warn(f"{name} has no batches: what is tagged goes live, such as %s", latency, site, once="")
            return None
        streaming = self._parts.rules.settings.streaming
        if not request.stream or streaming == "replay":
            return latency
        if streaming == "error" or only_batch:
            problem = f"a batch does not stream, and the call is {latency}: leave it out, or set streaming"
            raise InvalidRequestError("stream", problem)
        self._warn("a call that streams goes live, although it is %s: batches do not stream", latency, site)
        return None

    def _errand(
        self, request: APIRequest, client: Any, latency: str, site: str, tag: Tag, run: Run | None
    ) -> _Errand:
        taken = self._calls.take(request, client)
        arguments = {
            "request": taken.request,
            "latency": latency,
            "site": site,
            "key": tag.key,
            "extra_headers": taken.headers,
        }
        content = b""
        if run is not None and tag.key is None:
            content = taken.content()
            arguments["key"] = run.take(content)
        return _Errand(request, client, arguments, self._parts, run=run if content else None, content=content)

    def _warn(self, text: str, latency: str, site: str, *, once: str | None = None) -> None:
        """Says it for the first call of a site."""
        told = (text, site if once is None else once)
        if told not in self._warned and len(self._warned) < _MOST_WARNINGS:
            self._warned.add(told)
            _log.warning(text, latency, extra={"site": site, "latency": latency})


class _Errand:
    """A call that goes in a batch.

    Attributes:
        arguments: Of `Router.submit`.
        run: What the key among them is of; None where it is the caller's own, or there is none.
    """

    def __init__(
        self,
        request: APIRequest,
        client: Any,
        arguments: dict[str, Any],
        parts: Parts,
        *,
        run: Run | None,
        content: bytes,
    ) -> None:
        self.arguments = arguments
        self.run = run
        self._content = content
        self._request = request
        self._client = client
        self._parts = parts
        self._begun = time.monotonic()
        self._begun_at = parts.clock.now()
        self._answered = False

    @property
    def key(self) -> str:
        """The idempotency key of a run."""
        return cast("str", self.arguments["key"])

    @contextlib.contextmanager
    def under_way(self) -> Iterator[None]:
        """Gives the key back to its run unless the answer gets to the caller."""
        try:
            yield
        finally:
            if self.run is not None and not self._answered:
                self.run.give_back(self.key)

    def begins_anew(self, future: MessageFuture) -> bool:
        """Whether the key is that of a request that failed in an earlier run; it has another one then."""
        outcome = future.outcome
        if self.run is None or outcome is None:
            return False
        failed = outcome.kind is not OutcomeKind.SUCCEEDED and outcome.accepted_at < self._begun_at
        if failed:
            self.arguments["key"] = self.run.take(self._content)
        return failed

    def answer(self, future: MessageFuture) -> Any:
        """What a future that is done gives the caller, or raises."""
        if future.outcome is None and not future.cancelled():
            raise future.exception() or RouterClosedError("the router was closed")
        waited = timedelta(seconds=time.monotonic() - self._begun)
        self._answered = True
        return self._parts.calls.answer(
            self._request, self._client, future.outcome, request_id=future.request_id, waited=waited
        )
