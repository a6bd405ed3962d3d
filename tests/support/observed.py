"""A router in observe mode without a network, and what its clients are answered."""

from __future__ import annotations

import gzip
import json
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import anthropic
import httpx2

from llmrouter import Router, Settings
from llmrouter.claude.replies import stream_events
from support.wrapping import BASE_URL, message_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from llmrouter.domain.traffic import TrafficRow
    from llmrouter.ports import Clock, Store

USAGE = {
    "input_tokens": 3,
    "cache_read_input_tokens": 20,
    "cache_creation_input_tokens": 11,
    "cache_creation": {"ephemeral_5m_input_tokens": 4, "ephemeral_1h_input_tokens": 7},
    "output_tokens": 5,
}


class Pieces(httpx2.SyncByteStream, httpx2.AsyncByteStream):
    """A body that comes in pieces, and may break off with an error."""

    def __init__(self, content: bytes, size: int = 7, error: Exception | None = None) -> None:
        self._pieces = [content[at : at + size] for at in range(0, len(content), size)]
        self._error = error

    def __iter__(self) -> Iterator[bytes]:
        yield from self._pieces
        if self._error is not None:
            raise self._error

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self:
            yield piece


def events(**changes: Any) -> bytes:
    """The events of a streamed message."""
    return b"".join(stream_events(message_of(**{"usage": USAGE, **changes})))


def answer(request: httpx2.Request) -> httpx2.Response:
    """A message, streamed if that was asked for, compressed as the API does."""
    asked = json.loads(request.content)
    if asked.get("stream"):
        content, kind = events(model=asked["model"]), "text/event-stream; charset=utf-8"
    else:
        content, kind = json.dumps(message_of(model=asked["model"], usage=USAGE)).encode(), "application/json"
    headers = {"content-type": kind, "content-encoding": "gzip"}
    return httpx2.Response(200, headers=headers, stream=Pieces(gzip.compress(content)))


class Observed:
    """A router in observe mode.

    Attributes:
        answer: What clients are answered.
    """

    def __init__(self, stack: ExitStack, store: str | Store, clock: Clock | None, settings: Any) -> None:
        self.answer: Callable[[httpx2.Request], httpx2.Response] = answer
        self._stack = stack
        self.plain: anthropic.Anthropic = stack.enter_context(self.client(anthropic.Anthropic))
        self.router = stack.enter_context(
            Router(
                self.plain,
                store=store,
                settings=Settings(**settings),
                worker=False,
                observe=True,
                _clock=clock,
            )
        )
        self.sync = self.router.wrap(self.plain)

    def client(self, kind: Any, **options: Any) -> Any:
        """A client that is answered."""
        http = httpx2.AsyncClient if kind.__name__.startswith("Async") else httpx2.Client
        transport = httpx2.MockTransport(self._answered)
        given = {"api_key": "key", "base_url": BASE_URL, "max_retries": 0, **options}
        return kind(**given, http_client=http(transport=transport))

    def _answered(self, request: httpx2.Request) -> httpx2.Response:
        return self.answer(request)

    def wrap_async(self) -> anthropic.AsyncAnthropic:
        """An asynchronous client, wrapped; to be closed in its loop."""
        client: anthropic.AsyncAnthropic = self.router.wrap(self.client(anthropic.AsyncAnthropic))
        return client

    @property
    def row(self) -> TrafficRow:
        """The only row there is."""
        (row,) = self.router.traffic()
        return row


@contextmanager
def observed(
    *, store: str | Store = "memory://", clock: Clock | None = None, **settings: Any
) -> Iterator[Observed]:
    """A router in observe mode that is closed at the end."""
    with ExitStack() as stack:
        yield Observed(stack, store, clock, settings)
