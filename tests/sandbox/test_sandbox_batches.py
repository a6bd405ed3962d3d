"""The life of a batch: create, poll, results, cancel, expire, delete, list."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import anthropic
import httpx2
import pytest
from anthropic.types.messages import MessageBatch
from sandbox_requests import entries, entry, params

from llmrouter.sandbox import Limits, ManualClock, Turnaround

MINUTE = timedelta(minutes=1)
START = datetime(2026, 11, 20, 12, tzinfo=UTC)


def read_results(client: anthropic.Anthropic, batch_id: str) -> dict[str, str]:
    return {line.custom_id: line.result.type for line in client.messages.batches.results(batch_id)}


def post_batch(client: anthropic.Anthropic, body: bytes) -> MessageBatch:
    return client.post("/v1/messages/batches", content=body, cast_to=MessageBatch)


def test_a_new_batch_is_in_progress(start):
    _, client = start(clock=ManualClock(START))
    batch = client.messages.batches.create(requests=entries(3))
    assert batch.id.startswith("msgbatch_")
    assert batch.processing_status == "in_progress"
    assert batch.created_at == START
    assert batch.expires_at == START + timedelta(hours=24)
    assert batch.ended_at is batch.results_url is batch.cancel_initiated_at is batch.archived_at is None
    assert batch.request_counts.processing == 3


def test_everything_counts_as_processing_until_the_whole_batch_has_ended(start):
    sandbox, client = start(clock=ManualClock(START))
    batch = client.messages.batches.create(requests=entries(3))
    sandbox.clock.advance(10 * MINUTE - timedelta(microseconds=1))
    assert client.messages.batches.retrieve(batch.id).request_counts.processing == 3
    sandbox.clock.advance(timedelta(microseconds=1))
    ended = client.messages.batches.retrieve(batch.id)
    assert ended.processing_status == "ended"
    assert ended.ended_at == START + 10 * MINUTE
    assert ended.request_counts.processing == 0
    assert ended.request_counts.succeeded == 3
    assert ended.results_url.endswith(f"/v1/messages/batches/{batch.id}/results")


def test_results_come_complete_in_another_order(sandbox, client):
    """Every custom_id once, never in the order of the request; usage says it was a batch."""
    batch = client.messages.batches.create(requests=entries(20))
    sandbox.clock.advance(10 * MINUTE)
    lines = list(client.messages.batches.results(batch.id))
    ids = [line.custom_id for line in lines]
    assert sorted(ids) == sorted(f"r{index}" for index in range(20))
    assert ids != [f"r{index}" for index in range(20)]
    assert {line.result.message.usage.service_tier for line in lines} == {"batch"}


def test_two_results_are_swapped(sandbox, client):
    """Even the smallest batch that can be out of order is."""
    batch = client.messages.batches.create(requests=entries(2))
    sandbox.clock.advance(10 * MINUTE)
    assert list(read_results(client, batch.id)) == ["r1", "r0"]


def test_an_item_gets_the_answer_a_live_call_would_get(sandbox, client):
    batch = client.messages.batches.create(requests=[entry("same")])
    sandbox.clock.advance(10 * MINUTE)
    (line,) = client.messages.batches.results(batch.id)
    live = client.messages.create(**params("same"))
    assert line.result.message.content == live.content
    assert line.result.message.id != live.id


def test_results_can_be_read_again_and_are_the_same(sandbox, client):
    batch = client.messages.batches.create(requests=entries(5))
    sandbox.clock.advance(10 * MINUTE)
    first, second = (list(client.messages.batches.results(batch.id)) for _ in range(2))
    assert first == second
    assert len(sandbox.books.charges) == 5


def test_results_hold_line_separators_as_they_are(start):
    """U+2028 stands raw inside a line, as in the API's results: only a line feed ends a line."""
    sandbox, client = start(reply=lambda _: "a\u2028b\u0085c\nd")
    batch = client.messages.batches.create(requests=entries(2))
    sandbox.clock.advance(10 * MINUTE)
    raw = client.get(f"/v1/messages/batches/{batch.id}/results", cast_to=httpx2.Response).content
    assert raw.count("\u2028".encode()) == raw.count(b"\n") == 2
    assert json.loads(raw.split(b"\n")[0])["result"]["message"]["content"][0]["text"] == "a\u2028b\u0085c\nd"


def test_results_before_the_end_are_not_found(client):
    batch = client.messages.batches.create(requests=entries(1))
    with pytest.raises(anthropic.NotFoundError):
        client.get(f"/v1/messages/batches/{batch.id}/results", cast_to=object)


def test_results_are_gone_after_29_days(sandbox, client):
    batch = client.messages.batches.create(requests=entries(1))
    sandbox.clock.advance(timedelta(days=29))
    archived = client.messages.batches.retrieve(batch.id)
    assert archived.archived_at is not None
    assert archived.results_url is None
    with pytest.raises(anthropic.NotFoundError):
        client.get(f"/v1/messages/batches/{batch.id}/results", cast_to=object)


def test_an_unknown_batch_is_not_found(client):
    with pytest.raises(anthropic.NotFoundError):
        client.messages.batches.retrieve("msgbatch_none")


