"""The adapter against the sandbox, over HTTP with the real SDK."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
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


def test_the_batches_of_a_workspace_are_listed(bench: Bench) -> None:
    """Running and ended ones, those before the instant left out, with the API's own time."""
    old = bench.create(1)
    bench.sandbox.clock.advance(timedelta(minutes=9))
    since = bench.sandbox.clock.now()
    created = [bench.create(size) for size in (1, 2)]
    bench.sandbox.clock.advance(timedelta(minutes=2))

    listing = bench.api.listed(bench.lane, since)
    all_of_them = bench.api.listed(bench.lane, since - timedelta(hours=1))

    shown = [(batch.provider_batch_id, batch.request_count) for batch in listing.batches]
    assert shown == [(created[1], 2), (created[0], 1)]
    assert listing.listed_at == bench.sandbox.clock.now().replace(microsecond=0)
    assert [batch.provider_batch_id for batch in all_of_them.batches][2:] == [old]
    assert all_of_them.batches[2].status is ProcessingStatus.ENDED


def test_a_listing_goes_over_all_pages(bench: Bench) -> None:
    """However many batches there are."""
    since = bench.sandbox.clock.now()
    created = [bench.create(1) for _ in range(1_001)]

    listing = bench.api.listed(bench.lane, since)

    assert [batch.provider_batch_id for batch in listing.batches] == created[::-1]
    assert bench.sandbox.books.calls["batches.list"] == 2


def test_a_list_that_lags_lacks_the_batch(bench: Bench) -> None:
    """At first: what is not listed may exist."""
    bench.sandbox.faults.add(Fault(kind="hide", calls=0, lists=1))
    since = bench.sandbox.clock.now()
    batch_id = bench.create()

    assert bench.api.listed(bench.lane, since).batches == ()
    assert [one.provider_batch_id for one in bench.api.listed(bench.lane, since).batches] == [batch_id]


def test_a_batch_is_canceled_and_what_was_done_can_be_read(bench: Bench) -> None:
    """Canceled again, while it is being canceled and after its end, nothing changes."""
    batch_id = bench.create(4)
    wanted = {batch_id: bench.sandbox.clock.now()}
    bench.sandbox.clock.advance(timedelta(minutes=5))
    for _ in range(2):
        bench.api.cancel(bench.lane, batch_id)
    assert bench.api.describe(bench.lane, wanted)[batch_id].status is ProcessingStatus.CANCELING
    bench.end()
    bench.api.cancel(bench.lane, batch_id)

    kinds = sorted(str(line.kind) for line in bench.api.results(bench.lane, batch_id))
    assert kinds == ["canceled", "canceled", "succeeded", "succeeded"]
    assert len(bench.sandbox.books.charges) == 2


def test_a_fresh_batch_that_is_hidden_cannot_be_canceled_yet(bench: Bench) -> None:
    """404, which passes."""
    bench.sandbox.faults.add(Fault(kind="hide", calls=1))
    batch_id = bench.create()

    with pytest.raises(anthropic.NotFoundError):
        bench.api.cancel(bench.lane, batch_id)
    bench.api.cancel(bench.lane, batch_id)
    assert bench.sandbox.batches[batch_id].cancel_initiated_at is not None


def test_a_batch_is_deleted_after_its_end_only(bench: Bench) -> None:
    """And once: the second time is no error."""
    batch_id = bench.create()
    with pytest.raises(anthropic.BadRequestError):
        bench.api.delete(bench.lane, batch_id)
    bench.end()
    for _ in range(2):
        bench.api.delete(bench.lane, batch_id)

    assert bench.sandbox.batches[batch_id].deleted_at is not None
    with pytest.raises(anthropic.NotFoundError):
        list(bench.api.results(bench.lane, batch_id))


def test_results_of_another_kind_are_read_as_they_come(bench: Bench) -> None:
    """Twice, of an unknown type, for strangers: the caller has to look. Lines that are none are left out."""
    batch_id = bench.create(3)
    bench.end()
    bench.sandbox.faults.add(
        Fault(kind="lines", unknown=1, repeated=1, missing=1, strangers=["other"], added=["<html>"])
    )

    lines = list(bench.api.results(bench.lane, batch_id))

    assert [line.kind for line in lines] == [
        None,
        OutcomeKind.SUCCEEDED,
        None,
        OutcomeKind.SUCCEEDED,
    ]
    assert lines[0].custom_id == lines[2].custom_id
    assert lines[3].custom_id == "other"


@pytest.mark.parametrize(
    ("status", "message", "details"),
    [
        (400, "You have reached your specified API usage limits.", None),
        (429, "You have reached your API usage limits.", {"error_code": "enforced_spend_limit_reached"}),
    ],
)
def test_a_spend_limit_says_when_it_ends(
    bench: Bench, status: int, message: str, details: dict[str, str] | None
) -> None:
    """As the API has it for one's own limit and for a tier's."""
    text = f"{message} You will regain access on 2026-12-01 at 00:00 UTC."
    bench.sandbox.faults.add(
        Fault(kind="status", endpoint="batches.create", status=status, message=text, details=details)
    )

    with pytest.raises(CreateRefusedError) as caught:
        bench.create()

    assert (caught.value.spent, caught.value.blames_content) == (True, False)
    assert caught.value.regain_at == datetime(2026, 12, 1, tzinfo=UTC)


def test_a_bad_custom_id_is_named(bench: Bench) -> None:
    """The sandbox says where, as the API does."""
    with pytest.raises(CreateRefusedError) as caught:
        bench.api.create(bench.lane, Bodies({"a": b"{}", "a b": b"{}"}))

    assert (caught.value.blames_content, caught.value.names_request) == (True, True)
