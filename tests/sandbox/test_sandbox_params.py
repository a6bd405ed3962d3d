"""What the API refuses in a request's parameters: at once in a live call, at the end in a batch."""

from __future__ import annotations

from datetime import timedelta

import anthropic
import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sandbox_requests import MODEL, entry, params

from llmrouter.sandbox import canonical_json, params_hash

BAD_ANYWHERE = [
    ({"foo": 1}, "foo"),
    ({"betas": ["a"]}, "betas"),
    ({"model": ""}, "model"),
    ({"max_tokens": "10"}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": 128_001}, "max_tokens"),
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": [{"role": "nobody", "content": "x"}]}, "messages.0.role"),
    ({"messages": [{"role": "user"}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": ""}]}, "messages.0"),
    ({"messages": [{"role": "user", "content": [{}]}]}, "messages.0.content.0.type"),
    ({"system": 5}, "system"),
    ({"tools": {}}, "tools"),
    ({"temperature": 0.5}, "temperature"),
    ({"top_p": 0.5}, "top_p"),
    ({"top_k": 5}, "top_k"),
]
BAD_IN_A_BATCH = [
    ({"stream": True}, "stream"),
    ({"speed": "fast"}, "speed"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"fallbacks": []}, "fallbacks"),
    ({"thread": {"id": "t"}}, "thread"),
    ({"user_profile_id": "other"}, "user_profile_id"),
]


def post(client: anthropic.Anthropic, body: dict, **headers: str) -> httpx2.Response:
    return client.post("/v1/messages", body=body, cast_to=httpx2.Response, options={"headers": headers})


@pytest.mark.parametrize(("change", "field"), BAD_ANYWHERE)
def test_a_live_call_with_bad_params_is_refused_at_once(client, change, field):
    with pytest.raises(anthropic.BadRequestError) as refused:
        post(client, params(**change))
    assert refused.value.api_message.startswith(field)


@pytest.mark.parametrize("missing", ["model", "max_tokens", "messages"])
def test_a_required_field_is_required(client, missing):
    body = params()
    del body[missing]
    with pytest.raises(anthropic.BadRequestError, match=f"{missing}: Field required"):
        post(client, body)


@pytest.mark.parametrize(("change", "field"), BAD_ANYWHERE + BAD_IN_A_BATCH)
def test_a_bad_item_fails_alone_and_only_at_the_end(sandbox, client, change, field):
    """The batch is taken; the one item comes back errored, its error nested twice; the other succeeds."""
    batch = client.messages.batches.create(requests=[entry("good"), entry("bad", **change)])
    assert batch.request_counts.processing == 2
    sandbox.clock.advance(timedelta(minutes=10))
    counts = client.messages.batches.retrieve(batch.id).request_counts
    assert (counts.succeeded, counts.errored, counts.processing) == (1, 1, 0)
    results = {line.custom_id: line.result for line in client.messages.batches.results(batch.id)}
    assert results["good"].type == "succeeded"
    assert results["bad"].type == "errored"
    assert results["bad"].error.type == "error"
    assert results["bad"].error.error.type == "invalid_request_error"
    assert results["bad"].error.error.message.startswith(field)
    assert [charge.custom_id for charge in sandbox.books.charges] == ["good"]


@pytest.mark.parametrize("field", ["temperature", "top_p"])
def test_sampling_parameters_pass_under_the_older_version(sandbox, client, field):
    old = {"anthropic-version": "2023-06-01"}
    assert post(client, params(**{field: 0.5}), **old).status_code == 200
    batch = client.messages.batches.create(requests=[entry("a", **{field: 0.5})], extra_headers=old)
    sandbox.clock.advance(timedelta(minutes=10))
    assert client.messages.batches.retrieve(batch.id).request_counts.succeeded == 1


@pytest.mark.parametrize("field", ["fallbacks", "thread"])
def test_beta_fields_pass_live_with_a_beta_header(client, field):
    body = params(**{field: None})
    assert post(client, body, **{"anthropic-beta": "some-beta"}).status_code == 200
    with pytest.raises(anthropic.BadRequestError, match=field):
        post(client, body)


def test_a_long_output_needs_a_batch_and_its_beta(sandbox, client):
    """300,000 output tokens: only in a batch, only with the header."""
    beta = {"anthropic-beta": "output-300k-2026-03-24"}
    long = {"max_tokens": 300_000}
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        post(client, params(**long), **beta)
    with_beta = client.messages.batches.create(requests=[entry("a", **long)], extra_headers=beta)
    without = client.messages.batches.create(requests=[entry("a", **long)])
    sandbox.clock.advance(timedelta(minutes=10))
    assert client.messages.batches.retrieve(with_beta.id).request_counts.succeeded == 1
    assert client.messages.batches.retrieve(without.id).request_counts.errored == 1


def test_an_image_counts_a_flat_number_of_tokens(client):
    source = {"type": "base64", "media_type": "image/png", "data": "A" * 100_000}
    content = [{"type": "image", "source": source}, {"type": "text", "text": "x" * 40}]
    counted = client.messages.count_tokens(model=MODEL, messages=[{"role": "user", "content": content}])
    assert counted.input_tokens == 1_510


FIELDS = st.dictionaries(
    st.text(max_size=5),
    st.integers() | st.text() | st.dictionaries(st.text(max_size=5), st.none()),
    max_size=5,
)


@given(FIELDS)
def test_the_hash_ignores_the_order_of_fields(given_params):
    """Equal parameters have equal canonical bytes and hash, in whatever order they were written."""
    turned = dict(reversed(given_params.items()))
    assert canonical_json(turned) == canonical_json(given_params)
    assert params_hash(turned) == params_hash(given_params)


def test_the_hash_ignores_stream_and_nothing_else():
    assert params_hash(params(stream=True)) == params_hash(params())
    assert params_hash(params("a")) != params_hash(params("b"))