def test_cancel_keeps_what_is_done_and_cancels_the_rest(sandbox, client):
    """Items are done evenly over the turnaround: half of them when half of it has passed."""
    batch = client.messages.batches.create(requests=entries(10))
    sandbox.clock.advance(5 * MINUTE)
    canceling = client.messages.batches.cancel(batch.id)
    assert canceling.processing_status == "canceling"
    assert canceling.cancel_initiated_at is not None
    assert canceling.request_counts.processing == 10
    assert client.messages.batches.cancel(batch.id) == canceling
    sandbox.clock.advance(timedelta(seconds=30))
    ended = client.messages.batches.retrieve(batch.id)
    assert ended.processing_status == "ended"
    assert (ended.request_counts.succeeded, ended.request_counts.canceled) == (5, 5)
    results = read_results(client, batch.id)
    assert sorted(results.values()) == ["canceled"] * 5 + ["succeeded"] * 5
    assert len(sandbox.books.charges) == 5


def test_what_gets_done_while_canceling_succeeds_and_is_charged(start):
    sandbox, client = start(cancel_takes=2 * MINUTE)
    batch = client.messages.batches.create(requests=entries(10))
    sandbox.clock.advance(5 * MINUTE)
    client.messages.batches.cancel(batch.id)
    sandbox.clock.advance(2 * MINUTE)
    assert client.messages.batches.retrieve(batch.id).request_counts.succeeded == 7


def test_an_ended_batch_cannot_be_canceled(sandbox, client):
    batch = client.messages.batches.create(requests=entries(1))
    sandbox.clock.advance(10 * MINUTE)
    with pytest.raises(anthropic.BadRequestError):
        client.messages.batches.cancel(batch.id)


def test_what_is_not_done_after_24_hours_expires(start):
    sandbox, client = start(turnaround=Turnaround.fixed(timedelta(hours=48)), clock=ManualClock(START))
    batch = client.messages.batches.create(requests=entries(10))
    sandbox.clock.advance(timedelta(hours=24))
    ended = client.messages.batches.retrieve(batch.id)
    assert ended.ended_at == ended.expires_at
    assert (ended.request_counts.succeeded, ended.request_counts.expired) == (5, 5)
    assert sorted(read_results(client, batch.id).values()) == ["expired"] * 5 + ["succeeded"] * 5
    assert len(sandbox.books.charges) == 5


def test_a_batch_can_be_deleted_after_its_end_only(sandbox, client):
    """Deleted, it is not found and not listed; the sandbox's own account keeps it."""
    batch = client.messages.batches.create(requests=entries(1))
    with pytest.raises(anthropic.BadRequestError):
        client.messages.batches.delete(batch.id)
    sandbox.clock.advance(10 * MINUTE)
    assert client.messages.batches.delete(batch.id).type == "message_batch_deleted"
    with pytest.raises(anthropic.NotFoundError):
        client.messages.batches.retrieve(batch.id)
    assert client.messages.batches.list().data == []
    assert sandbox.batches[batch.id].deleted_at is not None
    assert len(sandbox.books.charges) == 1


def test_the_list_is_newest_first_and_paged(client):
    made = [client.messages.batches.create(requests=entries(1)).id for _ in range(25)]
    newest_first = made[::-1]
    page = client.messages.batches.list()
    assert [batch.id for batch in page.data] == newest_first[:20]
    assert (page.first_id, page.last_id, page.has_more) == (newest_first[0], newest_first[19], True)
    assert [batch.id for batch in client.messages.batches.list(limit=10)] == newest_first
    rest = client.messages.batches.list(after_id=page.last_id)
    assert [batch.id for batch in rest.data] == newest_first[20:]
    assert rest.has_more is False


def test_before_id_gives_the_page_just_before(client):
    """The newer neighbours of the cursor, still newest first; has_more looks towards newer ones."""
    newest_first = [client.messages.batches.create(requests=entries(1)).id for _ in range(6)][::-1]
    page = client.messages.batches.list(before_id=newest_first[4], limit=3)
    assert [batch.id for batch in page.data] == newest_first[1:4]
    assert page.has_more is True
    last = client.messages.batches.list(before_id=page.first_id, limit=3)
    assert [batch.id for batch in last.data] == newest_first[:1]
    assert last.has_more is False


def test_an_empty_list_has_no_cursors(client):
    page = client.messages.batches.list()
    assert (page.data, page.first_id, page.last_id, page.has_more) == ([], None, None, False)


@pytest.mark.parametrize("query", [{"limit": 0}, {"limit": 1_001}, {"limit": "ten"}, {"after_id": "none"}])
def test_a_bad_page_is_refused(client, query):
    with pytest.raises(anthropic.BadRequestError):
        client.messages.batches.list(**query)


@pytest.mark.parametrize("custom_id", ["", "a b", "ä", "x" * 65, "a\n", 5, None])
def test_one_bad_custom_id_refuses_the_whole_batch(sandbox, client, custom_id):
    bad = {"custom_id": custom_id, "params": params()}
    with pytest.raises(anthropic.BadRequestError, match=r"requests\.1\.custom_id"):
        client.messages.batches.create(requests=[entry("good"), bad])
    assert sandbox.batches == {}


