"""Faults: what goes wrong on request, and that the books know what the client does not."""

from __future__ import annotations

import json
from datetime import timedelta

import anthropic
import httpx2
import pytest
from sandbox_requests import entries, entry, params

from llmrouter.sandbox import Fault

TEN_MINUTES = timedelta(minutes=10)


def end_batch(sandbox, client, requests):
    batch = client.messages.batches.create(requests=requests)
    sandbox.clock.advance(TEN_MINUTES)
    return batch.id


def read_raw(client: anthropic.Anthropic, batch_id: str) -> bytes:
    return client.get(f"/v1/messages/batches/{batch_id}/results", cast_to=httpx2.Response).content


@pytest.mark.parametrize(
    ("status", "error_type"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (402, "billing_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (409, "conflict_error"),
        (413, "request_too_large"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (504, "timeout_error"),
        (529, "overloaded_error"),
    ],
)
def test_a_status_comes_with_the_type_that_belongs_to_it(sandbox, client, status, error_type):
    sandbox.faults.add(Fault(kind="status", status=status))
    with pytest.raises(anthropic.APIStatusError) as failed:
        client.messages.create(**params())
    assert failed.value.status_code == status
    assert failed.value.body["error"]["type"] == error_type
    assert sandbox.books.charges == ()
    client.messages.create(**params())


def test_a_status_may_have_headers_type_message_and_details(sandbox, client):
    """The spend limit of a tier: 429 without retry-after, and a code in the details."""
    details = {"error_code": "enforced_spend_limit_reached"}
    sandbox.faults.add(
        Fault(
            kind="status", status=429, message="No more this month", headers={"x-extra": "1"}, details=details
        )
    )
    with pytest.raises(anthropic.RateLimitError) as failed:
        client.messages.batches.create(requests=entries(1))
    assert failed.value.error_code == "enforced_spend_limit_reached"
    assert failed.value.api_message == "No more this month"
    assert failed.value.response.headers["x-extra"] == "1"
    assert "retry-after" not in failed.value.response.headers


def test_a_status_after_accepting_leaves_a_batch_nobody_knows_of(sandbox, client):
    """A 500 after the create was accepted: the batch runs, and is charged."""
    sandbox.faults.add(Fault(kind="status", status=500, accepted=True, endpoint="batches.create"))
    with pytest.raises(anthropic.InternalServerError):
        client.messages.batches.create(requests=entries(3))
    assert len(client.messages.batches.list().data) == 1
    sandbox.clock.advance(TEN_MINUTES)
    assert len(sandbox.books.charges) == 3


def test_a_connection_dropped_before_accepting_books_nothing(sandbox, client):
    sandbox.faults.add(Fault(kind="drop", endpoint="batches.create"))
    with pytest.raises(anthropic.APIConnectionError):
        client.messages.batches.create(requests=entries(3))
    assert sandbox.batches == {}
    assert sandbox.books.calls["batches.create"] == 1


def test_a_connection_dropped_after_accepting_has_booked(sandbox, client):
    """Both routes: the client sees the connection break, the sandbox has done and charged the work."""
    sandbox.faults.add(Fault(kind="drop", accepted=True, count=2))
    with pytest.raises(anthropic.APIConnectionError):
        client.messages.batches.create(requests=entries(3))
    with pytest.raises(anthropic.APIConnectionError):
        client.messages.create(**params())
    sandbox.clock.advance(TEN_MINUTES)
    assert sorted(charge.route for charge in sandbox.books.charges) == ["batch", "batch", "batch", "live"]


def test_a_retrying_client_pays_twice_for_a_drop_after_accepting(sandbox, client):
    """What the SDK's own retries do to a batch; the books show it."""
    sandbox.faults.add(Fault(kind="drop", accepted=True, endpoint="batches.create"))
    client.with_options(max_retries=1).messages.batches.create(requests=entries(2))
    assert len(sandbox.batches) == 2
    sandbox.clock.advance(TEN_MINUTES)
    assert set(sandbox.books.count_charges().values()) == {2}


def test_a_client_that_gives_up_before_accepting_is_not_served(sandbox, client):
    sandbox.faults.add(Fault(kind="delay", seconds=60))
    with pytest.raises(anthropic.APITimeoutError):
        client.with_options(timeout=0.05).messages.create(**params())
    assert client.messages.create(**params())
    assert len(sandbox.books.charges) == 1


def test_a_client_that_gives_up_after_accepting_is_charged(sandbox, client):
    sandbox.faults.add(Fault(kind="delay", seconds=60, accepted=True))
    with pytest.raises(anthropic.APITimeoutError):
        client.with_options(timeout=0.05).messages.create(**params())
    assert len(sandbox.books.charges) == 1


def test_a_delayed_call_is_answered(sandbox, client):
    armed = sandbox.faults.add(Fault(kind="delay", seconds=0.001))
    assert client.messages.create(**params())
    assert armed.strikes == 1


def test_results_cut_at_a_line_end_look_complete(sandbox, client):
    """The SDK's own reader ends normally, with a part of the results."""
    batch_id = end_batch(sandbox, client, entries(50))
    sandbox.faults.add(Fault(kind="cut", lines=20))
    assert len(list(client.messages.batches.results(batch_id))) == 20
    assert len(list(client.messages.batches.results(batch_id))) == 50


def test_results_cut_in_mid_line_end_in_half_a_line(sandbox, client):
    batch_id = end_batch(sandbox, client, entries(50))
    sandbox.faults.add(Fault(kind="cut", lines=20, cut_at="mid_line"))
    cut = read_raw(client, batch_id)
    *whole, half = cut.split(b"\n")
    assert len(whole) == 20
    assert len(half) > 20
    with pytest.raises(json.JSONDecodeError):
        json.loads(half)
    assert read_raw(client, batch_id).startswith(cut)


@pytest.mark.parametrize("lines", [0, 20])
def test_results_broken_off_raise_at_the_client(sandbox, client, lines):
    batch_id = end_batch(sandbox, client, entries(50))
    sandbox.faults.add(Fault(kind="cut", lines=lines, cut_at="broken"))
    with pytest.raises((anthropic.APIConnectionError, httpx2.RemoteProtocolError)):
        read_raw(client, batch_id)


def test_a_hidden_batch_is_not_found_for_some_calls(sandbox, client):
    """404 after create: retrieve and results answer it, then the batch is there."""
    sandbox.faults.add(Fault(kind="hide", calls=2))
    batch = client.messages.batches.create(requests=entries(1))
    for _ in range(2):
        with pytest.raises(anthropic.NotFoundError):
            client.messages.batches.retrieve(batch.id)
    assert client.messages.batches.retrieve(batch.id).id == batch.id


def test_items_err_with_a_given_type(sandbox, client):
    fault = Fault(kind="item", error_type="overloaded_error", message="busy", custom_id="r1", count=None)
    armed = sandbox.faults.add(fault)
    batch_id = end_batch(sandbox, client, entries(12))
    results = {line.custom_id: line.result for line in client.messages.batches.results(batch_id)}
    errored = {custom_id for custom_id, result in results.items() if result.type == "errored"}
    assert errored == {"r1", "r10", "r11"}
    assert results["r1"].error.error.type == "overloaded_error"
    assert results["r1"].error.error.message == "busy"
    assert armed.strikes == 3
    assert len(sandbox.books.charges) == 9


def test_items_are_canceled_without_anyone_canceling(sandbox, client):
    sandbox.faults.add(Fault(kind="item", outcome="canceled", count=2))
    batch_id = end_batch(sandbox, client, entries(5))
    counts = client.messages.batches.retrieve(batch_id).request_counts
    assert (counts.canceled, counts.succeeded) == (2, 3)


def test_an_item_that_expires_holds_its_batch_for_24_hours(sandbox, client):
    sandbox.faults.add(Fault(kind="item", outcome="expired"))
    batch = client.messages.batches.create(requests=entries(5))
    sandbox.clock.advance(timedelta(hours=24) - timedelta(seconds=1))
    assert client.messages.batches.retrieve(batch.id).processing_status == "in_progress"
    sandbox.clock.advance(timedelta(seconds=1))
    ended = client.messages.batches.retrieve(batch.id)
    assert ended.ended_at == ended.expires_at
    assert (ended.request_counts.expired, ended.request_counts.succeeded) == (1, 4)


def test_an_item_that_would_expire_is_canceled_with_its_batch(sandbox, client):
    sandbox.faults.add(Fault(kind="item", outcome="expired"))
    batch = client.messages.batches.create(requests=entries(5))
    sandbox.clock.advance(TEN_MINUTES)
    client.messages.batches.cancel(batch.id)
    sandbox.clock.advance(TEN_MINUTES)
    counts = client.messages.batches.retrieve(batch.id).request_counts
    assert (counts.canceled, counts.succeeded) == (1, 4)


def test_a_fault_strikes_count_times_after_skip(sandbox, client):
    armed = sandbox.faults.add(Fault(kind="status", status=529, skip=1, count=2))
    seen = []
    for _ in range(5):
        try:
            client.messages.create(**params())
            seen.append(200)
        except anthropic.OverloadedError:
            seen.append(529)
    assert seen == [200, 529, 529, 200, 200]
    assert armed.strikes == 2
    assert armed.spent


def test_a_fault_strikes_at_its_endpoint_only(sandbox, client):
    sandbox.faults.add(Fault(kind="status", endpoint="batches.list"))
    client.messages.create(**params())
    with pytest.raises(anthropic.InternalServerError):
        client.messages.batches.list()


def test_a_fault_can_be_bound_to_a_model(sandbox, client):
    sandbox.faults.add(Fault(kind="status", status=404, model="old", count=None))
    client.messages.create(**params())
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(**params(model="claude-old-1"))


def test_a_fault_can_be_bound_to_the_batch_that_has_a_custom_id(sandbox, client):
    """Also at calls that only name the batch."""
    sandbox.faults.add(Fault(kind="status", endpoint="batches.retrieve", custom_id="b"))
    first = client.messages.batches.create(requests=[entry("a")])
    second = client.messages.batches.create(requests=[entry("b")])
    client.messages.batches.retrieve(first.id)
    with pytest.raises(anthropic.InternalServerError):
        client.messages.batches.retrieve(second.id)


def test_a_fault_can_be_bound_to_what_a_function_says(sandbox, client):
    def is_large(call):
        return len(call.items) > 2

    sandbox.faults.add(Fault(kind="status", status=413, endpoint="batches.create", count=None, when=is_large))
    client.messages.batches.create(requests=entries(2))
    with pytest.raises(anthropic.ContentTooLargeError):
        client.messages.batches.create(requests=entries(3))


def test_cleared_faults_do_not_strike(sandbox, client):
    sandbox.faults.add(Fault(kind="status", count=None))
    sandbox.faults.clear()
    assert client.messages.create(**params())


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "nothing"},
        {"kind": "drop", "endpoint": "nowhere"},
        {"kind": "cut", "endpoint": "batches.create"},
        {"kind": "lines", "endpoint": "batches.list"},
        {"kind": "item", "endpoint": "messages.create"},
        {"kind": "item", "outcome": "succeeded"},
        {"kind": "cut", "cut_at": "anywhere"},
        {"kind": "status", "status": 200},
        {"kind": "drop", "count": 0},
        {"kind": "drop", "skip": -1},
    ],
)
def test_a_wrong_fault_is_refused_where_it_is_made(wrong):
    with pytest.raises(ValueError, match=r"must|happens at"):
        Fault(**wrong)


