"""A batch create over a real connection: how it goes out, and what a broken one leaves behind."""

from __future__ import annotations

import json
import socketserver
import threading
import tracemalloc
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import anthropic
import pytest

from llmrouter.claude.batches import SdkBatchApi
from llmrouter.claude.lanes import Lanes
from llmrouter.errors import CreateRefusedError, CreateUnclearError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PIECE = b"x" * 65_536
BATCH = {
    "id": "msgbatch_1",
    "type": "message_batch",
    "processing_status": "in_progress",
    "request_counts": {"processing": 1, "succeeded": 0, "errored": 0, "canceled": 0, "expired": 0},
    "created_at": "2026-11-20T10:00:00Z",
    "expires_at": "2026-11-21T10:00:00Z",
}

Connection = socketserver.StreamRequestHandler


class Pieces:
    """A body of many pieces of 64 KiB."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.content_length = count * len(PIECE)

    def __iter__(self) -> Iterator[bytes]:
        for _ in range(self.count):
            yield PIECE


class Wire:
    """What a server saw of each connection."""

    def __init__(self) -> None:
        self.heads: list[dict[str, str]] = []
        self.body_bytes: list[int] = []


def read_head(connection: Connection) -> dict[str, str]:
    connection.rfile.readline()
    head: dict[str, str] = {}
    while line := connection.rfile.readline().strip():
        name, _, value = line.decode().partition(":")
        head[name.lower()] = value.strip()
    return head


def read_body(connection: Connection, length: int) -> int:
    got = 0
    while got < length and (piece := connection.rfile.read(min(65_536, length - got))):
        got += len(piece)
    return got


def answer(connection: Connection, status: int, body: Any) -> None:
    text = json.dumps(body).encode()
    head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(text)}\r\n"
    connection.wfile.write(head.encode() + b"connection: close\r\n\r\n" + text)


@contextmanager
def serving(behave: Callable[[Connection, Wire], None]) -> Iterator[tuple[SdkBatchApi, Lanes, Wire]]:
    """A server that treats each connection as told, and the API adapter in front of it."""
    wire = Wire()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            behave(self, wire)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """A connection that breaks is what the tests are about."""

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        with anthropic.Anthropic(api_key="k", base_url=url, timeout=10) as client:
            lanes = Lanes(client, b"s")
            yield SdkBatchApi(client, lanes), lanes, wire
        server.shutdown()
        thread.join()


def take(connection: Connection, wire: Wire) -> None:
    wire.heads.append(read_head(connection))
    wire.body_bytes.append(read_body(connection, int(wire.heads[-1]["content-length"])))


def take_and_answer(connection: Connection, wire: Wire) -> None:
    take(connection, wire)
    answer(connection, 200, BATCH)


def take_and_break(connection: Connection, wire: Wire) -> None:
    take(connection, wire)


def take_some_and_break(connection: Connection, wire: Wire) -> None:
    wire.heads.append(read_head(connection))
    wire.body_bytes.append(read_body(connection, 100_000))


def refuse_early(connection: Connection, wire: Wire) -> None:
    take_some_and_break(connection, wire)
    answer(connection, 413, {"type": "error", "error": {"type": "request_too_large", "message": "too large"}})
    connection.wfile.flush()
    connection.connection.shutdown(1)
    read_body(connection, 10**9)


def fail(connection: Connection, wire: Wire) -> None:
    take(connection, wire)
    answer(connection, 500, {"type": "error", "error": {"type": "api_error", "message": "oops"}})


def test_a_large_body_goes_out_piece_by_piece() -> None:
    """With its length, not in chunks, and hardly any of it in memory at once."""
    body = Pieces(1_600)
    with serving(take_and_answer) as (api, lanes, wire):
        lane = lanes.lane_for({})
        api.create(lane, Pieces(1))
        tracemalloc.start()
        api.create(lane, body)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()

    assert wire.body_bytes == [len(PIECE), body.content_length]
    assert wire.heads[1]["content-length"] == str(body.content_length)
    assert "transfer-encoding" not in wire.heads[1]
    assert peak < 4_000_000


@pytest.mark.parametrize("behave", [take_and_break, fail])
def test_a_body_that_went_out_whole_leaves_a_doubt(behave: Callable[[Connection, Wire], None]) -> None:
    """And is not posted again, though the SDK would."""
    with serving(behave) as (api, lanes, wire):
        with pytest.raises(CreateUnclearError):
            api.create(lanes.lane_for({}), Pieces(4))
        assert wire.body_bytes == [4 * len(PIECE)]


def test_a_body_that_was_cut_short_created_nothing() -> None:
    """No server can take half a body for a batch."""
    with serving(take_some_and_break) as (api, lanes, wire):
        with pytest.raises(CreateRefusedError) as caught:
            api.create(lanes.lane_for({}), Pieces(1_600))
        assert caught.value.status is None
        assert len(wire.heads) == 1


def test_an_early_refusal_is_heard() -> None:
    """A server that does not want the body says so before it has it all."""
    with serving(refuse_early) as (api, lanes, wire):
        with pytest.raises(CreateRefusedError) as caught:
            api.create(lanes.lane_for({}), Pieces(1_600))
        assert caught.value.status == 413
        assert len(wire.heads) == 1


@pytest.mark.parametrize("host", ["127.0.0.1:1", "nobody.invalid"])
def test_nobody_there_is_a_refusal(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that is closed, a name that is unknown: not a byte was sent."""
    monkeypatch.setenv("NO_PROXY", "*")
    with anthropic.Anthropic(api_key="k", base_url=f"http://{host}") as client:
        lanes = Lanes(client, b"s")
        with pytest.raises(CreateRefusedError, match="ConnectError"):
            SdkBatchApi(client, lanes).create(lanes.lane_for({}), Pieces(1))


def stream_results(connection: Connection, wire: Wire) -> None:
    wire.heads.append(read_head(connection))
    connection.wfile.write(b"HTTP/1.1 200 X\r\nconnection: close\r\n\r\n")
    text = "x" * 10_000
    for number in range(4_000):
        line = {"custom_id": str(number), "result": {"type": "succeeded", "message": {"text": text}}}
        connection.wfile.write(json.dumps(line).encode() + b"\n")


def test_results_are_read_piece_by_piece() -> None:
    """However many there are, hardly any are in memory at once."""
    with serving(stream_results) as (api, lanes, _):
        lines = iter(api.results(lanes.lane_for({}), "msgbatch_1"))
        next(lines)
        tracemalloc.start()
        count = sum(1 for _ in lines)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()

    assert count == 3_999
    assert peak < 4_000_000