def test_the_longest_custom_id_is_taken(client):
    assert client.messages.batches.create(requests=[entry("aZ09_-" + "x" * 58)])


def test_a_repeated_custom_id_refuses_the_whole_batch(client):
    with pytest.raises(anthropic.BadRequestError, match="Duplicate"):
        client.messages.batches.create(requests=[entry("same"), entry("same")])


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b'{"requests": []}',
        b'{"requests": [ ]}',
        b'{"requests": {}}',
        b'{"requests": [',
        b'{"requests": [5]}',
        b'{"requests": [{"custom_id": "a"}]}',
        b'{"requests": [{"params": {}}]}',
        b'{"requests": [{"custom_id": "a", "params": []}]}',
        b'{"requests": [{"custom_id": "a", "params": {}, "more": 1}]}',
        b'{"requests": [{"custom_id": "a", "params": {}}], "more": 1}',
        b'{"more": 1, "requests": [{"custom_id": "a", "params": {}}]}',
        b'{"requests": [{"custom_id": "a", "params": {}}',
        b'{"requests": [{"custom_id": "a", "params": {}},]}',
        b'{"requests": [{"custom_id": "a", "params": {"x": NaN}}]}',
        b'{"requests": [{"custom_id": "a", "params": {}}]} x',
        b'{"requests": [{"custom_id": "a", "params": {"x": "\xff"}}]}',
    ],
)
def test_a_malformed_batch_is_refused_as_a_whole(sandbox, client, body):
    with pytest.raises(anthropic.BadRequestError) as refused:
        post_batch(client, body)
    assert refused.value.type == "invalid_request_error"
    assert sandbox.batches == {}


@pytest.mark.parametrize("template", [b'{"requests":[%b]}', b' {\n "requests" :\t[ %b ] \r\n} '])
def test_any_spacing_of_the_json_is_taken(sandbox, client, template):
    one = b'{"custom_id": "%b", "params": {"a": "]}, {"}}'
    batch = post_batch(client, template % b" , ".join([one % b"x", one % b"y"]))
    assert [item.custom_id for item in sandbox.batches[batch.id].items] == ["x", "y"]
    assert sandbox.batches[batch.id].items[0].params == {"a": "]}, {"}


def test_too_many_requests_are_too_large(start):
    _, client = start(limits=Limits(batch_requests=3))
    client.messages.batches.create(requests=entries(3))
    with pytest.raises(anthropic.ContentTooLargeError) as refused:
        client.messages.batches.create(requests=entries(4))
    assert refused.value.body["error"]["type"] == "request_too_large"


def test_too_many_bytes_are_too_large(start):
    """The body is read to its end first, so that the client gets to see the answer."""
    sandbox, client = start(limits=Limits(batch_bytes=1_000_000))
    one = b'{"requests":[{"custom_id":"a","params":{"x":"%b"}}]}'
    frame = len(one) - 2
    assert post_batch(client, one % (b"x" * (1_000_000 - frame)))
    for size in (1_000_001, 30_000_000):
        with pytest.raises(anthropic.ContentTooLargeError):
            post_batch(client, one % (b"x" * (size - frame)))
    assert len(sandbox.batches) == 1


def test_the_limits_are_the_api_s():
    assert Limits().batch_requests == 100_000
    assert Limits().batch_bytes == 256_000_000


def test_the_batch_queue_can_be_full(start):
    sandbox, client = start(limits=Limits(queued_requests=5))
    client.messages.batches.create(requests=entries(3))
    with pytest.raises(anthropic.RateLimitError) as refused:
        client.messages.batches.create(requests=entries(3))
    assert refused.value.response.headers["retry-after"] == "60"
    sandbox.clock.advance(10 * MINUTE)
    client.messages.batches.create(requests=entries(5))


def test_a_batch_remembers_the_headers_it_was_created_with(sandbox, client):
    """Version, betas and workspace hold for the whole batch: a test can look which lane it took."""
    batch = client.messages.batches.create(requests=entries(1), workspace_id="wrkspc_1")
    kept = sandbox.batches[batch.id]
    assert kept.headers["anthropic-workspace-id"] == "wrkspc_1"
    assert kept.headers["anthropic-version"] == "2026-10-21"
    assert kept.api_key == "sandbox"


def test_a_large_batch_is_taken_and_its_results_are_complete(sandbox, client):
    """20,000 requests; 100,000 take five times as long."""
    body = b",".join(
        b'{"custom_id":"r%d","params":{"model":"m","max_tokens":50,"messages":[{"role":"user","content":"hi"}]}}'
        % index
        for index in range(20_000)
    )
    batch = post_batch(client, b'{"requests":[%b]}' % body)
    sandbox.clock.advance(10 * MINUTE)
    results = client.get(f"/v1/messages/batches/{batch.id}/results", cast_to=httpx2.Response)
    assert results.content.count(b"\n") == 20_000
    assert client.messages.batches.retrieve(batch.id).request_counts.succeeded == 20_000
