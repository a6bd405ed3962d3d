"""Observe mode: every way to call is counted, and gives what it always gave. The real SDK, no network."""

from __future__ import annotations

import asyncio
import functools
import gc
import json
import logging
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import anthropic
import httpx2
import pydantic
import pytest

import llmrouter
from llmrouter.claude.prices import price_of
from llmrouter.domain.cache_use import CacheUse
from llmrouter.errors import StoreBusyError
from llmrouter.stores.memory import MemoryStore
from support.clocks import START, FakeClock
from support.observed import USAGE, Observed, Pieces, answer, events, observed
from support.requests import MODEL, ask
from support.waiting import wait_until
from support.wrapping import message_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from decimal import Decimal

    from llmrouter.domain.traffic import TrafficRow

pytestmark = pytest.mark.timeout(60)

USE = CacheUse(requests=1, input_tokens=3, read_tokens=20, written_5m_tokens=4, written_1h_tokens=7)


@pytest.fixture
def seen() -> Iterator[Observed]:
    """A router in observe mode."""
    with observed() as one:
        yield one


def cost(model: str = MODEL, usage: dict[str, Any] = USAGE) -> Decimal:
    """What an answer costs."""
    price = price_of({"model": model, "usage": usage}, processing="standard", at=START)
    assert price is not None
    return price.paid_usd


class Mood(pydantic.BaseModel):
    """What an answer is parsed into."""

    mood: str


def json_message(request: httpx2.Request) -> httpx2.Response:
    """An answer that is a `Mood`."""
    content = [{"type": "text", "text": '{"mood": "fine"}'}]
    return httpx2.Response(200, json=message_of(content=content, usage=USAGE))


# Ways to call


def create(client: Any) -> Any:
    return client.messages.create(**ask()).id


def beta(client: Any) -> Any:
    return client.beta.messages.create(**ask(), betas=["b"]).id


def raw(client: Any) -> Any:
    return client.messages.with_raw_response.create(**ask()).parse().id


def raw_unparsed(client: Any) -> Any:
    return client.messages.with_raw_response.create(**ask()).http_response.json()["id"]


def streamed_raw(client: Any) -> Any:
    with client.messages.with_streaming_response.create(**ask()) as response:
        return response.parse().id


def streamed_lines(client: Any) -> Any:
    with client.messages.with_streaming_response.create(**ask()) as response:
        return json.loads("".join(response.iter_lines()))["id"]


def stream(client: Any) -> Any:
    return [event.type for event in client.messages.create(**ask(), stream=True)][::-1]


def stream_next(client: Any) -> Any:
    events = client.messages.create(**ask(), stream=True)
    found = [next(events).type]
    while True:
        try:
            found.append(next(events).type)
        except StopIteration:
            return found


def stream_helper(client: Any) -> Any:
    with client.messages.stream(**ask()) as found:
        return found.get_final_message().usage.output_tokens


def stream_text(client: Any) -> Any:
    with client.beta.messages.stream(**ask()) as found:
        return "".join(found.text_stream)


def stream_raw_bytes(client: Any) -> Any:
    with client.messages.with_streaming_response.create(**ask(), stream=True) as response:
        return b"".join(response.iter_bytes(10))


WHOLE = [create, beta, raw, raw_unparsed, streamed_raw, streamed_lines]
STREAMS = [stream, stream_next, stream_helper, stream_text, stream_raw_bytes]


@pytest.mark.parametrize("way", [*WHOLE, *STREAMS])
def test_each_way_to_call_is_counted_and_gives_what_it_gave(
    seen: Observed, way: Callable[[Any], Any]
) -> None:
    """Tokens by kind, price and duration; the caller sees no difference."""
    assert way(seen.sync) == way(seen.plain)
    row = seen.row
    assert (row.calls, row.errors, row.priced, row.unpriced) == (1, 0, 1, 0)
    assert (row.site, row.model, row.latency) == (f"{__name__}:{way.__name__}", MODEL, "real-time")
    assert row.streaming is (way in STREAMS)
    assert (row.use, row.output_tokens, row.cost_usd) == (USE, 5, cost())
    assert 0 < row.max_seconds == row.total_seconds < 30


async def create_soon(client: Any) -> Any:
    return (await client.messages.create(**ask())).id


async def beta_soon(client: Any) -> Any:
    return (await client.beta.messages.create(**ask(), betas=["b"])).id


async def raw_soon(client: Any) -> Any:
    return (await client.messages.with_raw_response.create(**ask())).http_response.json()["id"]


