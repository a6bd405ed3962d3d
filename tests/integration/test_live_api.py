"""Live calls of the router's against the sandbox over HTTP, and what becomes of the application's own."""

from __future__ import annotations

import asyncio
import json
import socketserver
import threading
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import anthropic
import httpx2
import pytest

from llmrouter.claude.answers import to_error, to_message
from llmrouter.claude.encoding import encode
from llmrouter.claude.lanes import Lanes
from llmrouter.claude.live import LiveCalls
from llmrouter.claude.live_api import SdkLiveApi
from llmrouter.domain.live import LiveCallError
from llmrouter.domain.requests import OutcomeKind
from llmrouter.sandbox import Fault, Limits, ManualClock, Reply, Sandbox, params_hash

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from llmrouter.domain.live import LiveReply, Seen
    from llmrouter.ports import LiveApi
    from support.world import World

MODEL = "claude-haiku-4-5"


class Bench:
    """A sandbox that is served, and the adapter in front of it."""

    def __init__(self, sandbox: Sandbox, client: anthropic.Anthropic) -> None:
        self.sandbox = sandbox
        self.client = client
        self.lanes = Lanes(client, b"s")
        self.api: LiveApi = SdkLiveApi(client, self.lanes)

    def call(self, headers: Any = None, **changes: Any) -> LiveReply:
        body = encode(ask(**changes), batch=True).body
        return self.api.call(self.lanes.lane_for(headers or {}), "req_1", body)

    def fail(self, **changes: Any) -> LiveCallError:
        with pytest.raises(LiveCallError) as caught:
            self.call(**changes)
        return caught.value

    def fault(self, **fields: Any) -> None:
        self.sandbox.faults.add(Fault(endpoint="messages.create", **fields))


@pytest.fixture
def open_bench() -> Iterator[Callable[..., Bench]]:
    with ExitStack() as open_things:

        def make(timeout: float | None = None, **options: Any) -> Bench:
            sandbox = Sandbox(clock=ManualClock(), keep_bodies=True, **options)
            server = open_things.enter_context(sandbox.serve())
            own = {} if timeout is None else {"timeout": timeout}
            client = anthropic.Anthropic(base_url=server.base_url, api_key=server.api_key, **own)  # type: ignore[arg-type]
            return Bench(sandbox, open_things.enter_context(client))

        yield make


@pytest.fixture
def bench(open_bench: Callable[..., Bench]) -> Bench:
    return open_bench()


def ask(text: str = "number 0 \u2028 é", **changes: Any) -> dict[str, Any]:
    return {"model": MODEL, "max_tokens": 64, "messages": [{"role": "user", "content": text}], **changes}


def test_a_live_call_from_bytes_to_a_message(bench: Bench) -> None:
    """The stored bytes go out as they are; the message is the one that was charged, at the full price."""
    reply = bench.call()
    (charge,) = bench.sandbox.books.charges
    (record,) = bench.sandbox.books.records

    message = to_message(reply.raw)
    assert reply.kind is OutcomeKind.SUCCEEDED
    assert message.usage.to_dict() == charge.usage
    assert (charge.route, charge.params_hash) == ("live", params_hash(ask()))
    assert record.body == encode(ask(), batch=True).body
    assert reply.work.output_tokens == charge.usage["output_tokens"]
    assert reply.paid_usd is not None
    assert reply.paid_usd > 0


def test_a_long_call_is_streamed_and_is_the_same_request(bench: Bench) -> None:
    """Its answer is the one that it would have got at once."""
    short, long = bench.call(), bench.call(max_tokens=64_000)
    messages = [json.loads(reply.raw)["result"]["message"] for reply in (short, long)]

    assert [json.loads(record.body).get("stream") for record in bench.sandbox.books.records] == [None, True]
    assert [charge.params_hash for charge in bench.sandbox.books.charges] == [
        params_hash(ask()),
        params_hash(ask(max_tokens=64_000)),
    ]
    assert messages[1].keys() == messages[0].keys()
    assert messages[1]["usage"] == bench.sandbox.books.charges[1].usage
    assert messages[1]["stop_reason"] == "end_turn"
    assert long.limits == short.limits or long.limits is not None


