"""All batches since an instant, or an error; and batches that are canceled and deleted."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import anthropic
import httpx2
import pytest
from claude_support import SECRET, Body, batch_body, client_with, error_body

from llmrouter.claude.batches import SdkBatchApi
from llmrouter.claude.lanes import Lanes
from llmrouter.domain.batches import Listing

START = datetime(2026, 11, 20, tzinfo=UTC)
DATE = "Fri, 20 Nov 2026 12:00:00 GMT"
NOON = START + timedelta(hours=12)

Handler = Callable[[httpx2.Request], httpx2.Response]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the SDK's retries."""
    monkeypatch.setattr(time, "sleep", lambda _: None)


class Bench:
    """The adapter over a function, and what went over the wire."""

    def __init__(self, handler: Handler) -> None:
        self.wire: list[httpx2.Request] = []

        def note(request: httpx2.Request) -> httpx2.Response:
            self.wire.append(request)
            return handler(request)

        client = client_with(note)
        lanes = Lanes(client, SECRET)
        self.lane = lanes.lane_for({"anthropic-workspace-id": "w", "anthropic-beta": "b"})
        self.api = SdkBatchApi(client, lanes)

    def listed(self, minute: int = 0) -> Listing:
        return self.api.listed(self.lane, START + timedelta(minutes=minute))


class Account(Bench):
    """An account with a batch a minute, in pages of ten."""

    def __init__(self, count: int) -> None:
        super().__init__(self.answer)
        self.bodies = [
            batch_body(
                f"msgbatch_{n}",
                processing_status="ended" if n % 2 else "in_progress",
                created_at=(START + timedelta(minutes=n)).isoformat(),
            )
            for n in reversed(range(count))
        ]
        self.dates = iter([DATE, "Fri, 20 Nov 2026 13:00:00 GMT"])
        self.fails_at: int | None = None

    def answer(self, request: httpx2.Request) -> httpx2.Response:
        if len(self.wire) == self.fails_at:
            return httpx2.Response(403, json=error_body("permission_error"))
        ids = [body["id"] for body in self.bodies]
        after = request.url.params.get("after_id")
        start = ids.index(after) + 1 if after else 0
        shown = self.bodies[start : start + 10]
        page = {
            "data": shown,
            "has_more": start + 10 < len(ids),
            "first_id": shown[0]["id"] if shown else None,
            "last_id": shown[-1]["id"] if shown else None,
        }
        date = next(self.dates, None)
        return httpx2.Response(200, json=page, headers={} if date is None else {"date": date})


def test_all_batches_since_an_instant_are_listed() -> None:
    """Ended ones too, that of the instant itself too, newest first, over all pages; no further page."""
    account = Account(50)

    listing = account.listed(25)

    ids = [batch.provider_batch_id for batch in listing.batches]
    assert ids == [f"msgbatch_{n}" for n in range(49, 24, -1)]
    assert len(account.wire) == 3
    assert {request.url.params["limit"] for request in account.wire} == {"1000"}


def test_every_page_is_asked_for_in_the_lane() -> None:
    """Its workspace and betas, not the client's."""
    account = Account(25)
    account.listed()

    assert len(account.wire) == 3
    for request in account.wire:
        assert request.headers["anthropic-workspace-id"] == "w"
        assert request.headers["anthropic-beta"] == "b"
        assert "x-stainless-raw-response" not in request.headers or request is account.wire[0]


def test_the_instant_is_that_of_the_first_page() -> None:
    """A batch may be created while later pages are read."""
    assert Account(25).listed().listed_at == NOON


@pytest.mark.parametrize("date", [None, "now"])
def test_an_api_that_does_not_say_when_it_answered(date: str | None) -> None:
    """Or not so that it can be read."""
    account = Account(3)
    account.dates = iter([date] if date else [])

    listing = account.listed()

    assert listing.listed_at is None
    assert len(listing.batches) == 3


def test_an_empty_workspace() -> None:
    """Lists nothing."""
    assert Account(0).listed() == Listing(batches=(), listed_at=NOON)


def test_a_page_that_fails_fails_the_listing() -> None:
    """A part of the list would make what is missing look as if it were nowhere."""
    account = Account(25)
    account.fails_at = 2

    with pytest.raises(anthropic.PermissionDeniedError):
        account.listed()


@pytest.mark.parametrize(
    "page",
    [
        {"data": [batch_body()], "has_more": True, "last_id": None},
        {"data": [], "has_more": True, "last_id": "msgbatch_1"},
        {"data": [batch_body()], "has_more": True, "last_id": "msgbatch_1"},
        {"data": [batch_body(), batch_body(created_at=None)], "has_more": False},
        {"data": [batch_body("../x")], "has_more": False},
        {"data": 5},
        {},
        [],
    ],
    ids=lambda page: str(page)[:40],
)
def test_a_list_that_cannot_be_read_to_its_end_is_an_error(page: Any) -> None:
    """Of the SDK's; also one that gives the same page for ever, or a batch nobody can name."""
    bench = Bench(lambda _: httpx2.Response(200, json=page))

    with pytest.raises(anthropic.APIError, match="cannot be read"):
        bench.listed()
    assert len(bench.wire) <= 2