async def streamed_raw_soon(client: Any) -> Any:
    async with client.messages.with_streaming_response.create(**ask()) as response:
        return (await response.parse()).id


async def stream_soon(client: Any) -> Any:
    return [event.type async for event in await client.messages.create(**ask(), stream=True)]


async def stream_helper_soon(client: Any) -> Any:
    async with client.messages.stream(**ask()) as found:
        return (await found.get_final_message()).usage.output_tokens


async def stream_bytes_soon(client: Any) -> Any:
    async with client.messages.with_streaming_response.create(**ask(), stream=True) as response:
        return b"".join([piece async for piece in response.iter_bytes()])


STREAMS_SOON = [stream_soon, stream_helper_soon, stream_bytes_soon]


@pytest.mark.parametrize("way", [create_soon, beta_soon, raw_soon, streamed_raw_soon, *STREAMS_SOON])
def test_an_asynchronous_client_is_counted_too(seen: Observed, way: Callable[[Any], Any]) -> None:
    """In the same ways."""

    async def main() -> None:
        async with seen.client(anthropic.AsyncAnthropic) as plain, seen.wrap_async() as client:
            assert await way(client) == await way(plain)

    asyncio.run(main())
    row = seen.row
    assert (row.calls, row.errors, row.priced) == (1, 0, 1)
    assert row.site == f"{__name__}:{way.__name__}"
    assert row.streaming is (way in STREAMS_SOON)
    assert (row.use, row.output_tokens, row.cost_usd) == (USE, 5, cost())


def test_parse_is_counted(seen: Observed) -> None:
    """Its parser runs once, as ever."""
    seen.answer = json_message
    parsed = seen.sync.messages.parse(**ask(), output_format=Mood).parsed_output
    assert parsed == Mood(mood="fine")
    assert (seen.row.calls, seen.row.use, seen.row.priced) == (1, USE, 1)


def test_other_endpoints_are_not_counted(seen: Observed) -> None:
    """They pass."""
    seen.answer = lambda _: httpx2.Response(200, json={"input_tokens": 1})
    assert seen.sync.messages.count_tokens(model=MODEL, messages=ask()["messages"]).input_tokens == 1
    assert seen.router.traffic() == []


# What would have applied


def test_nothing_waits_whatever_it_is_tagged_with(seen: Observed) -> None:
    """The class is noted; the tag is not sent; nothing is in the queue."""
    sent: list[httpx2.Request] = []
    seen.answer = lambda request: sent.append(request) or answer(request)  # type: ignore[func-returns-value]
    create = seen.sync.messages.create
    with llmrouter.latency("weekly", run="nightly"):
        create(**ask())
        create(**ask(), extra_headers=llmrouter.tag("hourly", site="named", key="k"))
        create(**ask(), extra_headers=llmrouter.tag("real-time"))
        list(create(**ask(), stream=True))
    here = f"{__name__}:test_nothing_waits_whatever_it_is_tagged_with"
    assert [(row.site, row.latency, row.streaming, row.calls) for row in seen.router.traffic()] == [
        ("named", "hourly", False, 1),
        (here, "real-time", False, 1),
        (here, "weekly", False, 1),
        (here, "weekly", True, 1),
    ]
    assert not any(name.startswith("x-llmrouter") for request in sent for name in request.headers)
    assert seen.router.status().queued == 0


def test_rules_say_what_would_have_applied() -> None:
    """`never_batch` over all."""
    sites = {f"{__name__}:*": "daily"}
    with observed(sites=sites, never_batch=["billing"]) as seen:
        seen.sync.messages.create(**ask())
        seen.sync.messages.create(**ask(), extra_headers=llmrouter.tag("hourly", site="billing"))
        assert [(row.site, row.latency) for row in seen.router.traffic()] == [
            ("billing", "real-time"),
            (f"{__name__}:test_rules_say_what_would_have_applied", "daily"),
        ]


def test_a_class_that_does_not_exist_is_told_of_and_the_call_goes(
    seen: Observed, caplog: pytest.LogCaptureFixture
) -> None:
    """Once a site."""
    for _ in range(2):
        assert seen.sync.messages.create(**ask(), extra_headers=llmrouter.tag("dayly")).id
    assert (seen.row.latency, seen.row.calls) == ("real-time", 2)
    assert [record.message for record in caplog.records if record.levelno == logging.WARNING] == [
        "a call asks for dayly, which is no latency class: it would be refused"
    ]


