"""Live calls on threads: what a real-time submit starts."""

from __future__ import annotations

import contextvars
import logging
import queue
import threading
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeAlias

from llmrouter.claude.headers import CallHeaders, fold_headers
from llmrouter.claude.rate_limits import read_limits, work_of
from llmrouter.domain.live import Seen
from llmrouter.errors import RouterClosedError

if TYPE_CHECKING:
    import anthropic
    import httpx2
    from anthropic import APIRequest, APIResponse, CallNext
    from anthropic.types import Message

_log = logging.getLogger(__name__)

Done: TypeAlias = "Callable[[Message | None, BaseException | None], None]"
"""Called once with the message, or with what was raised; on the thread of the call."""

_Job: TypeAlias = Callable[[], None]
_Tell: TypeAlias = "Callable[[str, httpx2.Headers, object], None]"


class LiveCalls:
    """Calls `messages.create` at once, on up to `threads` threads, which start when they are needed.

    The threads are daemons, unlike those of a `ThreadPoolExecutor`: an interpreter that exits does
    not wait for calls that can take ten minutes. `close` does.
    """

    def __init__(
        self, client: anthropic.Anthropic, threads: int, on_call: Callable[[Seen], None] | None = None
    ) -> None:
        """Starts nothing.

        Args:
            client: What calls are made with.
            threads: How many at once.
            on_call: Told of each answer, on the thread of the call; of those to the SDK's own retries
                too. What it raises is logged once, and changes nothing for the call.
        """
        self._client = client
        self._on_call = on_call
        self._observer_failed = False
        self._limit = threads
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._open_calls = 0
        self._closed = False

    def start(self, request: Mapping[str, Any], headers: CallHeaders, done: Done) -> None:
        """Starts a call and returns.

        Args:
            request: The keyword arguments of `messages.create`.
            headers: Further headers of this call; they win over those of the request.
            done: Told how it ended.

        Raises:
            RouterClosedError: It was closed.
        """
        context = contextvars.copy_context()

        def job() -> None:
            context.run(self._call, request, headers, done)

        with self._lock:
            if self._closed:
                raise RouterClosedError("this router was closed: it takes no more requests")
            self._open_calls += 1
            self._jobs.put(job)
            if len(self._threads) < min(self._limit, self._open_calls):
                self._add_thread()

    def close(self, wait: bool) -> None:
        """Takes no more calls; those under way and those that wait for a thread still run.

        Args:
            wait: Return when the last one has ended. False: return at once.
        """
        with self._lock:
            if not self._closed:
                self._closed = True
                for _ in self._threads:
                    self._jobs.put(None)
        if wait:
            for thread in self._threads:
                if thread is not threading.current_thread():
                    thread.join()

    def _add_thread(self) -> None:
        name = f"llmrouter-live-{len(self._threads)}"
        thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            with self._lock:
                self._open_calls -= 1

    def _call(self, request: Mapping[str, Any], headers: CallHeaders, done: Done) -> None:
        message: Message | None = None
        error: BaseException | None = None
        try:
            message = call_live(self._client, request, headers, self._tell if self._on_call else None)
        except BaseException as raised:  # noqa: BLE001 - whatever it is, it is the caller's
            error = raised
        try:
            done(message, error)
        except BaseException as failure:  # noqa: BLE001 - the thread has other calls to make
            _log_failure("What was to be told of a live call failed", failure)

    def _tell(self, model: str, headers: httpx2.Headers, usage: object) -> None:
        try:
            if self._on_call is not None:
                limits, now = read_limits(headers), datetime.now(UTC)
                self._on_call(Seen(model=model, limits=limits, work=work_of(usage), ended_at=now))
        except Exception as failure:  # noqa: BLE001 - the call's answer is not to be lost over it
            if not self._observer_failed:
                self._observer_failed = True
                _log_failure("What watches live calls failed; it is not logged again", failure)


def _log_failure(what: str, failure: BaseException) -> None:
    # Where, but not its text: that may quote the answer.
    where = "".join(traceback.format_tb(failure.__traceback__))
    _log.error("%s (%s).\n%s", what, type(failure).__name__, where)


def call_live(
    client: anthropic.Anthropic, request: Mapping[str, Any], headers: CallHeaders, tell: _Tell | None = None
) -> Message:
    """Calls `messages.create` and returns its message.

    A request so long that the SDK does not send it without streaming is streamed to its end.

    Args:
        client: What the call is made with.
        request: The keyword arguments of `messages.create`.
        headers: Further headers of this call; they win over those of the request.
        tell: Given the model, the headers and the usage of each answer; must not raise.

    Raises:
        anthropic.APIError: As `messages.create`.
    """
    watch = _Watch(str(request.get("model", "")), tell)
    watched = client.with_middleware(watch)
    arguments = {**request, "extra_headers": fold_headers(request.get("extra_headers"), headers)}
    message: Message | None = None
    try:
        message = watched.messages.create(**arguments)
    except ValueError:
        # The SDK refuses before it sends. One that comes later is about the answer, which is paid for.
        if watch.sent:
            raise
        message = _stream(watched, arguments)
    finally:
        watch.end(message)
    return message


class _Watch:
    """Middleware, the innermost, that looks at the answers to one call: the SDK's retries make several."""

    def __init__(self, model: str, tell: _Tell | None) -> None:
        self._model = model
        self._tell = tell
        self._headers: httpx2.Headers | None = None
        self.sent = False
        """Whether the SDK has let the call pass."""

    def __call__(self, request: APIRequest, call_next: CallNext) -> APIResponse[Any]:
        self.sent = True
        answer = call_next(request)
        if self._tell is not None:
            if answer.http_response.is_success:
                self._headers = answer.headers
            else:
                self._tell(self._model, answer.headers, None)
        return answer

    def end(self, message: Message | None) -> None:
        """The call ended, with this message or with an error."""
        if self._tell is not None and self._headers is not None:
            self._tell(self._model, self._headers, getattr(message, "usage", None))


def _stream(client: anthropic.Anthropic, arguments: Mapping[str, Any]) -> Message:
    streamed = {name: value for name, value in arguments.items() if name != "stream"}
    with client.messages.stream(**streamed) as stream:
        return stream.get_final_message()
