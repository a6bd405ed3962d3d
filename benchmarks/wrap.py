"""An untagged call on a wrapped client: beside the plain SDK, and beside a middleware that does nothing."""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import anthropic
import httpx2

from benchmarks import load
from benchmarks.harness import ROOT, Report, Size, in_process, interleave, say, seconds
from llmrouter import Router, Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anthropic import APIRequest, AsyncCallNext, CallNext

    from llmrouter.middleware import ClientT

_MOST_MICROSECONDS = 12.0
"""The goal: of a wrapped client above a middleware that does nothing."""

_MOST_OBSERVED = 25.0
"""The same in observe mode."""

_BODY_BYTES = 1_000
_WARM_UP = 50
_RULES = {f"somewhere.else.{place}:*": "daily" for place in range(20)}
_HOST = "127.0.0.1"
_NOWHERE = "http://mock.invalid"
_KEY = "key"
_ANSWER = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-opus-4-6",
    "content": [{"type": "text", "text": "An answer is a few sentences long, as most answers are. " * 4}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 250, "output_tokens": 50},
}

CONTENDERS = {
    "plain": "the plain SDK",
    "noop": "a middleware that does nothing",
    "wrapped": "wrapped, untagged",
    "rules": "wrapped, 20 rules for other sites",
    "observed": "wrapped, observe mode",
}
PLACES = {"mock": "MockTransport", "loopback": "loopback"}


class Nothing(anthropic.Middleware):
    """What every middleware costs."""

    def handle(self, request: APIRequest, call_next: CallNext) -> anthropic.APIResponse[Any]:
        """Sends a call on."""
        return call_next(request)

    async def handle_async(
        self, request: APIRequest, call_next: AsyncCallNext
    ) -> anthropic.AsyncAPIResponse[Any]:
        """Sends a call on."""
        return await call_next(request)


def _answer(_request: httpx2.Request) -> httpx2.Response:
    return httpx2.Response(200, json=_ANSWER)


@contextmanager
def _routers(url: str) -> Iterator[dict[str, Router]]:
    """A router, one with rules for sites, and one that observes; nothing is submitted to any."""
    with anthropic.Anthropic(api_key=_KEY, base_url=url) as client:
        plain, ruled = Settings(), Settings(sites=_RULES)
        with (
            tempfile.TemporaryDirectory() as folder,
            Router(client, store="memory://", settings=plain, worker=False) as wrapped,
            Router(client, store="memory://", settings=ruled, worker=False) as rules,
            Router(client, store=f"disk://{folder}", settings=plain, worker=False, observe=True) as observed,
        ):
            yield {"wrapped": wrapped, "rules": rules, "observed": observed}


def _contenders(plain: ClientT, routers: dict[str, Router]) -> dict[str, ClientT]:
    wrapped = {name: router.wrap(plain) for name, router in routers.items()}
    return {"plain": plain, "noop": plain.with_middleware(Nothing()), **wrapped}


def call_sync(url: str | None, calls: int) -> dict[str, list[float]]:
    """Seconds of each call, call by call in turn; in a process of its own."""
    given: dict[str, Any] = {"api_key": _KEY, "base_url": url or _NOWHERE}
    if url is None:
        given["http_client"] = httpx2.Client(transport=httpx2.MockTransport(_answer))
    with _routers(given["base_url"]) as routers, anthropic.Anthropic(**given) as plain:
        clients, request = _contenders(plain, routers), load.request(0, _BODY_BYTES)

        def measure(name: str) -> float:
            create = clients[name].messages.create
            start = time.perf_counter()
            create(**request)
            return time.perf_counter() - start

        interleave(list(clients), measure, _WARM_UP)
        return interleave(list(clients), measure, calls)


def call_async(url: str | None, calls: int) -> dict[str, list[float]]:
    """The same on one event loop."""
    return asyncio.run(_call_async(url, calls))


