"""Neither a prompt, nor an answer, nor a key is in a log record, an error or a repr of this adapter's."""

from __future__ import annotations

import json
import logging
import pickle
import threading
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import anthropic
import httpx2
import pytest
from claude_support import SECRET, Body, batch_body, client_with, error_body, message_body, request

from llmrouter.claude.answers import to_error, to_message
from llmrouter.claude.batches import SdkBatchApi
from llmrouter.claude.creating import Upload
from llmrouter.claude.encoding import encode
from llmrouter.claude.lanes import Lanes
from llmrouter.claude.live import LiveCalls
from llmrouter.claude.live_api import SdkLiveApi
from llmrouter.claude.results import parse_line
from llmrouter.domain.batches import Answer
from llmrouter.domain.live import LiveCallError
from llmrouter.domain.requests import OutcomeKind
from llmrouter.errors import CreateError, LlmrouterError

KEY = "sk-ant-planted-key"
PROMPT = "planted prompt"
ANSWER = "planted answer"
PLANTED = (KEY, PROMPT, ANSWER)
NOW = datetime(2026, 11, 20, tzinfo=UTC)

Handler = Callable[[httpx2.Request], httpx2.Response]


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """What was told to anybody; checked at the end, with all that llmrouter has logged."""
    caplog.set_level(logging.DEBUG, "llmrouter")
    texts: list[str] = []
    yield texts
    for record in caplog.records:
        if record.name.startswith("llmrouter"):
            texts += [logging.Formatter().format(record), repr(record.__dict__)]
    for planted in PLANTED:
        assert not [text for text in texts if planted in text]


class Planted:
    """The adapter of a client with a planted key, over a function; and a planted body."""

    def __init__(self, handler: Handler, **options: Any) -> None:
        self.client = client_with(handler, **{"api_key": KEY, **options}).with_options(max_retries=0)
        self.lanes = Lanes(self.client, SECRET)
        self.lane = self.lanes.lane_for({})
        self.api = SdkBatchApi(self.client, self.lanes)
        self.live = SdkLiveApi(self.client, self.lanes)
        self.encoded = encode(
            request(messages=[{"role": "user", "content": PROMPT}], system=PROMPT), batch=True
        )
        self.body = Body([b'{"requests":[{"custom_id":"a","params":', self.encoded.body, b"}]}"])


def told(error: BaseException) -> list[str]:
    """An error of llmrouter's own in every form it may be shown in, its causes aside."""
    own = error.with_traceback(None)
    notes = getattr(own, "__notes__", [])
    return [str(own), repr(own), *notes, *traceback.format_exception_only(own)]


def result(kind: str, **fields: Any) -> bytes:
    return json.dumps({"custom_id": "a", "result": {"type": kind, **fields}}).encode()


SUCCEEDED = result("succeeded", message=message_body(content=[{"type": "text", "text": ANSWER}]))


def test_the_objects_show_nothing(said: list[str]) -> None:
    """Lane, lanes, adapter, upload, line, answer, encoded request: their reprs."""
    for options in ({}, {"auth_token": KEY, "api_key": None}, {"base_url": f"http://user:{KEY}@gateway"}):
        planted = Planted(lambda _: httpx2.Response(200, json=batch_body()), **options)
        upload = Upload(planted.body)
        list(upload)
        line = parse_line(SUCCEEDED)
        answer = Answer(request_id="req_1", kind=OutcomeKind.SUCCEEDED, raw=SUCCEEDED, retry=False)
        live = LiveCalls(planted.client, 1)
        batch = planted.api.create(planted.lane, planted.body)
        shown = (planted.lane, planted.lanes, planted.api, upload, line, answer, live, batch, planted.encoded)
        said += [repr(one) for one in shown] + [str(one) for one in shown]
        said += [repr(vars(one)) for one in (planted.lanes, planted.api, upload, live)]


FAILURES: list[Handler] = [
    lambda _: httpx2.Response(400, json=error_body("invalid_request_error", "no", details={"got": PROMPT})),
    lambda _: httpx2.Response(400, text=f"{PROMPT} {KEY}"),
    lambda _: httpx2.Response(400, json=[PROMPT]),
    lambda _: httpx2.Response(401, json=error_body("authentication_error")),
    lambda _: httpx2.Response(429, json=error_body("rate_limit_error")),
    lambda _: httpx2.Response(307, text=PROMPT, headers={"location": f"http://x.invalid/{KEY}"}),
    lambda _: httpx2.Response(500, text=f"{PROMPT} {KEY}"),
    lambda _: httpx2.Response(200, text=f"{PROMPT} {KEY}"),
    lambda _: httpx2.Response(200, json={"id": PROMPT, "created_at": KEY}),
]


def failing(error: Exception) -> Handler:
    def fail(_: httpx2.Request) -> httpx2.Response:
        raise error

    return fail


FAILURES += [
    failing(httpx2.LocalProtocolError(f"Illegal header value b'Bearer {KEY}'")),
    failing(httpx2.ReadError(PROMPT)),
    failing(httpx2.ConnectError(f"http://user:{KEY}@host")),
    failing(OSError(PROMPT)),
]


@pytest.mark.parametrize("handler", FAILURES)
def test_a_create_that_fails_tells_nothing(said: list[str], handler: Handler) -> None:
    """Whatever the answer, or what broke, carries; of the API's own message 300 characters are passed on."""
    planted = Planted(handler)
    with pytest.raises(CreateError) as caught:
        planted.api.create(planted.lane, planted.body)
    said += told(caught.value)
    said += told(pickle.loads(pickle.dumps(caught.value)))


