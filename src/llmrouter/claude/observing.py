"""What an answered call tells of itself: noted on the caller's way without reading it, read later."""

from __future__ import annotations

import contextlib
import json
import re
import weakref
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from llmrouter.claude.prices import live_price_usd
from llmrouter.domain.cache_use import CacheUse, add_uses, read_usage, token_counts
from llmrouter.domain.traffic import Told

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator, Mapping
    from datetime import datetime

    import httpx2
    from anthropic import APIRequest

    from llmrouter.domain.traffic import Noted

HEAD_BYTES = 4_096
"""Of an answer: the model, and what a stream begins with."""

TAIL_BYTES = 8_192
"""Of an answer: its `usage`, which stands at the end."""

_MODEL = re.compile(rb'"model"\s*:\s*"([^"\\]{1,200})"')
_CONTENT = b'"content"'
_LAST_EVENT = re.compile(rb"(?:^|\n)event: ?message_delta\r?(?=\n)")
_ERROR_EVENT = re.compile(rb"(?:^|\n)event: ?error\r?\n")
_DATA = re.compile(rb"\r?\ndata: ?([^\r\n]+)")


Ends: TypeAlias = tuple[bytes, bytes]
"""The beginning and the end of an answer as the API sent it, decoded; all of a short one is in both."""


def whole(content: bytes) -> Ends:
    """The ends of an answer that was read."""
    if len(content) <= HEAD_BYTES:
        return content, content
    return content[:HEAD_BYTES], content[-TAIL_BYTES:]


def read_answer(ends: Ends | None, streaming: bool, at: datetime) -> Told:
    """What an answer tells; never raises.

    Args:
        ends: Of the answer; None: nothing is known of it.
        streaming: Whether it is a stream of events.
        at: When it came: prices change.
    """
    if ends is None:
        return Told()
    head, tail = ends
    model = _model_of(head)
    if streaming:
        began, ended = _started(head), _ended(tail)
        failed = _ERROR_EVENT.search(tail) is not None
        complete = ended is not None and not failed
        usage = {
            **(began or {}),
            **{name: value for name, value in (ended or {}).items() if value is not None},
        }
    else:
        usage, failed = read_usage(tail) or {}, False
        complete = bool(usage)
    if not usage:
        return Told(failed=failed)
    output_tokens = usage.get("output_tokens")
    cost_usd = live_price_usd(model, usage, at) if complete and model else None
    return Told(
        use=add_uses(CacheUse(), [token_counts(usage)]),
        output_tokens=output_tokens if isinstance(output_tokens, int) else 0,
        cost_usd=cost_usd,
        failed=failed,
    )


def _model_of(head: bytes) -> str | None:
    """The model that answered, which is not always the one that was asked for."""
    # It stands before what it has written, where anything could have its name.
    named = _MODEL.search(head.partition(_CONTENT)[0])
    return named[1].decode("utf-8", "replace") if named else None


def _started(head: bytes) -> dict[str, Any] | None:
    """The usage with which a stream begins."""
    data = _DATA.search(head)
    return read_usage(data[1]) if data and b"message_start" in data[1] else None


def _ended(tail: bytes) -> dict[str, Any] | None:
    """The usage with which a stream ends; in its sum."""
    # A text has no line ends of its own: they are escaped.
    places = [event.end() for event in _LAST_EVENT.finditer(tail)]
    data = _DATA.match(tail, places[-1]) if places else None
    with contextlib.suppress(ValueError, LookupError, TypeError, RecursionError):
        usage = json.loads(data[1])["usage"] if data else None
        return usage if isinstance(usage, dict) else None
    return None