def test_the_limits_of_the_account_are_told(open_bench: Callable[..., Bench]) -> None:
    """With every answer, also that which says that they are reached."""
    limits = Limits(input_tokens_per_minute=1000, output_tokens_per_minute=500)
    bench = open_bench(
        requests_per_minute=2, limits=limits, reply=lambda _: Reply(text="x" * 40, stop_reason="refusal")
    )
    replies = [bench.call(), bench.call()]
    error = bench.fail()

    first, second = (reply.limits for reply in replies)
    assert first is not None
    assert second is not None
    assert error.limits is not None
    assert [one.requests.remaining for one in (first, second, error.limits) if one.requests] == [1, 0, 0]
    for one in (first, second):
        assert one.input_tokens is not None
        assert one.output_tokens is not None
    assert (second.input_tokens.limit, second.output_tokens.limit) == (1000, 500)  # type: ignore[union-attr]
    assert second.output_tokens.remaining == 500 - sum(reply.work.output_tokens for reply in replies)  # type: ignore[union-attr]
    assert (error.limited, error.retry_after) == (True, timedelta(seconds=30))


def test_a_request_that_is_refused_has_its_outcome(bench: Bench) -> None:
    """The API's own error, which nothing was charged for."""
    reply = bench.call(max_tokens=200_000)
    error = to_error(reply.kind, reply.raw, "req_1", 1)

    assert isinstance(error, anthropic.BadRequestError)
    assert error.api_message is not None
    assert "max_tokens" in error.api_message
    assert bench.sandbox.books.charges == ()


def test_what_only_a_batch_carries_is_known_before_it_is_sent(bench: Bench) -> None:
    """By the lane alone."""
    lane = bench.lanes.lane_for({"anthropic-beta": "output-300k-2026-03-24"})

    assert (bench.api.serves(lane), bench.api.carries(lane)) == (True, False)
    assert bench.api.carries(bench.lanes.lane_for({}))


SPENT = "You have reached your specified API usage limits. You will regain access on 2026-12-01 at 00:00 UTC."


@pytest.mark.parametrize(
    ("fault", "flag"),
    [
        ({"status": 429, "headers": {"retry-after": "3"}}, "limited"),
        ({"status": 529}, "limited"),
        ({"status": 400, "message": SPENT}, "spent"),
        (
            {"status": 429, "message": SPENT, "details": {"error_code": "enforced_spend_limit_reached"}},
            "spent",
        ),
        ({"status": 401}, "credential"),
        ({"status": 403}, "credential"),
        ({"status": 500}, None),
        ({"status": 504}, "unclear"),
    ],
    ids=repr,
)
def test_an_error_says_why_and_is_not_tried_again(
    bench: Bench, fault: dict[str, Any], flag: str | None
) -> None:
    """The next call is made as if nothing had been."""
    bench.fault(kind="status", **fault)
    error = bench.fail()

    flags = {name for name in ("limited", "spent", "credential", "unclear") if getattr(error, name)}
    assert flags == ({flag} if flag else set())
    assert (error.regain_at is not None) is (flag == "spent")
    assert bench.sandbox.books.calls["messages.create"] == 1
    assert bench.call().kind is OutcomeKind.SUCCEEDED


def test_an_answer_that_got_lost_was_paid_for(bench: Bench) -> None:
    """So the call is not made again by itself."""
    bench.fault(kind="drop", accepted=True)
    error = bench.fail()

    assert error.unclear
    assert bench.sandbox.books.calls["messages.create"] == 1
    assert len(bench.sandbox.books.charges) == 1


def test_an_answer_that_takes_too_long_may_be_paid_for(open_bench: Callable[..., Bench]) -> None:
    """Too long is what the client says it is."""
    bench = open_bench(timeout=0.2)
    bench.fault(kind="delay", seconds=5, accepted=True)

    assert bench.fail().unclear
    assert len(bench.sandbox.books.charges) == 1


def test_an_api_that_is_not_there_has_done_nothing(bench: Bench) -> None:
    """Nobody listens."""
    with anthropic.Anthropic(base_url="http://127.0.0.1:9", api_key="k") as client:
        lanes = Lanes(client, b"s")
        with pytest.raises(LiveCallError) as caught:
            SdkLiveApi(client, lanes).call(lanes.lane_for({}), "req_1", b"{}")

    assert not caught.value.unclear
    assert "ConnectError" in caught.value.brief


