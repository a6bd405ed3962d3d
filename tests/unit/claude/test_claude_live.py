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
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import anthropic
import httpx2
import pytest
from anthropic.types import Message
from claude_support import MODEL, client_with, error_body, message_body, request

from llmrouter.claude.live import LiveCalls, call_live
from llmrouter.domain.rates import Work
from llmrouter.errors import RouterClosedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from llmrouter.domain.live import Seen

WAIT = 10


LIMITS = {
    "anthropic-ratelimit-requests-limit": "50",
    "anthropic-ratelimit-requests-remaining": "49",
    "anthropic-ratelimit-requests-reset": "2026-11-20T12:00:00Z",
}

PLANTED = "a text about the answer"


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

    def make(handler: Any, threads: int = 4, on_call: Any = None, **options: Any) -> LiveCalls:
        made.append(LiveCalls(client_with(handler, **options), threads, on_call))
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


def test_an_observer_is_told_of_each_answer(live: Callable[..., LiveCalls]) -> None:
    """What it says of the limits, and what it counts against them: the tokens of the message, too."""
    seen: list[Seen] = []
    usage = {
        "input_tokens": 10,
        "cache_creation_input_tokens": 5,
        "cache_read_input_tokens": 9,
        "output_tokens": 7,
    }
    answers = iter(
        [
            httpx2.Response(
                429, json=error_body("rate_limit_error"), headers={"retry-after-ms": "1", **LIMITS}
            ),
            httpx2.Response(200, json=message_body(model="dated-name", usage=usage), headers=LIMITS),
        ]
    )
    before = datetime.now(UTC)

    future_of(live(lambda _: next(answers), on_call=seen.append), request()).result(WAIT)

    assert [one.model for one in seen] == [MODEL, MODEL]
    assert [one.work for one in seen] == [
        Work(requests=1),
        Work(requests=1, input_tokens=15, output_tokens=7),
    ]
    for one in seen:
        assert one.limits is not None
        assert one.limits.requests is not None
        assert one.limits.requests.remaining == 49
        assert before <= one.ended_at <= datetime.now(UTC)


def test_an_observer_is_told_of_a_call_that_fails(live: Callable[..., LiveCalls]) -> None:
    """One that had no answer tells nothing; one whose answer cannot be read was a call all the same."""
    seen: list[Seen] = []

    def fail(_: httpx2.Request) -> httpx2.Response:
        raise httpx2.ConnectError("no")

    def answer_in_pieces(_: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, content=b"{", headers={"content-type": "application/json", **LIMITS})

    for handler in (lambda _: httpx2.Response(529), fail, answer_in_pieces):
        calls = live(handler, on_call=seen.append, max_retries=0)
        assert future_of(calls, request()).exception(WAIT) is not None
    assert future_of(live(answer, on_call=seen.append), request(nonsense=1)).exception(WAIT) is not None

    assert [(one.work, one.limits is None) for one in seen] == [
        (Work(requests=1), True),
        (Work(requests=1), False),
    ]


def test_an_observer_is_told_of_a_stream(live: Callable[..., LiveCalls]) -> None:
    """When it has ended."""
    seen: list[Seen] = []

    def stream(_: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, content=STREAMED, headers={"content-type": "text/event-stream", **LIMITS})

    calls = live(stream, on_call=seen.append, timeout=anthropic.DEFAULT_TIMEOUT)
    future_of(calls, request(max_tokens=64_000)).result(WAIT)

    (one,) = seen
    assert one.work == Work(requests=1, input_tokens=1000, output_tokens=3)
    assert one.limits is not None


@pytest.mark.parametrize("status", [200, 400])
def test_an_observer_that_fails_changes_nothing(
    live: Callable[..., LiveCalls], caplog: pytest.LogCaptureFixture, status: int
) -> None:
    """It is logged once, without its text: that may be about the answer."""

    def fail(_: Seen) -> None:
        raise RuntimeError(PLANTED)

    body = message_body() if status == 200 else error_body("invalid_request_error")
    calls = live(lambda _: httpx2.Response(status, json=body), on_call=fail)
    with caplog.at_level(logging.DEBUG, "llmrouter"):
        for _ in range(3):
            error = future_of(calls, request()).exception(WAIT)
            assert isinstance(error, anthropic.BadRequestError) is (status == 400)

    (record,) = (record for record in caplog.records if record.name.startswith("llmrouter"))
    assert "RuntimeError" in record.getMessage()
    assert PLANTED not in caplog.text


def test_another_middleware_may_answer_with_anything(live: Callable[..., LiveCalls]) -> None:
    """There was no call then, and nothing to tell of it."""
    seen: list[Seen] = []
    message = Message.construct(**message_body())

    def instead(request: anthropic.APIRequest, call_next: anthropic.CallNext) -> Any:
        return message

    calls = live(answer, on_call=seen.append, middleware=[instead])

    assert future_of(calls, request()).result(WAIT) is message
    assert seen == []