class Tap:
    """Looks at the body of an answer while its caller reads it, in whatever way."""

    def __init__(self, on_end: Callable[[Ends, bool], None]) -> None:
        """Keeps whom to tell.

        Args:
            on_end: Told once when the reading ends, of the ends of what was read, and whether it failed.
                Must not raise.
        """
        self._on_end: Callable[[Ends, bool], None] | None = on_end
        self._head = b""
        self._tail = b""

    def attach(self, response: httpx2.Response, *, sync: bool) -> None:
        """Puts itself between a response that was not read yet and whoever will read it.

        By the method through which the SDK and callers read decoded bytes: `response.stream` may be
        compressed. It is as before when it was read.
        """
        # Not the response itself: it would hold itself, and be closed late where it is dropped unread.
        whose = weakref.ref(response)
        name = "iter_bytes" if sync else "aiter_bytes"
        read = getattr(type(response), name)
        watch: Callable[..., Any] = self._watch if sync else self._awatch

        def iterate(chunk_size: int | None = None) -> Any:
            found = whose()
            return watch(read(found, chunk_size), vars(found), name)

        vars(response)[name] = iterate

    def _watch(self, chunks: Generator[bytes], attributes: dict[str, Any], name: str) -> Generator[bytes]:
        failed = False
        try:
            for chunk in chunks:
                self._note(chunk)
                yield chunk
        except Exception:
            failed = True
            raise
        finally:
            attributes.pop(name, None)
            self._end(failed)

    async def _awatch(
        self, chunks: AsyncGenerator[bytes], attributes: dict[str, Any], name: str
    ) -> AsyncGenerator[bytes]:
        failed = False
        try:
            async for chunk in chunks:
                self._note(chunk)
                yield chunk
        except Exception:
            failed = True
            raise
        finally:
            attributes.pop(name, None)
            self._end(failed)
            # Or else the loop would close it later, in a task of its own.
            await chunks.aclose()

    def _note(self, chunk: bytes) -> None:
        if len(self._head) < HEAD_BYTES:
            self._head += chunk[: HEAD_BYTES - len(self._head)]
        self._tail = (self._tail + chunk)[-TAIL_BYTES:]

    def _end(self, failed: bool) -> None:
        told, self._on_end = self._on_end, None
        if told is not None:
            told((self._head, self._tail), failed)


class WatchedCall:
    """A live call whose traffic is counted. What it raises is its own trouble, not the call's."""

    __slots__ = ("_begun", "_came", "_monotonic", "_names", "_note")

    def __init__(
        self,
        request: APIRequest,
        site: str,
        latency: str,
        monotonic: Callable[[], float],
        note: Callable[[Noted], None],
    ) -> None:
        """Begins.

        Args:
            request: One of `WrappedCalls.is_message`.
            site: Where it is made.
            latency: The class that its tag, its block or a rule asks for.
            monotonic: Tells how long it takes.
            note: Told when it is answered, and when a streamed answer ends. Must not raise.
        """
        model = cast("Mapping[str, Any]", request.json).get("model")
        self._names = site, model, latency, request.stream
        self._monotonic = monotonic
        self._note = note
        self._begun = monotonic()
        self._came: float | None = None

    def failed(self) -> None:
        """It raised."""
        self._say(1, 1, None)

    def answered(self, answer: Any, *, sync: bool) -> None:
        """There is an answer, which its caller may still have to read.

        Args:
            answer: What the middleware was given for it.
            sync: Whether it will be read without `await`.
        """
        response: httpx2.Response | None = getattr(answer, "http_response", None)
        if response is None:  # A middleware further in has answered by itself.
            self._say(1, 0, None)
        elif response.status_code >= 300:
            self._say(1, 1, None)
        elif response.is_closed:
            self._say(1, 0, whole(response.content))
        else:
            Tap(self._ended).attach(response, sync=sync)
            self._came = self._monotonic()
            self._note((*self._names, self._came, 1, 0, 0.0, None))

    def _ended(self, ends: Ends, failed: bool) -> None:
        self._say(0, int(failed), ends)

    def _say(self, calls: int, errors: int, ends: Ends | None) -> None:
        ended = self._monotonic()
        # Both samples of an answer count on one day.
        at = ended if self._came is None else self._came
        self._note((*self._names, at, calls, errors, ended - self._begun, ends))
