"""Batches are looked up one by one while they are few, and from the list when they are many."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import anthropic
import httpx2
import pytest
from claude_support import SECRET, batch_body, client_with, error_body

from llmrouter.claude.batches import SdkBatchApi
from llmrouter.claude.lanes import Lanes
from llmrouter.domain.batches import ProcessingStatus, ProviderBatch

START = datetime(2026, 11, 20, tzinfo=UTC)


class Account:
    """An account with batches, newest first, one a minute; answers as the API does."""

    def __init__(self, count: int, page: int = 1000) -> None:
        self.created = {f"msgbatch_{n}": START + timedelta(minutes=n) for n in reversed(range(count))}
        self.hidden: set[str] = set()
        self.timeless: set[str] = set()
        self.page = page
        self.calls: list[str] = []
        self.workspaces: set[str | None] = set()
        client = client_with(self.answer)
        self.lane = Lanes(client, SECRET).lane_for({"anthropic-workspace-id": "w"})
        self.api = SdkBatchApi(client, Lanes(client, SECRET))

    def describe(self, *ids: str) -> dict[str, ProviderBatch]:
        return self.api.describe(self.lane, {batch_id: self.created.get(batch_id, START) for batch_id in ids})

    def answer(self, request: httpx2.Request) -> httpx2.Response:
        self.calls.append(request.url.raw_path.decode())
        self.workspaces.add(request.headers.get("anthropic-workspace-id"))
        if request.url.path.endswith("/batches"):
            return httpx2.Response(200, json=self.list(dict(request.url.params)))
        batch_id = request.url.path.rpartition("/")[2]
        if batch_id not in self.created or batch_id in self.hidden:
            return httpx2.Response(404, json=error_body("not_found_error"))
        return httpx2.Response(200, json=self.body(batch_id))

    def list(self, params: dict[str, str]) -> dict[str, Any]:
        ids = list(self.created)
        start = ids.index(params["after_id"]) + 1 if "after_id" in params else 0
        shown = ids[start : start + min(self.page, int(params["limit"]))]
        return {
            "data": [self.body(batch_id) for batch_id in shown],
            "has_more": start + len(shown) < len(ids),
            "first_id": shown[0] if shown else None,
            "last_id": shown[-1] if shown else None,
        }

    def body(self, batch_id: str) -> dict[str, Any]:
        created_at = self.created[batch_id]
        return batch_body(
            batch_id,
            processing_status="ended",
            created_at=None if batch_id in self.timeless else created_at.isoformat(),
            ended_at=(created_at + timedelta(minutes=5)).isoformat(),
            request_counts={"processing": 0, "succeeded": 5, "errored": 1, "canceled": 2, "expired": 3},
        )


def test_few_are_retrieved() -> None:
    """Each with one call, in the lane's workspace."""
    account = Account(5)

    found = account.describe("msgbatch_0", "msgbatch_4")

    assert found["msgbatch_4"] == ProviderBatch(
        provider_batch_id="msgbatch_4",
        status=ProcessingStatus.ENDED,
        created_at=START + timedelta(minutes=4),
        expires_at=datetime(2026, 11, 21, 10, tzinfo=UTC),
        ended_at=START + timedelta(minutes=9),
        request_count=11,
    )
    assert account.calls == ["/v1/messages/batches/msgbatch_0", "/v1/messages/batches/msgbatch_4"]
    assert account.workspaces == {"w"}


def test_one_that_is_not_found_is_left_out() -> None:
    """The API can answer 404 for a batch that is there."""
    account = Account(2)
    account.hidden = {"msgbatch_0"}

    assert set(account.describe("msgbatch_0", "msgbatch_1")) == {"msgbatch_1"}


def test_none_costs_no_call() -> None:
    """Nothing wanted, nothing asked."""
    account = Account(2)

    assert account.describe() == {}
    assert account.calls == []


def test_many_are_listed() -> None:
    """One call for all, in the lane's workspace."""
    account = Account(20)
    wanted = [f"msgbatch_{n}" for n in (0, 3, 7, 19)]

    assert set(account.describe(*wanted)) == set(wanted)
    assert account.calls == ["/v1/messages/batches?limit=1000"]
    assert account.workspaces == {"w"}


def test_the_list_is_read_until_all_are_found() -> None:
    """And no further."""
    account = Account(50, page=10)
    wanted = [f"msgbatch_{n}" for n in (49, 45, 33, 30)]

    assert set(account.describe(*wanted)) == set(wanted)
    assert len(account.calls) == 2


@pytest.mark.parametrize(("oldest", "calls"), [(42, 1), (41, 2)])
def test_the_list_is_read_no_further_than_the_oldest_can_be(oldest: int, calls: int) -> None:
    """A batch that the list lacks does not make it read everything: clocks differ by a minute at most."""
    account = Account(50, page=10)
    wanted = {f"msgbatch_{n}": account.created[f"msgbatch_{n}"] for n in (49, 48, 47)}
    wanted["msgbatch_gone"] = account.created[f"msgbatch_{oldest}"]

    assert set(account.api.describe(account.lane, wanted)) == {"msgbatch_47", "msgbatch_48", "msgbatch_49"}
    assert len(account.calls) == calls


def test_the_list_ends() -> None:
    """What is nowhere is left out."""
    account = Account(3, page=2)

    assert account.describe("a", "b", "c", "d", "msgbatch_1").keys() == {"msgbatch_1"}


def test_a_batch_that_cannot_be_read_is_left_out() -> None:
    """The others are described all the same."""
    account = Account(5)
    account.timeless = {"msgbatch_2"}
    wanted = [f"msgbatch_{n}" for n in range(5)]

    assert set(account.describe(*wanted)) == set(wanted) - {"msgbatch_2"}


BROKEN = httpx2.Response(200, content=b"{", headers={"content-type": "application/json"})
FORBIDDEN = httpx2.Response(403, json=error_body("permission_error"))


@pytest.mark.parametrize(
    ("answer", "count"),
    [
        (FORBIDDEN, 1),
        (FORBIDDEN, 4),
        (BROKEN, 1),
        (BROKEN, 4),
        (httpx2.Response(200, json={"id": 5, "created_at": "2026-11-20T10:00:00Z"}), 1),
        (httpx2.Response(200, text="<html>"), 4),
        (httpx2.Response(200, json={"data": 5}), 4),
    ],
)
def test_what_cannot_be_asked_raises_an_error_of_the_sdk(answer: httpx2.Response, count: int) -> None:
    """A failing API is no missing batch."""
    client = client_with(lambda _: answer)
    lanes = Lanes(client, SECRET)

    with pytest.raises(anthropic.APIError):
        SdkBatchApi(client, lanes).describe(lanes.lane_for({}), {f"a{n}": START for n in range(count)})


def test_an_id_that_is_none_of_the_api_is_refused() -> None:
    """It never becomes part of a path."""
    account = Account(1)

    with pytest.raises(ValueError, match="no id"):
        account.describe("../files")
    assert not account.calls