def read_lines(client, batch_id):
    return [json.loads(line) for line in read_raw(client, batch_id).splitlines()]


def test_a_list_that_lags_leaves_a_new_batch_out(sandbox, client):
    """For some calls of the list; retrieve has a count of its own."""
    known = client.messages.batches.create(requests=entries(1))
    sandbox.faults.add(Fault(kind="hide", calls=1, lists=2))
    batch = client.messages.batches.create(requests=entries(1))
    for _ in range(2):
        assert [shown.id for shown in client.messages.batches.list().data] == [known.id]
    assert [shown.id for shown in client.messages.batches.list().data] == [batch.id, known.id]
    with pytest.raises(anthropic.NotFoundError):
        client.messages.batches.retrieve(batch.id)
    assert client.messages.batches.retrieve(batch.id).id == batch.id


def test_a_batch_that_is_only_hidden_is_listed(sandbox, client):
    sandbox.faults.add(Fault(kind="hide"))
    batch = client.messages.batches.create(requests=entries(1))
    assert [shown.id for shown in client.messages.batches.list().data] == [batch.id]


def test_a_hidden_batch_can_neither_be_canceled_nor_deleted_nor_read(sandbox, client):
    sandbox.faults.add(Fault(kind="hide", calls=3))
    batch = client.messages.batches.create(requests=entries(1))
    sandbox.clock.advance(TEN_MINUTES)
    for call in (client.messages.batches.cancel, client.messages.batches.delete):
        with pytest.raises(anthropic.NotFoundError):
            call(batch.id)
    with pytest.raises(anthropic.NotFoundError):
        read_raw(client, batch.id)
    assert len(read_lines(client, batch.id)) == 1


