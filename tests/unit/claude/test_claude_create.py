"""A batch is posted once; a lost answer is told from a refusal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import anthropic
import httpx2
import pytest
from claude_support import SECRET, Body, batch_body, client_with, error_body

from llmrouter.claude.batches import SdkBatchApi
from llmrouter.claude.lanes import Lanes
from llmrouter.domain.batches import ProcessingStatus, ProviderBatch
from llmrouter.errors import CreateError, CreateRefusedError, CreateUnclearError

Handler = Callable[[httpx2.Request], httpx2.Response]


class Api:
    """A batch API over a function, with what went over the wire."""

    def __init__(self, handler: Handler, **options: Any) -> None:
        self.wire: list[httpx2.Request] = []

        def note(request: httpx2.Request) -> httpx2.Response:
            self.wire.append(request)
            return handler(request)

        self.client = client_with(note, **options)
        self.lanes = Lanes(self.client, SECRET)
        self.api = SdkBatchApi(self.client, self.lanes)

    def create(self, body: Any = None, headers: Any = None) -> ProviderBatch:
        return self.api.create(self.lanes.lane_for(headers or {}), body or Body([b"{", b"}"]))


def answer_with(status: int, body: Any = None, **headers: str) -> Handler:
    return lambda _: httpx2.Response(
        status, json=body, headers={name.replace("_", "-"): value for name, value in headers.items()}
    )


def raise_it(error: Exception) -> Handler:
    def handler(_: httpx2.Request) -> httpx2.Response:
        raise error

    return handler


def test_a_created_batch_is_described() -> None:
    """Id, times in UTC and the number of requests are the API's."""
    api = Api(answer_with(200, batch_body("msgbatch_7", created_at="2026-11-20T11:00:00+01:00")))

    assert api.create() == ProviderBatch(
        provider_batch_id="msgbatch_7",
        status=ProcessingStatus.IN_PROGRESS,
        created_at=datetime(2026, 11, 20, 10, tzinfo=UTC),
        expires_at=datetime(2026, 11, 21, 10, tzinfo=UTC),
        ended_at=None,
        request_count=2,
    )


def test_the_body_goes_out_as_it_is_with_its_length() -> None:
    """Not in chunks; with the headers of the lane."""
    api = Api(answer_with(200, batch_body()))

    api.create(
        Body([b'{"requests"', b":[]}"]), {"anthropic-beta": "x", "x-mine": "1", "content-length": "999"}
    )

    (request,) = api.wire
    assert (request.method, request.url.path) == ("POST", "/v1/messages/batches")
    assert request.content == b'{"requests":[]}'
    assert request.headers["content-length"] == "15"
    assert "transfer-encoding" not in request.headers
    assert request.headers["content-type"] == "application/json"
    assert request.headers["anthropic-beta"] == "x"
    assert request.headers["x-mine"] == "1"


def test_a_status_that_is_not_known_yet_is_no_end() -> None:
    """A later API may call it otherwise."""
    assert (
        Api(answer_with(200, batch_body(processing_status="paused"))).create().status
        is ProcessingStatus.IN_PROGRESS
    )


REFUSALS = [400, 401, 402, 403, 404, 413, 422, 429]
UNCLEAR = [300, 303, 304, 408, 409, 500, 502, 503, 504, 529]


@pytest.mark.parametrize("status", REFUSALS)
def test_a_clear_no_is_a_refusal(status: int) -> None:
    """Nothing was created; the SDK's exception is the cause."""
    api = Api(answer_with(status, error_body("some_error", "that is why")))

    with pytest.raises(CreateRefusedError, match="that is why") as caught:
        api.create()

    assert caught.value.status == status
    assert isinstance(caught.value.__cause__, anthropic.APIStatusError)
    assert len(api.wire) == 1


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_a_refusal_and_is_not_followed(status: int) -> None:
    """Whoever answers so did not take the batch; the credential and the prompts go nowhere else."""
    api = Api(answer_with(status, {"secret": "x"}, location="http://elsewhere.invalid/token-x"))

    with pytest.raises(CreateRefusedError, match=f"HTTP {status}, a redirect.*base URL") as caught:
        api.create()

    assert caught.value.status == status
    assert not caught.value.blames_content
    assert "token-x" not in str(caught.value)
    assert [str(request.url.host) for request in api.wire] == ["api.anthropic.com"]


