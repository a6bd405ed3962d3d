"""The sandbox's own account: every request answered once, paid once."""

from __future__ import annotations

from datetime import timedelta

import pytest
from anthropic.types.messages import MessageBatch
from sandbox_requests import MODEL, entries, entry, params

from llmrouter.sandbox import Fault, params_hash


def test_a_charge_says_what_was_answered_and_how(sandbox, client):
    live = client.messages.create(**params("live"))
    batch = client.messages.batches.create(requests=[entry("item")])
    sandbox.clock.advance(timedelta(minutes=10))
    (result,) = client.messages.batches.results(batch.id)
    first, second = sandbox.books.charges
    assert (first.route, first.batch_id, first.custom_id, first.model) == ("live", None, None, MODEL)
    assert first.params_hash == params_hash(params("live"))
    assert first.usage == live.usage.to_dict()
    assert (second.route, second.batch_id, second.custom_id) == ("batch", batch.id, "item")
    assert second.params_hash == params_hash(params("item"))
    assert second.usage == result.result.message.usage.to_dict()


def test_a_batch_is_charged_when_it_has_ended(sandbox, client):
    """Whether or not anyone reads the results."""
    client.messages.batches.create(requests=entries(2))
    assert sandbox.books.charges == ()
    sandbox.clock.advance(timedelta(minutes=10))
    assert len(sandbox.books.charges) == 2
    assert sandbox.books.charges == sandbox.books.charges


def test_a_request_paid_twice_shows(sandbox, client):
    client.messages.batches.create(requests=entries(2))
    client.messages.create(**params("r1"))
    sandbox.clock.advance(timedelta(minutes=10))
    assert sandbox.books.count_charges() == {params_hash(params("r0")): 1, params_hash(params("r1")): 2}
    assert sandbox.books.summarize()["charged_more_than_once"] == 1


def test_calls_are_counted_by_endpoint(sandbox, client):
    batch = client.messages.batches.create(requests=entries(1))
    client.messages.batches.retrieve(batch.id)
    client.messages.batches.list()
    client.messages.batches.cancel(batch.id)
    sandbox.clock.advance(timedelta(minutes=1))
    list(client.messages.batches.results(batch.id))
    client.messages.batches.delete(batch.id)
    client.messages.count_tokens(model=MODEL, messages=params()["messages"])
    client.messages.create(**params())
    assert sandbox.books.calls == {
        "batches.create": 1,
        "batches.retrieve": 2,
        "batches.list": 1,
        "batches.cancel": 1,
        "batches.results": 1,
        "batches.delete": 1,
        "messages.count_tokens": 1,
        "messages.create": 1,
    }


def test_bodies_are_kept_to_the_byte_when_asked(start):
    sandbox, client = start(keep_bodies=True)
    body = b'{ "requests": [{"custom_id": "a",  "params": {"model":"m"}}]}'
    batch = client.post("/v1/messages/batches", content=body, cast_to=MessageBatch)
    assert sandbox.batches[batch.id].body == body
    (record,) = sandbox.books.records
    assert (record.endpoint, record.body) == ("batches.create", body)
    assert record.headers["anthropic-version"]


def test_bodies_are_not_kept_unless_asked(sandbox, client):
    batch = client.messages.batches.create(requests=entries(1))
    assert sandbox.batches[batch.id].body is None
    assert sandbox.books.records == ()


def test_items_keep_their_params(sandbox, client):
    batch = client.messages.batches.create(requests=[entry("a", system="ä\u2028")])
    (item,) = sandbox.batches[batch.id].items
    assert item.params == params("a", system="ä\u2028")
    assert item.params_hash == params_hash(item.params)


def test_reset_forgets_everything_but_time_and_ids(sandbox, client):
    before = client.messages.batches.create(requests=entries(1))
    client.messages.create(**params())
    sandbox.faults.add(Fault(kind="drop", count=None))
    now = sandbox.clock.now()
    sandbox.reset()
    assert sandbox.batches == {}
    assert sandbox.books.charges == ()
    assert not sandbox.books.calls
    assert sandbox.faults.armed == ()
    assert sandbox.clock.now() == now
    after = client.messages.batches.create(requests=entries(1))
    assert after.id != before.id


@pytest.mark.parametrize("seed", [0, 1])
def test_the_same_seed_gives_the_same_world(start, seed):
    """Ids, order and answers are the seed's; another seed gives others."""
    worlds = []
    for used in (seed, seed, seed + 1):
        sandbox, client = start(seed=used)
        batch = client.messages.batches.create(requests=entries(10))
        sandbox.clock.advance(timedelta(minutes=10))
        worlds.append([line.to_json() for line in client.messages.batches.results(batch.id)])
    assert worlds[0] == worlds[1] != worlds[2]