@pytest.mark.parametrize("endpoint", ["batches.cancel", "batches.delete", "batches.list"])
@pytest.mark.parametrize("accepted", [False, True])
def test_every_batch_endpoint_can_fail(sandbox, client, endpoint, accepted):
    """Before it has done its work, or after."""
    batch = client.messages.batches.create(requests=entries(4))
    if endpoint == "batches.delete":
        sandbox.clock.advance(TEN_MINUTES)
    sandbox.faults.add(Fault(kind="status", endpoint=endpoint, status=529, accepted=accepted))
    calls = {
        "batches.cancel": lambda: client.messages.batches.cancel(batch.id),
        "batches.delete": lambda: client.messages.batches.delete(batch.id),
        "batches.list": client.messages.batches.list,
    }
    with pytest.raises(anthropic.OverloadedError):
        calls[endpoint]()
    kept = sandbox.batches[batch.id]
    assert (kept.cancel_initiated_at is not None) == (accepted and endpoint == "batches.cancel")
    assert (kept.deleted_at is not None) == (accepted and endpoint == "batches.delete")


def test_results_can_repeat_lines(sandbox, client):
    batch_id = end_batch(sandbox, client, entries(5))
    sandbox.faults.add(Fault(kind="lines", repeated=2))
    lines = read_lines(client, batch_id)
    assert len(lines) == 7
    assert lines[5:] == lines[:2]
    assert len(read_lines(client, batch_id)) == 5
    assert len(sandbox.books.charges) == 5


