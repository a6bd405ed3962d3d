"""The adapter against the sandbox, over HTTP with the real SDK."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import anthropic
import pytest

from llmrouter.claude.answers import to_error, to_message
from llmrouter.claude.batches import SdkBatchApi
from llmrouter.claude.encoding import encode
from llmrouter.claude.lanes import Lanes
from llmrouter.claude.live import call_live
from llmrouter.claude.prices import price_of
from llmrouter.domain.batches import ProcessingStatus, wire_bytes
from llmrouter.domain.requests import OutcomeKind
from llmrouter.errors import CreateRefusedError, CreateUnclearError
from llmrouter.sandbox import Fault, ManualClock, Sandbox, Turnaround

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmrouter.domain.requests import Lane
    from llmrouter.ports import BatchApi

MODEL = "claude-haiku-4-5"


class Bodies:
    """The body of a create as the stores write it, from encoded requests."""

    def __init__(self, bodies: dict[str, bytes]) -> None:
        items = [b'{"custom_id":"%s","params":%s}' % (name.encode(), body) for name, body in bodies.items()]
        self._text = b'{"requests":[' + b",".join(items) + b"]}"
        self.content_length = len(self._text)

    def __iter__(self) -> Iterator[bytes]:
        yield self._text


class Bench:
    """A sandbox that is served, and the adapter in front of it."""

    def __init__(self, sandbox: Sandbox, client: anthropic.Anthropic) -> None:
        self.sandbox = sandbox
        self.client = client
        self.lanes = Lanes(client, b"s")
        self.api: BatchApi = SdkBatchApi(client, self.lanes)

    @property
    def lane(self) -> Lane:
        return self.lanes.lane_for({})

    def create(self, count: int = 3, **changes: Any) -> str:
        return self.api.create(self.lane, bodies(count, **changes)).provider_batch_id

    def end(self) -> None:
        self.sandbox.clock.advance(timedelta(minutes=11))


@pytest.fixture
def bench() -> Iterator[Bench]:
    sandbox = Sandbox(
        clock=ManualClock(), turnaround=Turnaround.fixed(timedelta(minutes=10)), keep_bodies=True
    )
    with (
        sandbox.serve() as server,
        anthropic.Anthropic(base_url=server.base_url, api_key=server.api_key) as client,
    ):
        yield Bench(sandbox, client)


def custom_id(number: int) -> str:
    return f"req_{number:023d}-{'n' * 10}"


def request(number: int = 0, **changes: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"number {number} \u2028 é"}]
    return {"model": MODEL, "max_tokens": 64, "messages": messages, **changes}


def bodies(count: int, **changes: Any) -> Bodies:
    return Bodies({custom_id(n): encode(request(n, **changes), batch=True).body for n in range(count)})


def test_a_batch_from_bytes_to_messages(bench: Bench) -> None:
    """Posted, polled, read; every answer is the message of its own request."""
    batch_id = bench.create(5)
    created = bench.sandbox.batches[batch_id]
    created_at = bench.api.describe(bench.lane, {batch_id: bench.sandbox.clock.now()})[batch_id].created_at
    bench.end()
    described = bench.api.describe(bench.lane, {batch_id: created_at})[batch_id]
    lines = {line.custom_id: line for line in bench.api.results(bench.lane, batch_id)}

    assert [item.custom_id for item in created.items] == [custom_id(n) for n in range(5)]
    assert (described.status, described.request_count) == (ProcessingStatus.ENDED, 5)
    assert set(lines) == {custom_id(n) for n in range(5)}
    for line in lines.values():
        assert line.kind is OutcomeKind.SUCCEEDED
        message = to_message(line.raw)
        price = price_of(
            json.loads(line.raw)["result"]["message"], processing="batch", at=described.created_at
        )
        assert message.model == MODEL
        assert price is not None
        assert price.paid_usd == price.list_usd / 2


def test_the_wire_weighs_what_packing_counts_with(bench: Bench) -> None:
    """`wire_bytes` is exact for ids of the length that llmrouter gives."""
    sizes = [len(encode(request(n), batch=True).body) for n in range(3)]

    assert bodies(3).content_length == wire_bytes(3, sum(sizes))


def test_items_that_fail_become_the_exceptions_of_the_sdk(bench: Bench) -> None:
    """Errored, expired: the API's own type and message."""
    for fault in (
        Fault(kind="item", custom_id=custom_id(0), error_type="overloaded_error", message="busy"),
        Fault(kind="item", custom_id=custom_id(1), error_type="invalid_request_error", message="bad"),
    ):
        bench.sandbox.faults.add(fault)
    batch_id = bench.create(3)
    bench.end()

    lines = {line.custom_id: line for line in bench.api.results(bench.lane, batch_id)}
    errors = [to_error(OutcomeKind.ERRORED, lines[custom_id(n)].raw, "req_1", 1) for n in range(2)]

    assert [lines[custom_id(n)].error_type for n in range(3)] == [
        "overloaded_error",
        "invalid_request_error",
        None,
    ]
    assert [type(error) for error in errors] == [anthropic.OverloadedError, anthropic.BadRequestError]