@contextmanager
def answering(head: bytes, *pieces: bytes) -> Iterator[str]:
    """A server whose answer ends with its connection."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            length = 0
            while line := self.rfile.readline().strip():
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            self.rfile.read(length)
            self.wfile.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n" + head + b"\r\n")
            for piece in pieces:
                self.wfile.write(piece)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


STARTED = {"type": "message_start", "message": {"id": "m", "type": "message", "content": [], "usage": {}}}
SSE = b"content-type: text/event-stream\r\n"


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (SSE, b"event: message_start\ndata: " + json.dumps(STARTED).encode() + b"\n\n"),
        (SSE + b"transfer-encoding: chunked\r\n", b"5\r\nevent\r\n"),
        (b"content-type: application/json\r\ncontent-length: 100\r\n", b'{"type": "message"}'),
        (b"content-type: application/json\r\n", b'{"type": "message"'),
    ],
    ids=["a stream that ends", "a stream that breaks", "an answer that breaks", "an answer that is cut"],
)
def test_a_connection_that_ends_too_early_leaves_it_unclear(head: bytes, piece: bytes) -> None:
    """Whether or not HTTP itself notices."""
    with answering(head, piece) as url, anthropic.Anthropic(base_url=url, api_key="k") as client:
        lanes = Lanes(client, b"s")
        body = encode(ask(max_tokens=64_000), batch=True).body
        with pytest.raises(LiveCallError) as caught:
            SdkLiveApi(client, lanes).call(lanes.lane_for({}), "req_1", body)

    assert caught.value.unclear
    assert caught.value.status is None


def test_a_call_gives_its_connection_back(bench: Bench) -> None:
    """Answered or not, streamed or not: with one connection there is no second call otherwise."""
    bench.fault(kind="status", status=500, count=20)
    one = anthropic.DefaultHttpxClient(limits=httpx2.Limits(max_connections=1))
    with anthropic.Anthropic(base_url=bench.client.base_url, api_key="k", http_client=one) as client:
        lanes = Lanes(client, b"s")
        api = SdkLiveApi(client, lanes)
        for number in range(40):
            body = encode(ask(max_tokens=64_000 if number % 2 else 64), batch=True).body
            if number < 20:
                with pytest.raises(LiveCallError):
                    api.call(lanes.lane_for({}), "req_1", body)
            else:
                assert api.call(lanes.lane_for({}), "req_1", body).kind is OutcomeKind.SUCCEEDED


def test_the_application_s_own_calls_are_seen(bench: Bench) -> None:
    """With what the sandbox says of its limits after each."""
    seen: list[Seen] = []
    ended = threading.Semaphore(0)
    calls = LiveCalls(bench.client, 2, seen.append)
    bench.fault(kind="status", status=529, headers={"retry-after-ms": "1"})

    calls.start(ask(), {}, lambda *_: ended.release())
    assert ended.acquire(timeout=10)
    calls.close(wait=True)

    (charge,) = bench.sandbox.books.charges
    assert [one.work.output_tokens for one in seen] == [0, charge.usage["output_tokens"]]
    assert [one.limits is not None for one in seen] == [True, True]


@pytest.mark.parametrize(
    "fields", [{"status": 429, "headers": {"retry-after": "30"}}, {"status": 529}], ids=repr
)
@pytest.mark.parametrize("way", ["future", "asyncio"])
def test_a_real_time_request_that_does_not_get_through_is_its_caller_s_error(
    world: World, fields: dict[str, Any], way: str
) -> None:
    """As ever: it is not queued in silence, and no batch does it later."""
    world.fault(kind="status", endpoint="messages.create", count=None, **fields)
    router = world.router(client=world.client(max_retries=0))

    if way == "future":
        error = router.submit(ask(), latency="real-time").exception(10)
    else:

        async def submit() -> BaseException | None:
            try:
                await (await router.asubmit(ask(), latency="real-time"))
            except anthropic.APIStatusError as raised:
                return raised
            return None

        error = asyncio.run(submit())
    router.flush()

    expected = anthropic.RateLimitError if fields["status"] == 429 else anthropic.OverloadedError
    assert isinstance(error, expected)
    assert world.sandbox.books.calls["messages.create"] == 1
    assert world.sandbox.books.calls["batches.create"] == 0
    status = router.status()
    assert not status.backlog
    assert not status.batches
    assert world.sandbox.books.charges == ()
