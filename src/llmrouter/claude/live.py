"""Live calls on threads: what a real-time submit starts."""

from __future__ import annotations

import contextvars
import logging
import queue
import threading
import traceback
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from llmrouter.claude.headers import CallHeaders, fold_headers
from llmrouter.errors import RouterClosedError

if TYPE_CHECKING:
    import anthropic
    from anthropic import APIRequest, CallNext
    from anthropic.types import Message

_log = logging.getLogger(__name__)

Done: TypeAlias = "Callable[[Message | None, BaseException | None], None]"
"""Called once with the message, or with what was raised; on the thread of the call."""

_Job: TypeAlias = Callable[[], None]


class LiveCalls:
    """Calls `messages.create` at once, on up to `threads` threads, which start when they are needed.

    The threads are daemons, unlike those of a `ThreadPoolExecutor`: an interpreter that exits does
    not wait for calls that can take ten minutes. `close` does.
    """

    def __init__(self, client: anthropic.Anthropic, threads: int) -> None:
        self._client = client
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
            message = call_live(self._client, request, headers)
        except BaseException as raised:  # noqa: BLE001 - whatever it is, it is the caller's
            error = raised
        try:
            done(message, error)
        except BaseException as failure:  # noqa: BLE001 - the thread has other calls to make
            # Where, but not its text: that may quote the answer.
            where = "".join(traceback.format_tb(failure.__traceback__))
            _log.error("What was to be told of a live call failed (%s).\n%s", type(failure).__name__, where)


def call_live(client: anthropic.Anthropic, request: Mapping[str, Any], headers: CallHeaders) -> Message:
    """Calls `messages.create` and returns its message.

    A request so long that the SDK does not send it without streaming is streamed to its end.

    Raises:
        anthropic.APIError: As `messages.create`.
    """
    sent = threading.Event()

    def note_sending(request: APIRequest, call_next: CallNext) -> Any:
        sent.set()
        return call_next(request)

    arguments = {**request, "extra_headers": fold_headers(request.get("extra_headers"), headers)}
    try:
        message: Message = client.with_middleware(note_sending).messages.create(**arguments)
    except ValueError:
        # The SDK refuses before it sends. One that comes later is about the answer, which is paid for.
        if sent.is_set():
            raise
        return _stream(client, arguments)
    return message


def _stream(client: anthropic.Anthropic, arguments: Mapping[str, Any]) -> Message:
    streamed = {name: value for name, value in arguments.items() if name != "stream"}
    with client.messages.stream(**streamed) as stream:
        return stream.get_final_message()
