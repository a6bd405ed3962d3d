"""Live calls start at once on threads, end in their callback, and hold up nobody's exit."""

from __future__ import annotations

import contextvars
import json
import logging
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import anthropic
import httpx2
import pytest
from claude_support import client_with, error_body, message_body, request

from llmrouter.claude.live import LiveCalls, call_live
from llmrouter.errors import RouterClosedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from anthropic.types import Message

WAIT = 10


def future_of(calls: LiveCalls, arguments: dict[str, Any], headers: Any = None) -> Future[Message]:
    future: Future[Message] = Future()

    def done(message: Message | None, error: BaseException | None) -> None:
        if error is not None:
            future.set_exception(error)
        else:
            assert message is not None
            future.set_result(message)

    calls.start(arguments, headers or {}, done)
    return future


def answer(_: httpx2.Request) -> httpx2.Response:
    return httpx2.Response(200, json=message_body())


class Gate:
    """A transport that holds every call until it is opened."""

    def __init__(self) -> None:
        self.inside = threading.Semaphore(0)
        self.open = threading.Event()
        self.peak = 0
        self._count = 0
        self._lock = threading.Lock()

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self._move(1)
        self.inside.release()
        assert self.open.wait(WAIT)
        self._move(-1)
        return answer(request)

    def _move(self, step: int) -> None:
        with self._lock:
            self._count += step
            self.peak = max(self.peak, self._count)


@pytest.fixture
def live() -> Iterator[Callable[..., LiveCalls]]:
    made: list[LiveCalls] = []

    def make(handler: Any, threads: int = 4, **options: Any) -> LiveCalls:
        made.append(LiveCalls(client_with(handler, **options), threads))
        return made[-1]

    yield make
    for calls in made:
        calls.close(wait=True)


def test_a_call_ends_with_its_message(live: Callable[..., LiveCalls]) -> None:
    """The one of `messages.create`."""
    message = future_of(live(answer), request()).result(WAIT)

    assert message.content[0].to_dict() == {"type": "text", "text": "hello"}


def test_headers_of_the_call_win(live: Callable[..., LiveCalls]) -> None:
    """Over those of the request, whatever the spelling."""
    wire: list[httpx2.Request] = []

    def note(sent: httpx2.Request) -> httpx2.Response:
        wire.append(sent)
        return answer(sent)

    arguments = request(extra_headers={"Anthropic-Beta": "a", "x-own": "1"}, workspace_id="w")
    future_of(live(note), arguments, {"anthropic-beta": "b"}).result(WAIT)

    assert wire[0].headers["anthropic-beta"] == "b"
    assert (wire[0].headers["x-own"], wire[0].headers["anthropic-workspace-id"]) == ("1", "w")


def test_a_call_ends_with_the_exception_of_the_sdk(live: Callable[..., LiveCalls]) -> None:
    """Typed as ever, and a wrong argument is no exception to that."""
    calls = live(lambda _: httpx2.Response(400, json=error_body("invalid_request_error")))

    assert isinstance(future_of(calls, request()).exception(WAIT), anthropic.BadRequestError)
    assert isinstance(future_of(calls, request(nonsense=1)).exception(WAIT), TypeError)


def test_calls_run_at_once(live: Callable[..., LiveCalls]) -> None:
    """As many as there may be threads; the others wait for one."""
    gate = Gate()
    calls = live(gate, threads=3)

    futures = [future_of(calls, request()) for _ in range(5)]
    for _ in range(3):
        assert gate.inside.acquire(timeout=WAIT)
    gate.open.set()

    assert [future.result(WAIT).id for future in futures] == ["msg_1"] * 5
    assert gate.peak == 3


def test_a_thread_that_is_free_is_used_again(live: Callable[..., LiveCalls]) -> None:
    """One call after the other needs one thread."""
    names: set[str] = set()
    calls = live(answer, threads=8)

    for _ in range(5):
        calls.start(request(), {}, lambda *_: names.add(threading.current_thread().name))
        wait_until_idle(calls)

    assert len(names) == 1


def wait_until_idle(calls: LiveCalls) -> None:
    """A callback runs before its thread is free again."""
    deadline = time.monotonic() + WAIT
    while calls._open_calls:
        assert time.monotonic() < deadline


