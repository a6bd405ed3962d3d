"""From what callers submit to durable requests, and to the futures that wait for their answers."""

from __future__ import annotations

import asyncio
import logging
import secrets
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from llmrouter.domain.latency import REAL_TIME, check_deadline
from llmrouter.domain.prompt_cache import SharedPrefixes, name_prefix
from llmrouter.domain.requests import Group, RequestState
from llmrouter.engine.intake import Draft
from llmrouter.errors import InvalidRequestError, UnknownRequestError
from llmrouter.futures import MessageFuture

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime, timedelta

    from anthropic.types import Message

    from llmrouter.domain.latency import LatencyClass
    from llmrouter.domain.requests import Accepted, Lane, Outcome
    from llmrouter.engine.resolver import Resolver
    from llmrouter.lifetime import Lifetime
    from llmrouter.wiring import Parts

_log = logging.getLogger("llmrouter")

_CACHED_GROUPS = 1024
"""Call sites may be named by the thousand, of each request its own, say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request of a caller's, not yet looked at."""

    request: Mapping[str, Any]
    key: str | None
    index: int | None = None
    """Its place in the list it came in, for errors; None for one that came alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What all requests of one call have in common."""

    latency: str
    deadline: timedelta | datetime | None
    site: str
    extra_headers: Mapping[str, str] | None

    @property
    def live(self) -> bool:
        """Whether they go live at once."""
        return self.latency == REAL_TIME


class Submission:
    """Takes requests in, and is the owner of their futures (`llmrouter.futures.Owner`)."""

    def __init__(self, parts: Parts, resolver: Resolver[MessageFuture], lifetime: Lifetime) -> None:
        self._parts = parts
        self._resolver = resolver
        self._lifetime = lifetime
        # Requests of one group share the object: a store knows it again without comparing lanes.
        self._group = lru_cache(_CACHED_GROUPS)(_make_group)
        self._rules = parts.rules.settings
        self._site = lru_cache(_CACHED_GROUPS)(self._rules.site)
        self._shared = SharedPrefixes()
        self._told = False

    def submit(self, asks: Sequence[Ask], terms: Terms) -> list[MessageFuture]:
        """Makes requests durable, all of them or none, or starts their live calls."""
        if self._goes_live(terms):
            return self._start_live(asks, terms)
        drafts = self._drafts(asks, terms)
        since = self._resolver.position()
        futures, look = self._register(drafts, self._parts.intake.enqueue(drafts), since)
        if look:
            self._resolver.look_up(futures)
        return futures

    async def submit_soon(self, asks: Sequence[Ask], terms: Terms, *, in_thread: bool) -> list[MessageFuture]:
        """The same for asyncio code: it writes in a thread.

        Args:
            asks: What to take in.
            terms: Of all of them.
            in_thread: Whether to check and encode there, too: many would hold up the loop.
        """
        if self._goes_live(terms):
            return self._start_live(asks, terms)
        if in_thread:
            drafts = await asyncio.to_thread(self._drafts, asks, terms)
        else:
            drafts = self._drafts(asks, terms)
        since = self._resolver.position()
        accepted = await asyncio.wrap_future(self._parts.intake.enqueue_soon(drafts))
        futures, look = self._register(drafts, accepted, since)
        if look:
            await asyncio.to_thread(self._resolver.look_up, futures)
        return futures

    def future(self, request_id: str | None, key: str | None) -> MessageFuture:
        """See `Router.future`."""
        self._lifetime.check_open()
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

    # What futures ask of their owner

    def cancel(self, request_id: str) -> bool:
        """Takes a request out of the queue; False when it has left it."""
        self._lifetime.check_open()
        done = self._parts.store.cancel([request_id], self._parts.clock.now(), in_batches=False)
        return done.canceled == 1

    def state(self, request_id: str) -> str:
        """Where a request is."""
        store = self._parts.store
        view = store.find(request_id)
        if view is None:
            return "running"
        if view.state is RequestState.CLAIMED and view.batch_id is not None:
            batch = store.find_batch(view.batch_id)
            return (view if batch is None else batch).state.value
        return view.state.value

    def decode(self, outcome: Outcome) -> Message | Exception:
        """The message of an outcome, or its exception."""
        return self._parts.decode(outcome)

    def pin(self, future: MessageFuture) -> None:
        """Keeps a future alive that somebody listens to."""
        self._resolver.pin(future)

    def _goes_live(self, terms: Terms) -> bool:
        if terms.live or self._parts.routing.never_batch(terms.site):
            return True
        if self._parts.has_batches:
            return False
        self._parts.routing.batch_class(terms.latency)
        if not self._told:
            self._told = True
            text = "%s has no batches: what is submitted goes live at once, such as %s"
            about = {"site": terms.site, "latency": terms.latency}
            _log.warning(text, type(self._parts.client).__name__, terms.latency, extra=about)
        return True

    def _drafts(self, asks: Sequence[Ask], terms: Terms) -> list[Draft]:
        self._lifetime.check_open()
        latency = self._parts.routing.batch_class(terms.latency)
        _check_text("site", terms.site, None)
        check_deadline(terms.deadline, self._parts.clock.now())
        auto_cache = self._has_auto_cache(terms.site)
        return [self._draft(ask, terms, latency, auto_cache=auto_cache) for ask in asks]

    def _has_auto_cache(self, site: str) -> bool:
        rules = self._parts.rules.settings
        if rules is not self._rules:  # They were read anew.
            self._rules, self._site = rules, lru_cache(_CACHED_GROUPS)(rules.site)
        return self._site(site).cache == "auto"

    def _draft(self, ask: Ask, terms: Terms, latency: LatencyClass, *, auto_cache: bool) -> Draft:
        if ask.key is not None:
            _check_text("key", ask.key, ask.index)
        encoded = self._parts.encode(
            ask.request,
            batch=True,
            extra_headers=terms.extra_headers,
            index=ask.index,
            auto_cache=auto_cache,
        )
        try:
            lane = self._parts.lanes.lane_for(encoded.headers)
        except InvalidRequestError as error:
            raise InvalidRequestError(error.field, error.problem, index=ask.index) from None
        prefix = self._shared.pick(encoded.prefixes) if encoded.prefixes else ""
        named = name_prefix(prefix, warmable=auto_cache)
        group = self._group(lane, terms.latency, terms.site, encoded.model, named)
        return Draft(group=group, latency=latency, body=encoded.body, deadline=terms.deadline, key=ask.key)

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

    def _start_live(self, asks: Sequence[Ask], terms: Terms) -> list[MessageFuture]:
        """Starts none unless all of them are right."""
        self._lifetime.check_open()
        check_deadline(terms.deadline, self._parts.clock.now())
        checked = [
            self._parts.encode(ask.request, batch=False, extra_headers=terms.extra_headers, index=ask.index)
            for ask in asks
        ]
        futures = []
        for ask, encoded in zip(asks, checked, strict=True):
            name = f"live_{secrets.token_hex(10)}"
            future = MessageFuture(self, request_id=name, key=ask.key, latency=REAL_TIME, deadline=None)
            self._parts.live.start(encoded.arguments, terms.extra_headers or {}, future.take)
            futures.append(future)
        return futures


def _make_group(lane: Lane, latency: str, site: str, model: str, prefix: str) -> Group:
    return Group(lane=lane, latency=latency, site=site, model=model, prefix=prefix)


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