@pytest.mark.parametrize("status", UNCLEAR)
def test_a_failing_server_leaves_a_doubt_and_is_not_asked_again(status: int) -> None:
    """It may have created the batch before it failed."""
    api = Api(answer_with(status, error_body("some_error"), x_should_retry="true"))

    with pytest.raises(CreateUnclearError) as caught:
        api.create()

    assert caught.value.status == status
    assert len(api.wire) == 1


@pytest.mark.parametrize(
    "error",
    [
        httpx2.ReadTimeout("slow"),
        httpx2.WriteTimeout("slow"),
        httpx2.ReadError("gone"),
        httpx2.WriteError("gone"),
        httpx2.CloseError("gone"),
        httpx2.RemoteProtocolError("odd"),
        httpx2.LocalProtocolError("odd"),
        OSError("gone"),
    ],
    ids=repr,
)
def test_a_connection_that_breaks_leaves_a_doubt(error: Exception) -> None:
    """The request was on its way."""
    api = Api(raise_it(error))

    with pytest.raises(CreateUnclearError) as caught:
        api.create()

    assert caught.value.status is None
    assert len(api.wire) == 1


@pytest.mark.parametrize(
    "error",
    [
        httpx2.ConnectError("no such host"),
        httpx2.ConnectTimeout("nobody there"),
        httpx2.PoolTimeout("busy"),
        httpx2.ProxyError("no"),
        httpx2.UnsupportedProtocol("ftp"),
    ],
    ids=repr,
)
def test_what_never_connected_is_a_refusal(error: Exception) -> None:
    """Not a byte was sent."""
    api = Api(raise_it(error))

    with pytest.raises(CreateRefusedError) as caught:
        api.create()

    assert caught.value.status is None
    assert len(api.wire) == 1


def test_a_middleware_may_have_sent_it_before_it_could_not_connect() -> None:
    """One that tries again takes the certainty away."""
    failures = iter([httpx2.ReadError("gone"), httpx2.ConnectError("down")])

    def twice(request: anthropic.APIRequest, call_next: anthropic.CallNext) -> Any:
        try:
            return call_next(request)
        except anthropic.APIConnectionError:
            return call_next(request)

    def fail(_: httpx2.Request) -> httpx2.Response:
        raise next(failures)

    with pytest.raises(CreateUnclearError):
        Api(fail, middleware=[twice]).create()


@pytest.mark.parametrize(
    "answer",
    [
        httpx2.Response(200, text="<html>"),
        httpx2.Response(200, content=b"{", headers={"content-type": "application/json"}),
        httpx2.Response(200, json={"data": []}),
        httpx2.Response(200, json=[]),
        httpx2.Response(200, json=batch_body("../../etc")),
        httpx2.Response(200, json={**batch_body(), "created_at": "yesterday"}),
        httpx2.Response(200, json={**batch_body(), "request_counts": "many"}),
        httpx2.Response(204),
    ],
    ids=lambda response: response.text[:20],
)
def test_an_answer_that_is_no_batch_leaves_a_doubt(answer: httpx2.Response) -> None:
    """Something took the request."""
    with pytest.raises(CreateUnclearError) as caught:
        Api(lambda _: answer).create()
    assert caught.value.__cause__ is not None


class Breaking(Body):
    """A body whose store fails in the middle."""

    def __iter__(self) -> Iterator[bytes]:
        yield self.pieces[0]
        raise OSError("the disk is gone")