def test_the_context_of_the_caller_follows(live: Callable[..., LiveCalls]) -> None:
    """A span that is open around the submit stays the parent of the call."""
    inside: contextvars.ContextVar[str] = contextvars.ContextVar("inside", default="nothing")
    seen: list[str] = []

    def note(sent: httpx2.Request) -> httpx2.Response:
        seen.append(inside.get())
        return answer(sent)

    calls = live(note)
    inside.set("span")
    future_of(calls, request()).result(WAIT)

    assert seen == ["span"]


def test_a_callback_that_fails_does_not_stop_the_thread(
    live: Callable[..., LiveCalls], caplog: pytest.LogCaptureFixture
) -> None:
    """The next call is made."""
    calls = live(answer, threads=1)

    def fail(_message: object, _error: object) -> None:
        raise RuntimeError("the caller's own")

    with caplog.at_level(logging.ERROR, "llmrouter"):
        calls.start(request(), {}, fail)
        assert future_of(calls, request()).result(WAIT)

    assert "what was to be told" in caplog.text.lower()


def test_closing_waits_for_the_calls_under_way(live: Callable[..., LiveCalls]) -> None:
    """And for those that have no thread yet; new ones are refused."""
    gate = Gate()
    calls = live(gate, threads=1)
    futures = [future_of(calls, request()) for _ in range(3)]
    assert gate.inside.acquire(timeout=WAIT)

    calls.close(wait=False)
    with pytest.raises(RouterClosedError):
        future_of(calls, request())
    gate.open.set()
    calls.close(wait=True)

    assert all(future.done() for future in futures)


def test_a_callback_may_close(live: Callable[..., LiveCalls]) -> None:
    """From the thread that would be waited for."""
    calls = live(answer)
    closed = threading.Event()

    def done(_message: object, _error: object) -> None:
        calls.close(wait=True)
        closed.set()

    calls.start(request(), {}, done)

    assert closed.wait(WAIT)


def test_threads_do_not_hold_up_the_exit() -> None:
    """A call that never ends does not keep the interpreter alive."""
    code = """
import threading, anthropic, httpx2
from llmrouter.claude.live import LiveCalls
inside = threading.Event()
def hang(request):
    inside.set()
    threading.Event().wait()
client = anthropic.Anthropic(api_key="k", http_client=httpx2.Client(transport=httpx2.MockTransport(hang)))
request = {"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]}
LiveCalls(client, 2).start(request, {}, print)
assert inside.wait(10)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


def events(*parts: dict[str, Any]) -> bytes:
    return b"".join(f"event: {part['type']}\ndata: {json.dumps(part)}\n\n".encode() for part in parts)


STREAMED = events(
    {"type": "message_start", "message": message_body(content=[], stop_reason=None)},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "streamed"}},
    {"type": "content_block_stop", "index": 0},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 3}},
    {"type": "message_stop"},
)  # fmt: skip


def live_client(handler: Callable[[httpx2.Request], httpx2.Response]) -> anthropic.Anthropic:
    """A client with the SDK's own timeout: only then does it refuse long calls."""
    client = client_with(handler)
    return client.with_options(timeout=anthropic.DEFAULT_TIMEOUT)


def test_what_the_sdk_will_not_send_at_once_is_streamed() -> None:
    """Such a call is made, once, and ends with the whole message."""
    wire: list[dict[str, Any]] = []

    def stream(sent: httpx2.Request) -> httpx2.Response:
        wire.append(json.loads(sent.content))
        return httpx2.Response(200, content=STREAMED, headers={"content-type": "text/event-stream"})

    message = call_live(live_client(stream), request(max_tokens=64_000, stream=False), {"x-own": "1"})

    assert [(sent["stream"], sent["max_tokens"]) for sent in wire] == [(True, 64_000)]
    assert (message.content[0].to_dict()["text"], message.stop_reason) == ("streamed", "end_turn")


def test_an_answer_that_cannot_be_read_is_not_asked_for_twice() -> None:
    """It is a ValueError as well, but it was paid for."""
    wire: list[httpx2.Request] = []

    def broken(sent: httpx2.Request) -> httpx2.Response:
        wire.append(sent)
        return httpx2.Response(200, content=b"{", headers={"content-type": "application/json"})

    with pytest.raises(ValueError, match="Expecting"):
        call_live(live_client(broken), request(), {})
    assert len(wire) == 1