def test_results_can_lack_lines_that_are_charged(sandbox, client):
    batch_id = end_batch(sandbox, client, entries(5))
    whole = read_lines(client, batch_id)
    sandbox.faults.add(Fault(kind="lines", missing=2))
    assert read_lines(client, batch_id) == whole[:3]
    sandbox.faults.add(Fault(kind="lines", missing=9))
    assert read_lines(client, batch_id) == []
    assert len(sandbox.books.charges) == 5


def test_results_can_have_a_type_that_nobody_knows(sandbox, client):
    batch_id = end_batch(sandbox, client, entries(5))
    whole = read_lines(client, batch_id)
    sandbox.faults.add(Fault(kind="lines", unknown=2))
    lines = read_lines(client, batch_id)
    assert [line["custom_id"] for line in lines] == [line["custom_id"] for line in whole]
    assert [line["result"]["type"] for line in lines] == ["postponed"] * 2 + ["succeeded"] * 3


def test_results_can_answer_somebody_else(sandbox, client):
    """A name nobody knows, or one of another batch; the line reads like any other."""
    batch_id = end_batch(sandbox, client, entries(2))
    sandbox.faults.add(Fault(kind="lines", strangers=["r9", "r10"]))
    lines = list(client.messages.batches.results(batch_id))
    assert [line.custom_id for line in lines[2:]] == ["r9", "r10"]
    assert lines[2].result.message.content[0].text
    assert len(sandbox.books.charges) == 2


def test_results_can_have_lines_as_they_stand(sandbox, client):
    batch_id = end_batch(sandbox, client, entries(2))
    sandbox.faults.add(Fault(kind="lines", added=["", "<html>", '{"custom_id": "r0"}'], repeated=1))
    raw = read_raw(client, batch_id)
    assert raw.endswith(b'\n\n<html>\n{"custom_id": "r0"}\n')
    assert len(raw.splitlines()) == 6


def test_changed_results_can_be_cut_too(sandbox, client):
    batch_id = end_batch(sandbox, client, entries(5))
    sandbox.faults.add(Fault(kind="lines", unknown=5))
    sandbox.faults.add(Fault(kind="cut", lines=3))
    assert [line["result"]["type"] for line in read_lines(client, batch_id)] == ["postponed"] * 3


@pytest.mark.parametrize("field", ["lists", "repeated", "missing", "unknown"])
def test_a_number_of_a_fault_is_not_negative(field):
    with pytest.raises(ValueError, match=f"{field} must not be negative"):
        Fault(kind="lines", **{field: -1})


@pytest.mark.parametrize("field", ["strangers", "added"])
def test_lists_of_a_fault_are_no_text(field):
    with pytest.raises(ValueError, match="must be lists"):
        Fault(kind="lines", **{field: "r1"})