def test_the_variable_turns_it_on(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """With one line that says so; an argument wins."""
    monkeypatch.setenv("LLMROUTER_OBSERVE", "1")
    caplog.set_level(logging.INFO, logger="llmrouter")
    with observed() as seen:
        client = seen.plain
    with (
        llmrouter.Router(client, store="memory://", worker=False) as on,
        llmrouter.Router(client, store="memory://", worker=False, observe=False) as off,
    ):
        for router in (on, off):
            seen.client(anthropic.Anthropic)
            router.wrap(client)
        assert on._parts.observer is not None
        assert off._parts.observer is None
    assert sum("observe mode" in record.message for record in caplog.records) == 2


# What goes wrong


@pytest.mark.parametrize("status", [400, 429, 529])
def test_refused_calls_are_errors_without_tokens(seen: Observed, status: int) -> None:
    """The caller gets the SDK's exception."""
    seen.answer = lambda _: httpx2.Response(
        status, json={"type": "error", "error": {"type": "x", "message": "m"}}
    )
    for way in (create, stream, streamed_raw):
        with pytest.raises(anthropic.APIStatusError):
            way(seen.sync)
    rows = seen.router.traffic()
    assert sum(row.calls for row in rows) == sum(row.errors for row in rows) == 3
    assert sum(row.unpriced for row in rows) == sum(row.use.requests for row in rows) == 0


def test_a_lost_connection_is_an_error(seen: Observed) -> None:
    """For both kinds of clients."""

    def fail(request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ConnectError("no", request=request)

    seen.answer = fail
    with pytest.raises(anthropic.APIConnectionError):
        create(seen.sync)

    async def main() -> None:
        async with seen.wrap_async() as client:
            with pytest.raises(anthropic.APIConnectionError):
                await client.messages.create(**ask(), extra_headers=llmrouter.tag(site=f"{__name__}:create"))

    asyncio.run(main())
    assert (seen.row.calls, seen.row.errors, seen.row.unpriced) == (2, 2, 0)


def test_a_call_that_is_cancelled_is_an_error(seen: Observed) -> None:
    """It gave no message."""

    sending = asyncio.Event()

    async def hang(*_: Any) -> Any:
        sending.set()
        await asyncio.Event().wait()

    async def main() -> None:
        async with seen.wrap_async() as client:
            task = asyncio.create_task(create_soon(client.with_middleware(hang)))
            await sending.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())
    assert (seen.row.calls, seen.row.errors, seen.row.unpriced) == (1, 1, 0)


def test_retries_of_the_sdk_are_calls_of_their_own(seen: Observed) -> None:
    """What was sent is counted."""
    left = [httpx2.Response(500, headers={"retry-after-ms": "1"})]
    seen.answer = lambda request: left.pop() if left else answer(request)
    seen.sync.with_options(max_retries=2).messages.create(**ask())
    assert (seen.row.calls, seen.row.errors, seen.row.priced) == (2, 1, 1)


def piecewise(content: bytes, error: Exception | None = None) -> Callable[[httpx2.Request], httpx2.Response]:
    """Answers with some events."""
    headers = {"content-type": "text/event-stream"}
    return lambda _: httpx2.Response(200, headers=headers, stream=Pieces(content, 50, error))


def test_a_stream_that_fails_is_one_error(seen: Observed) -> None:
    """By an event of the API's, and by the connection."""
    begun = events().partition(b"event: content_block_start")[0]
    failed = b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"m"}}\n\n'
    seen.answer = piecewise(begun + failed)
    with pytest.raises(anthropic.APIStatusError):
        stream(seen.sync)
    seen.answer = piecewise(begun, httpx2.ReadError("gone"))
    with pytest.raises(httpx2.ReadError):
        stream(seen.sync)
    assert (seen.row.calls, seen.row.errors, seen.row.priced) == (2, 2, 0)
    assert seen.row.use.input_tokens == 6


def test_a_stream_that_is_left_has_no_price_and_is_no_error(seen: Observed) -> None:
    """What it began with is known; it is closed as ever, read or not."""
    with seen.sync.messages.create(**ask(), stream=True) as left:
        assert next(iter(left)).type == "message_start"
    unread = seen.sync.messages.create(**ask(), stream=True)
    unread.close()
    assert left.response.is_closed
    assert unread.response.is_closed
    del left, unread
    gc.collect()
    row = seen.row
    assert (row.calls, row.errors, row.priced, row.unpriced, row.cost_usd) == (2, 0, 0, 2, 0)
    assert row.use == USE