@pytest.mark.parametrize("kind", ["drop", "status"])
def test_a_lost_answer_leaves_one_batch_and_a_doubt(bench: Bench, kind: Any) -> None:
    """The SDK would have posted it three times."""
    bench.sandbox.faults.add(Fault(kind=kind, endpoint="batches.create", accepted=True, count=None))

    with pytest.raises(CreateUnclearError):
        bench.create()

    assert len(bench.sandbox.batches) == 1


def test_a_refusal_carries_what_the_api_said(bench: Bench) -> None:
    """A spend limit, with the class that the SDK has for it."""
    bench.sandbox.faults.add(
        Fault(
            kind="status",
            endpoint="batches.create",
            status=429,
            headers={"retry-after": "12"},
            details={"error_code": "enforced_spend_limit_reached"},
        )
    )

    with pytest.raises(CreateRefusedError) as caught:
        bench.create()

    assert isinstance(caught.value.__cause__, anthropic.EnforcedSpendLimitReachedError)
    assert (caught.value.status, caught.value.retry_after) == (429, timedelta(seconds=12))


def test_a_fresh_batch_that_is_hidden_is_left_out(bench: Bench) -> None:
    """And described once it shows."""
    bench.sandbox.faults.add(Fault(kind="hide", calls=1))
    batch_id = bench.create()
    wanted = {batch_id: bench.sandbox.clock.now()}

    assert bench.api.describe(bench.lane, wanted) == {}
    assert set(bench.api.describe(bench.lane, wanted)) == {batch_id}


def test_many_batches_are_described_by_one_call(bench: Bench) -> None:
    """From the list of the workspace."""
    wanted = {bench.create(1): bench.sandbox.clock.now() for _ in range(6)}
    calls = len(bench.sandbox.books.records)

    assert set(bench.api.describe(bench.lane, wanted)) == set(wanted)
    assert len(bench.sandbox.books.records) == calls + 1


@pytest.mark.parametrize("cut_at", ["line_end", "mid_line", "broken"])
def test_results_that_are_cut_give_what_came(bench: Bench, cut_at: Any) -> None:
    """Whole lines, no error, and nothing made up; read again, they are all there."""
    batch_id = bench.create(9)
    bench.end()
    bench.sandbox.faults.add(Fault(kind="cut", lines=4, cut_at=cut_at))

    assert len(list(bench.api.results(bench.lane, batch_id))) == 4
    assert len(list(bench.api.results(bench.lane, batch_id))) == 9


def test_results_of_a_running_batch_are_an_error(bench: Bench) -> None:
    """Of the SDK's, and no empty list."""
    batch_id = bench.create()

    with pytest.raises(anthropic.APIStatusError):
        list(bench.api.results(bench.lane, batch_id))


def test_a_lane_is_kept_to_on_the_wire(bench: Bench) -> None:
    """Version and betas go with the create, the lookup and the reading."""
    lane = bench.lanes.lane_for({"anthropic-version": "2023-06-01", "anthropic-beta": "b,a"})
    body = bodies(1, extra_body={"temperature": 0.5})

    batch_id = bench.api.create(lane, body).provider_batch_id
    bench.api.describe(lane, {batch_id: bench.sandbox.clock.now()})
    bench.end()
    (line,) = bench.api.results(lane, batch_id)

    assert line.kind is OutcomeKind.SUCCEEDED
    assert len(bench.sandbox.books.records) == 3
    for record in bench.sandbox.books.records:
        assert record.headers["anthropic-version"] == "2023-06-01"
        assert record.headers["anthropic-beta"] == "a,b"


def test_a_batch_and_a_live_call_are_the_same_request(bench: Bench) -> None:
    """The same bytes, so the same answer."""
    batch_id = bench.create(1)
    bench.end()
    (line,) = bench.api.results(bench.lane, batch_id)

    live = call_live(bench.client, request(0), {})

    assert to_message(line.raw).content == live.content


def test_a_long_live_call_is_streamed(bench: Bench) -> None:
    """What the SDK will not send at once comes as a stream, to its end."""
    message = call_live(bench.client, request(0, max_tokens=64_000), {})

    assert message.stop_reason is not None
    assert message.content[0].type == "text"