async def _call_async(url: str | None, calls: int) -> dict[str, list[float]]:
    given: dict[str, Any] = {"api_key": _KEY, "base_url": url or _NOWHERE}
    if url is None:
        given["http_client"] = httpx2.AsyncClient(transport=httpx2.MockTransport(_answer))
    with _routers(given["base_url"]) as routers:
        async with anthropic.AsyncAnthropic(**given) as plain:
            clients, request = _contenders(plain, routers), load.request(0, _BODY_BYTES)
            order: list[str] = []
            interleave(list(clients), order.append, _WARM_UP + calls)
            found: dict[str, list[float]] = {name: [] for name in clients}
            for name in order:
                create = clients[name].messages.create
                start = time.perf_counter()
                await create(**request)
                found[name].append(time.perf_counter() - start)
            return {name: each[_WARM_UP:] for name, each in found.items()}


@contextmanager
def _server() -> Iterator[str]:
    """A server that answers every request with one message, in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.wrap"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield f"http://{_HOST}:{int(process.stdout.readline())}"
    finally:
        process.terminate()
        process.wait()


async def _serve() -> None:
    body = json.dumps(_ANSWER).encode()
    answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                (line,) = [
                    line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")
                ]
                await reader.readexactly(int(line.partition(b":")[2]))
                writer.write(answer + body)
                await writer.drain()
        except asyncio.IncompleteReadError:
            writer.close()

    server = await asyncio.start_server(handle, _HOST, 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def run(size: Size) -> Report:
    """Measures both kinds of clients, without a network and over loopback."""
    report = Report("9. An untagged call on a wrapped client")
    with _server() as url:
        for kind, measure in (("sync", call_sync), ("async", call_async)):
            for place, named in PLACES.items():
                say(f"wrap: {kind}, {named}")
                found = in_process(
                    measure,
                    url=url if place == "loopback" else None,
                    calls=size.pick(4_000 if place == "mock" else 2_000, 20),
                )
                report.values[f"{kind} {place}"] = {name: summary(each) for name, each in found.items()}
                _compare(report, f"{kind}, {named}", found)
    report.notes.append(
        "Medians of calls that take turns, in a shuffled order each round; the difference is the median of"
        " the differences within a round."
    )
    return report


def summary(each: list[float]) -> dict[str, float]:
    """Microseconds: the median, the fastest tenth, the slowest tenth."""
    deciles = statistics.quantiles(each, n=10)
    return {"median": statistics.median(each) * 1e6, "p10": deciles[0] * 1e6, "p90": deciles[-1] * 1e6}


def _compare(report: Report, case: str, found: dict[str, list[float]]) -> None:
    medians = {name: statistics.median(each) for name, each in found.items()}

    def more(name: str, other: str) -> float:
        pairs = zip(found[name], found[other], strict=True)
        return statistics.median(one - two for one, two in pairs) * 1e6

    plain, noop, wrapped, rules, observed = (medians[name] for name in CONTENDERS)
    over = more("wrapped", "noop")
    report.add(
        f"wrapped, {case}",
        f"{seconds(wrapped)} (+{over:.1f} µs)",
        f"{CONTENDERS['noop']}: {seconds(noop)} (+{more('noop', 'plain'):.1f} µs)",
        wrapped / noop,
        f"<= +{_MOST_MICROSECONDS:g} µs",
        over <= _MOST_MICROSECONDS,
    )
    report.add(
        f"wrapped, {case}", seconds(wrapped), f"{CONTENDERS['plain']}: {seconds(plain)}", wrapped / plain
    )
    report.add(
        f"{CONTENDERS['rules']}, {case}",
        f"{seconds(rules)} (+{more('rules', 'noop'):.1f} µs)",
        f"{CONTENDERS['noop']}: {seconds(noop)}",
        rules / noop,
    )
    over = more("observed", "noop")
    report.add(
        f"{CONTENDERS['observed']}, {case}",
        f"{seconds(observed)} (+{over:.1f} µs)",
        f"{CONTENDERS['noop']}: {seconds(noop)}",
        observed / noop,
        f"<= +{_MOST_OBSERVED:g} µs",
        over <= _MOST_OBSERVED,
    )


if __name__ == "__main__":
    asyncio.run(_serve())