class Breaking(Body):
    """A body whose store fails, and says over what."""

    def __iter__(self) -> Iterator[bytes]:
        yield self.pieces[0]
        raise ValueError(PROMPT)


def test_a_body_that_breaks_tells_nothing(said: list[str]) -> None:
    """The store's error is the cause, not the text."""
    planted = Planted(lambda _: httpx2.Response(200, json=batch_body()))
    with pytest.raises(CreateError) as caught:
        planted.api.create(planted.lane, Breaking([b"{", b"}"]))
    said += told(caught.value)


class Cut(httpx2.SyncByteStream):
    """Results that break off."""

    def __iter__(self) -> Iterator[bytes]:
        yield SUCCEEDED + b"\n" + b'{"custom_id": "' + PROMPT.encode() + b"\n"
        raise httpx2.ReadError(ANSWER)


def test_reading_results_tells_nothing(said: list[str], caplog: pytest.LogCaptureFixture) -> None:
    """Neither of what was read nor of what could not be."""
    planted = Planted(lambda _: httpx2.Response(200, stream=Cut()))

    lines = list(planted.api.results(planted.lane, "msgbatch_1"))

    said += [repr(lines), str(lines)]
    assert len([record for record in caplog.records if record.name.startswith("llmrouter")]) == 2


@pytest.mark.parametrize("handler", FAILURES)
def test_a_live_call_that_fails_tells_nothing(said: list[str], handler: Handler) -> None:
    """As a create; and the request's own error is for its caller alone."""
    planted = Planted(handler)
    try:
        said.append(repr(planted.live.call(planted.lane, "req_1", planted.encoded.body)))
    except LiveCallError as error:
        said += [*told(error), *told(pickle.loads(pickle.dumps(error))), error.brief]


def test_a_live_call_that_is_answered_tells_nothing(said: list[str]) -> None:
    """Nor one whose answer breaks off."""
    answer = message_body(content=[{"type": "text", "text": ANSWER}])
    planted = Planted(lambda _: httpx2.Response(200, json=answer))
    said.append(repr(planted.live.call(planted.lane, "req_1", planted.encoded.body)))
    for headers in ({}, {"content-type": "text/event-stream"}):
        broken = Planted(lambda _, headers=headers: httpx2.Response(200, stream=Cut(), headers=headers))  # type: ignore[misc]
        with pytest.raises(LiveCallError) as caught:
            broken.live.call(broken.lane, "req_1", broken.encoded.body)
        said += [*told(caught.value), caught.value.brief, repr(planted.live)]


def test_looking_up_tells_nothing(said: list[str]) -> None:
    """An answer that cannot be read is not repeated."""
    calls: list[Callable[[Planted], object]] = [
        lambda planted: planted.api.listed(planted.lane, NOW),
        lambda planted: planted.api.describe(planted.lane, {"a": NOW}),
        lambda planted: planted.api.describe(planted.lane, dict.fromkeys("abcd", NOW)),
        lambda planted: planted.api.cancel(planted.lane, "a"),
    ]
    headers = {"content-type": "application/json"}
    for call in calls:
        for text in (f"{PROMPT} {KEY}", json.dumps({"id": PROMPT, "data": [{"id": KEY}]})):
            planted = Planted(lambda _, text=text: httpx2.Response(200, text=text, headers=headers))  # type: ignore[misc]
            try:
                call(planted)
            except anthropic.APIError as error:
                said += told(error)


def test_what_a_request_failed_with_tells_nothing(said: list[str]) -> None:
    """A line that holds another outcome, or none, is not repeated."""
    for raw in (b"", SUCCEEDED, result("errored", error=PROMPT), PROMPT.encode()):
        said += told(to_error(OutcomeKind.ERRORED, raw, "req_1", 1))
        if raw is not SUCCEEDED:
            with pytest.raises(ValueError, match=r"no message|Expecting") as caught:
                to_message(raw)
            said += told(caught.value)


def test_a_request_that_cannot_be_accepted_tells_nothing(said: list[str]) -> None:
    """What is wrong is named, not repeated; nor is a key among the headers."""
    planted = Planted(lambda _: httpx2.Response(200, json=batch_body()))
    wrong: list[dict[str, Any]] = [
        {"messages": PROMPT},
        {"messages": [{"role": "user", "content": object()}], "system": PROMPT},
        {"messages": [{"role": PROMPT, "content": PROMPT}], "max_tokens": PROMPT},
        {"stream": PROMPT},
        {"extra_body": PROMPT},
    ]
    for changes in wrong:
        try:
            encode(request(**changes), batch=True)
        except LlmrouterError as error:
            said += told(error)
    for headers in ({"x-api-key": KEY}, {"authorization": f"Bearer {KEY}"}, {"x-mine": f"{KEY}\n"}):
        with pytest.raises(LlmrouterError) as caught:
            planted.lanes.lane_for(headers)
        said += told(caught.value)


def test_live_calls_tell_nothing(said: list[str], caplog: pytest.LogCaptureFixture) -> None:
    """Also when what is to be told of one fails, over the answer."""
    planted = Planted(lambda _: httpx2.Response(200, json=message_body()))
    live = LiveCalls(planted.client, 1)
    called = threading.Event()

    def done(*_: object) -> None:
        called.set()
        raise RuntimeError(f"{ANSWER} {PROMPT} {KEY}")

    live.start(request(messages=[{"role": "user", "content": PROMPT}]), {}, done)
    live.close(wait=True)

    assert called.is_set()
    (record,) = (record for record in caplog.records if record.name.startswith("llmrouter"))
    assert "RuntimeError" in record.getMessage()
    assert "in done" in record.getMessage()
    said += [repr(live)]