def answers(*given: tuple[int, Any]) -> Handler:
    left = iter(given)

    def answer(_: httpx2.Request) -> httpx2.Response:
        status, body = next(left)
        return httpx2.Response(status, json=body, headers={"x-should-retry": "false"})

    return answer


def paths(bench: Bench) -> list[str]:
    return [f"{request.method} {request.url.path}" for request in bench.wire]


def test_a_batch_is_canceled() -> None:
    """With one call, in its lane."""
    bench = Bench(answers((200, batch_body(processing_status="canceling"))))

    bench.api.cancel(bench.lane, "msgbatch_1")

    assert paths(bench) == ["POST /v1/messages/batches/msgbatch_1/cancel"]
    assert bench.wire[0].headers["anthropic-workspace-id"] == "w"


@pytest.mark.parametrize("status", [400, 409])
@pytest.mark.parametrize("state", ["ended", "canceling"])
def test_a_batch_that_cannot_be_canceled_any_more_is_left(status: int, state: str) -> None:
    """Whatever the API says to it: the batch itself tells."""
    bench = Bench(
        answers((status, error_body("invalid_request_error")), (200, batch_body(processing_status=state)))
    )

    bench.api.cancel(bench.lane, "msgbatch_1")

    assert paths(bench)[1] == "GET /v1/messages/batches/msgbatch_1"


@pytest.mark.parametrize("status", [400, 409])
@pytest.mark.parametrize("second", [(200, batch_body()), (404, error_body("not_found_error"))])
def test_a_refused_cancel_of_a_running_batch_is_an_error(status: int, second: tuple[int, Any]) -> None:
    """The API's own, and not that of the second look."""
    bench = Bench(answers((status, error_body("invalid_request_error", "because")), second))

    with pytest.raises(anthropic.APIStatusError, match="because"):
        bench.api.cancel(bench.lane, "msgbatch_1")


@pytest.mark.parametrize("status", [403, 404])
def test_a_cancel_that_the_api_does_not_take_is_an_error(status: int) -> None:
    """404 too: it may be a fresh batch."""
    bench = Bench(answers((status, error_body("some_error"))))

    with pytest.raises(anthropic.APIStatusError) as caught:
        bench.api.cancel(bench.lane, "msgbatch_1")
    assert caught.value.status_code == status


def test_a_batch_is_deleted() -> None:
    """With one call, in its lane."""
    bench = Bench(answers((200, {"id": "msgbatch_1", "type": "message_batch_deleted"})))

    bench.api.delete(bench.lane, "msgbatch_1")

    assert paths(bench) == ["DELETE /v1/messages/batches/msgbatch_1"]
    assert bench.wire[0].headers["anthropic-beta"] == "b"


def test_a_batch_that_is_gone_is_deleted() -> None:
    """As after a delete whose answer got lost."""
    Bench(answers((404, error_body("not_found_error")))).api.delete(Account(0).lane, "msgbatch_1")


@pytest.mark.parametrize("status", [400, 403, 409])
def test_a_delete_that_the_api_does_not_take_is_an_error(status: int) -> None:
    """Such as that of a batch which has not ended."""
    bench = Bench(answers((status, error_body("some_error"))))

    with pytest.raises(anthropic.APIStatusError):
        bench.api.delete(bench.lane, "msgbatch_1")


def test_a_delete_is_sent_again_when_the_answer_got_lost() -> None:
    """It does the same twice as once."""

    def answer(_: httpx2.Request) -> httpx2.Response:
        if len(bench.wire) == 1:
            raise httpx2.ReadError("gone")
        return httpx2.Response(200, json=batch_body(processing_status="canceling"))

    bench = Bench(answer)
    bench.api.delete(bench.lane, "msgbatch_1")
    assert len(bench.wire) == 2


def test_a_cancel_is_asked_for_once() -> None:
    """Its caller tries again, and has other batches to cancel while this one is to wait."""

    def answer(_: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(429, json=error_body("rate_limit_error"), headers={"retry-after": "60"})

    bench = Bench(answer)
    with pytest.raises(anthropic.RateLimitError):
        bench.api.cancel(bench.lane, "msgbatch_1")
    assert len(bench.wire) == 1


@pytest.mark.parametrize("name", ["cancel", "delete"])
def test_an_id_that_is_none_of_the_api_is_refused(name: str) -> None:
    """It never becomes part of a path."""
    bench = Bench(answers())

    with pytest.raises(ValueError, match="no id"):
        getattr(bench.api, name)(bench.lane, "../files")
    assert not bench.wire


def test_an_answer_that_does_not_come_keeps_nobody_waiting_for_ten_minutes() -> None:
    """The engine asks for all batches in one thread. Bodies may take as long as the client allows."""
    bench = Bench(lambda request: httpx2.Response(200, json=batch_body()))
    bench.api.describe(bench.lane, {"msgbatch_1": NOON})
    bench.api.cancel(bench.lane, "msgbatch_1")
    list(bench.api.results(bench.lane, "msgbatch_1"))
    bench.api.create(bench.lane, Body([b"{}"]))

    reads = [request.extensions["timeout"]["read"] for request in bench.wire]
    assert reads == [60, 60, 600, 600]
    assert [request.extensions["timeout"]["pool"] for request in bench.wire[:3]] == [None] * 3