def test_a_body_that_breaks_off_creates_nothing() -> None:
    """What stopped short of its length is no request for the API."""
    with pytest.raises(CreateRefusedError) as caught:
        Api(answer_with(200, batch_body())).create(Breaking([b"{", b"}"]))
    assert caught.value.status is None


def test_a_lane_of_another_client_is_not_posted() -> None:
    """Neither under this client's credential nor to its address."""
    api = Api(answer_with(200, batch_body()))
    other = Api(answer_with(200), api_key="other").lanes.lane_for({})

    with pytest.raises(CreateRefusedError, match="another client"):
        api.api.create(other, Body([b"{}"]))
    assert not api.wire


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"retry_after": "7"}, timedelta(seconds=7)),
        ({"retry_after": "0.5"}, timedelta(seconds=0.5)),
        ({"retry_after": "-3"}, timedelta(0)),
        (
            {"retry_after": "Fri, 20 Nov 2026 10:02:00 GMT", "date": "Fri, 20 Nov 2026 10:00:00 GMT"},
            timedelta(minutes=2),
        ),
        (
            {"retry_after": "Fri, 20 Nov 2026 10:00:00 GMT", "date": "Fri, 20 Nov 2026 10:02:00 GMT"},
            timedelta(0),
        ),
        ({"retry_after": "soon"}, None),
        ({"retry_after": "nan"}, None),
        ({"retry_after": "1e300"}, None),
        ({}, None),
    ],
)
@pytest.mark.parametrize("status", [429, 529])
def test_how_long_to_wait_is_passed_on(
    headers: dict[str, str], expected: timedelta | None, status: int
) -> None:
    """Seconds or a date, as HTTP has it; nothing where the API says nothing of use."""
    with pytest.raises(CreateError) as caught:
        Api(answer_with(status, error_body("rate_limit_error"), **headers)).create()
    assert caught.value.retry_after == expected


def test_a_date_without_a_date_to_compare_is_held_against_the_clock() -> None:
    """A server need not say what time it is."""
    at = datetime.now(UTC) + timedelta(hours=1)

    with pytest.raises(CreateRefusedError) as caught:
        Api(answer_with(429, retry_after=at.strftime("%a, %d %b %Y %H:%M:%S GMT"))).create()

    assert caught.value.retry_after is not None
    assert timedelta(minutes=59) < caught.value.retry_after <= timedelta(hours=1)


def test_the_message_repeats_no_body() -> None:
    """Only what the API says in its message, and not at any length."""
    odd = {"type": "error", "error": {"type": "x", "message": "m" * 5000, "details": {"prompt": "secret"}}}

    with pytest.raises(CreateRefusedError) as caught:
        Api(answer_with(400, odd)).create()

    assert "secret" not in str(caught.value)
    assert len(str(caught.value)) < 400


class RotatedOutside:
    """A provider that reads a token which somebody else renews."""

    def __init__(self) -> None:
        self.token = "old"

    def __call__(self, *, force_refresh: bool = False) -> anthropic.AccessToken:
        return anthropic.AccessToken(token=self.token)


def test_a_refused_token_is_read_anew_for_the_next_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK drops a token only in calls that it may repeat, and this one it may not."""
    monkeypatch.setattr(time, "sleep", lambda _: None)
    provider = RotatedOutside()

    def answer(request: httpx2.Request) -> httpx2.Response:
        if request.headers["authorization"] != "Bearer new":
            return httpx2.Response(401, json=error_body("authentication_error"))
        return httpx2.Response(200, json=batch_body() if request.method == "POST" else {"data": []})

    api = Api(answer, credentials=provider)
    lane = api.lanes.lane_for({})
    with pytest.raises(CreateRefusedError):
        api.api.create(lane, Body([b"{}"]))
    provider.token = "new"
    with pytest.raises(CreateRefusedError):
        api.api.create(lane, Body([b"{}"]))

    assert api.api.create(lane, Body([b"{}"])).provider_batch_id == "msgbatch_1"
    assert [request.method for request in api.wire].count("POST") == 3
