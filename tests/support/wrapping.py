"""Wrapped clients without a network: a router that answers as a test says, and an HTTP that records."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import anthropic
import httpx2

from llmrouter import Settings
from llmrouter.domain.requests import OutcomeKind
from llmrouter.middleware import wrap_client
from llmrouter.wiring import build
from support.owners import FakeOwner, outcome
from support.requests import MODEL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from llmrouter import MessageFuture
    from llmrouter.domain.requests import Outcome

BASE_URL = "http://api.invalid"


def message_of(text: str = "stored", **changes: Any) -> dict[str, Any]:
    """A message as the API gives it."""
    return {
        "id": f"msg_{text}",
        "type": "message",
        "role": "assistant",
        "model": MODEL,
        "content": [{"type": "text", "text": text}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "stop_details": None,
        "container": None,
        "usage": {"input_tokens": 3, "output_tokens": 5},
        **changes,
    }


def succeeded(message: Mapping[str, Any] | None = None) -> Outcome:
    """An answered request."""
    result = {"type": "succeeded", "message": message or message_of()}
    return outcome(raw=json.dumps({"custom_id": "c", "result": result}).encode())


def errored(error_type: str) -> Outcome:
    """A request that the API refused."""
    error = {"type": "error", "error": {"type": error_type, "message": "said the API"}}
    result = {"type": "errored", "error": error}
    return outcome(kind=OutcomeKind.ERRORED, raw=json.dumps({"custom_id": "c", "result": result}).encode())


class FakeRouter:
    """Implements `llmrouter.middleware.Submitter`: futures that are done, or that the test ends."""

    def __init__(self, answer: Callable[[], Outcome | None] = succeeded) -> None:
        self.answer = answer
        self.submitted: list[dict[str, Any]] = []
        self.futures: list[MessageFuture] = []
        self._owner = FakeOwner()

    def submit(self, request: Mapping[str, Any], **terms: Any) -> MessageFuture:
        """See `Submitter.submit`."""
        self.submitted.append({"request": request, **terms})
        future = self._owner.future(f"req_{len(self.submitted)}")
        self.futures.append(future)
        ended = self.answer()
        if ended is not None:
            future.settle(replace(ended, accepted_at=datetime.now(UTC)))
        return future

    async def asubmit(self, request: Mapping[str, Any], **terms: Any) -> MessageFuture:
        """See `Submitter.asubmit`."""
        return self.submit(request, **terms)

    def future(self, request_id: str | None = None, *, key: str | None = None) -> MessageFuture:
        """See `Submitter.future`."""
        raise AssertionError("nothing is known already")

    @property
    def keys(self) -> list[str | None]:
        """The keys of what was submitted."""
        return [one["key"] for one in self.submitted]

    @property
    def sites(self) -> list[str]:
        """The call sites of what was submitted."""
        return [one["site"] for one in self.submitted]


class Wire:
    """An HTTP that answers calls with a message, after so many failures, and keeps what was sent."""

    def __init__(self) -> None:
        self.sent: list[httpx2.Request] = []
        self.failures = 0

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.sent.append(request)
        if len(self.sent) <= self.failures:
            return httpx2.Response(500)
        if request.url.path.endswith("count_tokens"):
            return httpx2.Response(200, json={"input_tokens": 1})
        return httpx2.Response(200, json=message_of("live"))


class Wrapped:
    """A wrapped client, what it sends at once, and what it submits."""

    def __init__(self, *, own: dict[str, Any] | None = None, **settings: Any) -> None:
        self.wire = Wire()
        self.router = FakeRouter()
        self.own = self.client(anthropic.Anthropic, **(own or {}))
        self.parts = build(self.own, "memory://", Settings(**settings), None)
        self.sync = self.wrap(self.own)

    def client(self, kind: Any, **options: Any) -> Any:
        """A client on this wire."""
        sync = not kind.__name__.startswith("Async")
        client = httpx2.Client if sync else httpx2.AsyncClient
        given = {"api_key": "key", "base_url": BASE_URL, **options}
        return kind(**given, http_client=client(transport=httpx2.MockTransport(self.wire)))

    def wrap(self, client: Any) -> Any:
        """The client, wrapped."""
        return wrap_client(client, self.router, self.parts)

    @property
    def went(self) -> tuple[int, int]:
        """How many calls went live, and how many were submitted."""
        return len(self.wire.sent), len(self.router.submitted)


@contextmanager
def wrapped(*, own: dict[str, Any] | None = None, **settings: Any) -> Iterator[Wrapped]:
    """A wrapped client that is closed at the end.

    Args:
        own: Options of the router's client.
        settings: Of the router.
    """
    one = Wrapped(own=own, **settings)
    try:
        yield one
    finally:
        one.parts.intake.close()
        one.parts.live.close(wait=True)
        one.parts.store.close()