def test_a_dropped_answer_is_let_go_of_at_once(seen: Observed) -> None:
    """Not by the garbage collector: connections are waiting to be given back."""
    gc.disable()
    try:
        for client in (seen.plain, seen.sync):
            dropped = client.messages.create(**ask(), stream=True)
            gone = weakref.ref(dropped.response)
            del dropped
            assert gone() is None
    finally:
        gc.enable()


def test_an_unknown_price_is_unknown(seen: Observed) -> None:
    """Not zero; its tokens are known."""
    seen.sync.messages.create(**ask(model="claude-nobody-knows"))
    assert (seen.row.unpriced, seen.row.priced, seen.row.cost_usd) == (1, 0, 0)
    assert seen.row.use == USE


def test_the_model_that_answered_is_paid_and_the_one_asked_for_is_named(seen: Observed) -> None:
    """They can differ."""
    seen.answer = lambda _: httpx2.Response(200, json=message_of(model="claude-opus-4-6", usage=USAGE))
    seen.sync.messages.create(**ask())
    assert (seen.row.model, seen.row.cost_usd) == (MODEL, cost("claude-opus-4-6"))


def test_what_a_model_writes_is_not_taken_for_usage(seen: Observed) -> None:
    """In a text, in what it gives a tool, and in events."""
    lies = {"usage": {"input_tokens": 9_999, "output_tokens": 9_999}, "model": "claude-opus-4-6"}
    text = f'"usage": {json.dumps(lies)}\n\nevent: message_delta\ndata: {json.dumps(lies)}\n\n'
    content = [
        {"type": "text", "text": text * 100},
        {"type": "tool_use", "id": "t", "name": "n", "input": lies},
    ]
    message = message_of(content=content, usage=USAGE)
    seen.answer = lambda _: httpx2.Response(200, json=message)
    create(seen.sync)
    seen.answer = piecewise(events(content=content))
    stream(seen.sync)
    whole, streamed = seen.router.traffic()
    assert (whole.use, whole.output_tokens, whole.cost_usd) == (USE, 5, cost())
    assert (streamed.use, streamed.output_tokens, streamed.cost_usd) == (USE, 5, cost())


def test_a_model_that_is_not_named_ahead_is_unknown(seen: Observed) -> None:
    """Rather than the one that a tool was given."""
    content = [{"type": "tool_use", "id": "t", "name": "n", "input": {"model": "claude-opus-4-6"}}]
    seen.answer = lambda _: httpx2.Response(200, json={"content": content, **message_of(usage=USAGE)})
    create(seen.sync)
    assert (seen.row.unpriced, seen.row.use) == (1, USE)


def test_the_last_of_several_sums_of_a_stream_counts(seen: Observed) -> None:
    """Each is the sum so far."""
    begun, last, ended = events().partition(b"event: message_delta")
    early = b'event: message_delta\ndata: {"type":"message_delta","usage":{"output_tokens":1}}\n\n'
    seen.answer = piecewise(begun + early + last + ended)
    stream_raw_bytes(seen.sync)
    assert (seen.row.use, seen.row.output_tokens, seen.row.cost_usd) == (USE, 5, cost())


def test_an_answer_that_cannot_be_read_still_counts(seen: Observed) -> None:
    """As unknown; its caller's trouble stays its caller's."""
    for content in (b"", b"null", b'{"usage": 7}', b'{"usage": {"input_tokens": "x"}}', b"\xff" * 20_000):
        seen.answer = lambda _, content=content: httpx2.Response(  # type: ignore[misc]
            200, content=content, headers={"content-type": "application/json"}
        )
        seen.sync.messages.with_raw_response.create(**ask())
    assert (seen.row.calls, seen.row.unpriced, seen.row.use.input_tokens) == (5, 5, 0)


def test_trouble_with_observing_harms_no_call_and_is_logged_once(
    seen: Observed, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever breaks."""

    prompt = "quoted".upper()

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError(prompt)

    for place in ("WatchedCall.answered", "WatchedCall.__init__"):
        monkeypatch.setattr(f"llmrouter.claude.observing.{place}", broken)
        for _ in range(3):
            assert create(seen.sync) == "msg_stored"
            assert stream(seen.sync)
    assert len(caplog.records) == 2
    assert prompt not in caplog.text


# The store


class Refusing(MemoryStore):
    """Takes no traffic as long as a test says so."""

    refuses = True

    def add_traffic(self, rows: Sequence[TrafficRow]) -> None:
        if self.refuses:
            raise StoreBusyError("busy")
        super().add_traffic(rows)


def test_what_the_store_does_not_take_is_written_when_it_does(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged once."""
    store = Refusing()
    with observed(store=store) as seen:
        for _ in range(3):
            create(seen.sync)
            assert seen.router.traffic() == []
        store.refuses = False
        assert seen.row.calls == 3
    assert len(caplog.records) == 1


def test_what_it_never_takes_is_told_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    """How much it was."""
    with observed(store=Refusing()) as seen:
        create(seen.sync)
    assert caplog.records[-1].message == "1 live calls were not counted: the store did not take them"


def test_calls_are_written_within_a_second_or_so_by_themselves(seen: Observed) -> None:
    """Nobody has to ask for it."""
    create(seen.sync)
    wait_until(lambda: seen.router._parts.store.traffic(None), within=10)


def test_calls_after_the_router_closed_go_on_uncounted() -> None:
    """They are live."""
    store = MemoryStore()
    with observed(store=store) as seen:
        create(seen.sync)
        seen.router.close()
        assert create(seen.sync) == "msg_stored"
    assert [row.calls for row in store.traffic(None)] == [1]


def test_a_call_counts_on_the_day_its_answer_came() -> None:
    """UTC, by the router's clock, however late it is written, or read."""
    clock = FakeClock(datetime.fromisoformat("2026-11-20T23:59:50Z"))
    with observed(clock=clock) as seen:
        create(seen.sync)
        clock.advance(timedelta(seconds=5))
        read_late = seen.sync.messages.create(
            **ask(), extra_headers=llmrouter.tag(site=f"{__name__}:create"), stream=True
        )
        clock.advance(timedelta(seconds=10))
        create(seen.sync)
        list(read_late)
        rows = seen.router.traffic()
        friday, saturday = date(2026, 11, 20), date(2026, 11, 21)
        assert [(row.day, row.calls, row.priced) for row in rows] == [
            (friday, 1, 1),
            (friday, 1, 1),
            (saturday, 1, 1),
        ]
        assert rows[1].max_seconds == 10
        assert seen.router.traffic(saturday) == rows[2:]


# Who and how many


def test_many_threads_and_tasks_are_counted_to_the_last_call(seen: Observed) -> None:
    """While others write and read."""
    reading = threading.Event()

    def read() -> None:
        while not reading.is_set():
            seen.router.traffic()

    reader = threading.Thread(target=read)
    reader.start()
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda n: (stream if n % 3 else create)(seen.sync), range(300)))

    async def main() -> None:
        async with seen.wrap_async() as client:
            await asyncio.gather(*[(stream_soon if n % 2 else create_soon)(client) for n in range(100)])

    asyncio.run(main())
    reading.set()
    reader.join()
    found = {row.site.rpartition(":")[2]: row for row in seen.router.traffic()}
    assert {name: row.calls for name, row in found.items()} == {
        "create": 100, "stream": 200, "create_soon": 50, "stream_soon": 50
    }  # fmt: skip
    assert all(row.priced == row.calls and row.cost_usd == row.calls * cost() for row in found.values())


def logged(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator, as people have them."""

    @functools.wraps(function)
    def inner(*args: Any, **arguments: Any) -> Any:
        return function(*args, **arguments)

    return inner


@logged
@functools.lru_cache
def decorated(client: anthropic.Anthropic) -> str:
    return client.messages.create(**ask()).id


class Job:
    """A method, called by a thread and by a task."""

    @logged
    def run(self, client: anthropic.Anthropic) -> None:
        client.messages.create(**ask())

    async def soon(self, client: anthropic.AsyncAnthropic) -> None:
        await asyncio.sleep(0)
        await client.messages.create(**ask())


def test_sites_are_right_through_decorators_threads_and_tasks(seen: Observed) -> None:
    """The function that calls, not what runs it."""
    job = Job()
    decorated(seen.sync)
    thread = threading.Thread(target=job.run, args=(seen.sync,))
    thread.start()
    thread.join()

    async def main() -> None:
        async with seen.wrap_async() as client:
            await asyncio.gather(
                asyncio.create_task(job.soon(client)), asyncio.wait_for(job.soon(client), 30)
            )
            async with asyncio.TaskGroup() as group:
                group.create_task(job.soon(client))

    asyncio.run(main())
    found = {row.site: row.calls for row in seen.router.traffic()}
    assert found == {f"{__name__}:decorated": 1, f"{__name__}:Job.run": 1, f"{__name__}:Job.soon": 3}
